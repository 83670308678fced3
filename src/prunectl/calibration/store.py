"""Calibrated weights until the output is written: a file for each block, in a hidden folder.

Each block's file is durable before the next block begins, and a later run of the same command goes
on after the last one. What it finds it compares with the digests of what was written. A block that
is damaged is computed anew. The blocks after it were computed from its outputs: they stay if it
comes out as it was, and are computed anew too if it does not, as may be on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import blake3

from prunectl.checkpoint.reader import TensorReader, WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.loading.finished import check_finished
from prunectl.output.header import encode_header, storage_order
from prunectl.output.osfiles import os_errors, real_path
from prunectl.output.resumable import ResumableFolder
from prunectl.output.secondary_rank import seen_outside
from prunectl.output.shards import Shard, ShardWriter
from prunectl.output.target import calibrated_folder, calibrated_journal, check_space
from prunectl.parallel.folder import SAME, SHARED_DISK
from prunectl.parallel.ranks import ALONE
from prunectl.parallel.run import Run
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    import torch


Value = TypeVar("Value")


class Written(NamedTuple):
    """Where a tensor's new values are, for the store's reader; facts, and the values' BLAKE3."""

    tensor: StoredTensor
    facts: dict[str, Any]
    blake3: str


class CalibratedStore:
    """New values of tensors, block by block; removed when it is left after :meth:`done_with`.

    Rank 0 writes, and broadcasts; all ranks call every method, in the same order.

    Args:
        target: the output that it belongs to.
        fingerprint: of all that decides the values.

    Attributes:
        reader: of finished blocks.

    Raises:
        RanksDiffer: on entry: a rank was asked for something else, or does not see the folder.
        OutputConflict, CannotWrite, NoSpace: as of :class:`ResumableFolder`.
    """

    reader: TensorReader

    def __init__(self, target: Path, fingerprint: str, run: Run) -> None:
        with os_errors(target):
            real = real_path(target)
        self._work, self._journal = calibrated_folder(real), calibrated_journal(real)
        self._folder = ResumableFolder(
            self._work, self._journal, target, fingerprint,
            part="block", read_again=True, on_event=run.on_event,
        )  # fmt: skip
        self._target, self._fingerprint, self._run = target, fingerprint, run
        self._ranks = run.ranks
        self._passes: list[dict[str, Shard]] = []
        self._shards: dict[str, Shard] = {}  # of the pass that is being written
        self._block_of: dict[str, str] = {}
        self._writers: dict[str, ShardWriter] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._passed: set[str] = set()

    def __enter__(self) -> Self:
        ranks = self._ranks
        ranks.check_same("weights and settings", self._fingerprint, hint=SAME)
        with ExitStack() as stack:
            if ranks.is_first:
                stack.enter_context(self._folder)
            if ranks.count > 1:
                seen = ranks.broadcast(self._folder.seen() if ranks.is_first else "")
                if not ranks.is_first:
                    seen = seen_outside(self._journal, self._work, seen)
                ranks.check_same("output folder", seen, hint=SHARED_DISK)
            self.reader = stack.enter_context(WeightReader(self._work))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def once(self, key: str, measure: Callable[[], Value]) -> Value:
        """What ``measure`` gives rank 0, a JSON value; a later run has it without that."""
        known: Value | None = self._folder.remembered(key) if self._ranks.is_first else None
        known = self._ranks.broadcast(known)
        if known is not None:
            return known
        found = measure()
        if self._ranks.is_first:
            self._folder.remember(key, found)
        return self._ranks.broadcast(found)

    def expect(self, blocks: Mapping[str, Iterable[TensorSpec]], *, twice: bool = False) -> None:
        """Declare which tensors of each block get new values, and check the finished blocks.

        Args:
            twice: once all are there, :meth:`again` lets them be replaced.
        """
        for kind in ("block", "again")[: 1 + twice]:
            shards = self._shards = {}
            for number, (block, specs) in enumerate(blocks.items()):
                ordered = storage_order(list(specs))
                name = f"{kind}-{number:05d}.safetensors"
                shards[block] = Shard(name, tuple(ordered), encode_header(ordered))
                self._block_of.update(dict.fromkeys((spec.name for spec in ordered), block))
            self._passes.append(shards)
        self._shards = self._passes[0]
        if self._ranks.is_first:
            check_finished(self._folder, replace(self._run, ranks=ALONE), once=False)

    def _missing(self) -> int:
        """Bytes of the blocks that are not there yet, on rank 0."""
        shards = [shard for one in self._passes for shard in one.values()]
        return sum(shard.size for shard in shards if self._folder.records_of(shard) is None)

    @property
    def is_twice(self) -> bool:
        """Whether there is a second pass."""
        return len(self._passes) > 1

    def again(self) -> None:
        """Begin the second pass, whose values replace those of the first.

        Blocks that an earlier run wrote in it are discarded, since this run may round differently.
        """
        self._shards = self._passes[1]
        for shard in self._shards.values() if self._ranks.is_first else ():
            if self._folder.records_of(shard) is not None:
                self._folder.spoil(shard.name)
            self._folder.damaged.pop(shard.name, None)

    @property
    def complete(self) -> bool:
        """Whether every block is there, of the last pass."""
        shards = self._passes[-1].values() if self._ranks.is_first else ()
        found = all(self._folder.records_of(shard) is not None for shard in shards)
        return self._ranks.broadcast(found)

    def check_space(self, more: int) -> None:
        """Check that the blocks that are not there yet fit on the disk, and ``more`` bytes.

        Raises:
            NoSpace, CannotWrite: on rank 0.
        """
        if self._ranks.is_first:
            check_space(self._target, self._missing() + more)

    def put(self, name: str, values: torch.Tensor, record: dict[str, Any]) -> None:
        """Write a tensor's new values, of its dtype and shape, and JSON-ready facts on them."""
        if not self._ranks.is_first:
            return
        import torch

        block = self._block_of[name]
        if block not in self._writers:
            self._writers[block] = self._folder.open_shard(self._shards[block])
        data = values.contiguous().view(-1).view(torch.uint8).numpy()
        self._writers[block].write(name, 0, data.data)
        self._records[name] = {"blake3": blake3.blake3(data.data).hexdigest(), "facts": record}

    def finish(self, block: str) -> None:
        """Make a block durable; does nothing where it is so already, or holds nothing."""
        self._passed.add(block)
        writer = self._writers.pop(block, None)
        if writer is None:
            return
        records = [{"name": s.name, **self._records[s.name]} for s in self._shards[block].specs]
        earlier = self._folder.damaged.get(writer.name)
        if earlier is not None and _digests_in(earlier["records"]) != _digests_in(records):
            self._give_up_later(block)
        self._folder.finish(writer, records)
        self._folder.wait()

    def _give_up_later(self, block: str) -> None:
        """Forget the blocks that were computed from other values of this one."""
        later = [
            shard.name
            for shards in self._passes
            for other, shard in shards.items()
            if (shards is not self._shards or other not in self._passed)
            and self._folder.records_of(shard) is not None
        ]
        for name in later:
            self._folder.spoil(name)
        if later:
            text = (
                f"{block} was recomputed with other bytes: the blocks after it are recomputed too"
            )
            self._run.note(f"{self._target}: {text}", warning=True)

    def values_of(self, block: str) -> dict[str, torch.Tensor] | None:
        """A finished block's values by tensor; None where it is not finished."""
        self._passed.add(block)
        shard = self._shards.get(block)
        if shard is None:
            return {}
        held: dict[str, torch.Tensor] = {}
        if self._ranks.is_first and self._folder.records_of(shard) is not None:
            held = {spec.name: self.read(spec.name) for spec in shard.specs}
        if not self._ranks.broadcast(bool(held)):
            return None
        names = [spec.name for spec in shard.specs]
        return {name: self._ranks.tensor_of(0, held.get(name)) for name in names}

    def read(self, name: str) -> torch.Tensor:
        """A tensor's first values, of a finished block; any rank may ask at any time."""
        return read_tensor(self.reader, self._tensor(name, self._passes[0]))

    def _tensor(self, name: str, shards: Mapping[str, Shard]) -> StoredTensor:
        """Where a tensor's values are, for :attr:`reader`."""
        shard = shards[self._block_of[name]]
        spec = next(spec for spec in shard.specs if spec.name == name)
        return StoredTensor(spec, shard.name, shard.header.offsets[name])

    def written(self, *, first: bool = False) -> dict[str, Written]:
        """The last values of every tensor of all finished blocks, or the first ones."""
        shards = self._passes[0 if first else -1]
        return self._ranks.broadcast(
            {
                record["name"]: Written(
                    self._tensor(record["name"], shards), dict(record["facts"]), record["blake3"]
                )
                for shard in (shards.values() if self._ranks.is_first else ())
                for record in self._folder.records_of(shard) or ()
            }
        )

    def done_with(self) -> None:
        """The values are in the output: nothing is kept when the store is left."""
        self._folder.discard()


def _digests_in(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return [record["blake3"] for record in records]
