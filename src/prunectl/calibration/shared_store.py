"""Calibrated weights as several processes see them: rank 0 writes, and broadcasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prunectl.calibration.store import CalibratedStore
from prunectl.checkpoint.reader import TensorReader, WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.output.osfiles import os_errors, real_path
from prunectl.output.secondary_rank import seen_outside
from prunectl.output.target import calibrated_folder, calibrated_journal, check_space
from prunectl.parallel.folder import SAME, SHARED_DISK
from prunectl.parallel.ranks import Ranks
from prunectl.parallel.run import Run
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")


@contextmanager
def shared_store(run: Run, target: Path, fingerprint: str) -> Iterator[SharedStore]:
    """The store of an output; see :class:`CalibratedStore`.

    Raises:
        RanksDiffer: a rank was asked for something else, or does not see the folder.
        OutputConflict, CannotWrite, NoSpace: as of :class:`CalibratedStore`.
    """
    ranks = run.ranks
    ranks.check_same("weights and settings", fingerprint, hint=SAME)
    with ExitStack() as stack:
        if ranks.is_first:
            store = stack.enter_context(CalibratedStore(target, fingerprint, run))
            if ranks.count > 1:
                ranks.check_same("output folder", ranks.broadcast(store.seen()), hint=SHARED_DISK)
            yield SharedStore(ranks, target, store, store.reader)
        else:
            with os_errors(target):
                real = real_path(target)
            seen = seen_outside(
                calibrated_journal(real), calibrated_folder(real), ranks.broadcast("")
            )
            ranks.check_same("output folder", seen, hint=SHARED_DISK)
            reader = stack.enter_context(WeightReader(calibrated_folder(real)))
            yield SharedStore(ranks, target, None, reader)


class SharedStore:
    """A :class:`CalibratedStore`; every method is called by all ranks alike, in the same order.

    Args:
        store: on the first rank. reader: of finished blocks.
    """

    def __init__(
        self, ranks: Ranks, target: Path, store: CalibratedStore | None, reader: TensorReader
    ) -> None:
        self._ranks, self._target, self._store = ranks, target, store
        self.reader = reader

    def once(self, key: str, measure: Callable[[], Value]) -> Value:
        """What ``measure`` gives the first rank, a JSON value; a later run has it without that."""
        known: Value | None = None if self._store is None else self._store.remembered(key)
        known = self._ranks.broadcast(known)
        if known is not None:
            return known
        found = measure()
        if self._store is not None:
            self._store.remember(key, found)
        return self._ranks.broadcast(found)

    def expect(self, blocks: Mapping[str, Iterable[TensorSpec]]) -> None:
        """Say which tensors of which block get new values; looks at what is there of them."""
        if self._store is not None:
            self._store.expect(blocks)

    @property
    def complete(self) -> bool:
        """Whether every block is there."""
        return self._ranks.broadcast(self._store is not None and self._store.complete)

    def check_space(self, more: int) -> None:
        """Check that the blocks that are not there yet fit on the disk, and ``more`` bytes.

        Raises:
            NoSpace, CannotWrite: on the first rank.
        """
        if self._store is not None:
            check_space(self._target, self._store.missing + more)

    def put(self, name: str, values: torch.Tensor, record: dict[str, Any]) -> None:
        """Write a tensor's new values, of its dtype and shape, and JSON-ready facts on them."""
        if self._store is not None:
            self._store.put(name, values, record)

    def finish(self, block: str) -> None:
        """Make a block durable; does nothing where it is so already, or holds nothing."""
        if self._store is not None:
            self._store.finish(block)

    def values_of(self, block: str) -> dict[str, torch.Tensor] | None:
        """A finished block's values by tensor; None where it is not finished."""
        values = None if self._store is None else self._store.values_of(block)
        names = self._ranks.broadcast(None if values is None else list(values))
        if names is None:
            return None
        held = values or {}
        return {name: self._ranks.tensor_of(0, held.get(name)) for name in names}

    def written(self) -> dict[str, tuple[StoredTensor, dict[str, Any], str]]:
        """Of every tensor of all finished blocks, where its values are, the facts, the BLAKE3."""
        found = {} if self._store is None else self._store.records()
        return self._ranks.broadcast(
            {
                name: (self._store.tensor(name), *rest)
                for name, rest in found.items()
                if self._store is not None
            }
        )

    def done_with(self) -> None:
        """The values are in the output: nothing is kept when the store is left."""
        if self._store is not None:
            self._store.done_with()
