"""Where calibrated weights wait until the output is written: a file a block, hidden beside it.

Each block's file is durable before the next block begins, and a later run of the same command goes
on behind the last one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prunectl.checkpoint.reader import TensorReader, WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.events import OnEvent
from prunectl.sink.folder import OutputFolder
from prunectl.sink.header import encode_header, storage_order
from prunectl.sink.shards import Shard, ShardWriter
from prunectl.sink.target import journal_file, work_folder
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    import torch


def _place(target: Path) -> Path:
    return target.with_name(f".{target.name}.calibrated")


def sweep(target: Path) -> None:
    """Remove what an interrupted calibration left beside an output that is whole by now."""
    for path in (work_folder(_place(target)), journal_file(_place(target))):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class CalibratedStore:
    """New values of tensors, block by block; removed when it is left after :meth:`done_with`.

    Args:
        target: the output that it belongs to.
        fingerprint: of all that decides the values.
        blocks: by block, the tensors that get new values.
    """

    def __init__(
        self,
        target: Path,
        fingerprint: str,
        blocks: Mapping[str, Iterable[TensorSpec]],
        on_event: OnEvent,
    ) -> None:
        self._folder = OutputFolder(
            _place(target),
            fingerprint,
            force=False,
            protected=[],
            on_event=on_event,
        )
        self._shards: dict[str, Shard] = {}
        for number, (block, specs) in enumerate(blocks.items()):
            ordered = storage_order(list(specs))
            name = f"block-{number:05d}.safetensors"
            self._shards[block] = Shard(name, tuple(ordered), encode_header(ordered))
        self._block_of = {
            s.name: block for block, shard in self._shards.items() for s in shard.specs
        }
        self._writers: dict[str, ShardWriter] = {}
        self._records: dict[str, dict[str, Any]] = {}

    @property
    def missing(self) -> int:
        """Bytes of the blocks that are not there yet."""
        shards = self._shards.values()
        return sum(shard.size for shard in shards if self._folder.records_of(shard) is None)

    def __enter__(self) -> Self:
        self._folder.__enter__()
        self._reader = WeightReader(self._folder.work)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._reader.close()
        self._folder.__exit__(kind, error, trace)

    @property
    def complete(self) -> bool:
        """Whether every block is there."""
        return all(self._folder.records_of(s) is not None for s in self._shards.values())

    def put(self, name: str, values: torch.Tensor, record: dict[str, Any]) -> None:
        """Write a tensor's new values, of its dtype and shape, and JSON-ready facts on them."""
        import torch

        block = self._block_of[name]
        if block not in self._writers:
            self._writers[block] = self._folder.open_shard(self._shards[block])
        data = values.contiguous().view(-1).view(torch.uint8).numpy()
        self._writers[block].write(name, 0, data.data)
        self._records[name] = record

    def finish(self, block: str) -> None:
        """Make a block durable; does nothing where it is so already, or holds nothing."""
        writer = self._writers.pop(block, None)
        if writer is not None:
            names = [spec.name for spec in self._shards[block].specs]
            self._folder.finish(writer, [{"name": n, **self._records[n]} for n in names])
            self._folder.wait()

    def values_of(self, block: str) -> dict[str, torch.Tensor] | None:
        """A finished block's values by tensor; None where it is not finished."""
        shard = self._shards.get(block)
        if shard is None:
            return {}
        if self._folder.records_of(shard) is None:
            return None
        return {
            spec.name: read_tensor(self._reader, self.tensor(spec.name)) for spec in shard.specs
        }

    def tensor(self, name: str) -> StoredTensor:
        """Where a tensor's values are, for :attr:`reader`."""
        shard = self._shards[self._block_of[name]]
        spec = next(spec for spec in shard.specs if spec.name == name)
        return StoredTensor(spec, shard.name, shard.header.offsets[name])

    @property
    def reader(self) -> TensorReader:
        """Reads finished blocks."""
        return self._reader

    def records(self) -> dict[str, dict[str, Any]]:
        """The facts on every tensor of all finished blocks."""
        found = {}
        for shard in self._shards.values():
            for record in self._folder.records_of(shard) or ():
                found[record["name"]] = {k: v for k, v in record.items() if k != "name"}
        return found

    def done_with(self) -> None:
        """The values are in the output: nothing is kept when the store is left."""
        self._folder.discard()
