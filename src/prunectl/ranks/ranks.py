"""The processes that work on one command, as the verbs see them."""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.plain import plain
from prunectl.ranks.devices import all_own, name_of
from prunectl.ranks.errors import RanksDiffer
from prunectl.ranks.link import Link
from prunectl.ranks.shares import piles, slices
from prunectl.streaming import Scratch, run_tensors

if TYPE_CHECKING:
    import torch

    from prunectl.magnitude.on_device import OnDevice

Item = TypeVar("Item")
Result = TypeVar("Result")

_MESSAGE = 16 << 20
"""Bytes of results that are sent together, and of those that wait in memory to be sent."""

SAME_CALLS = (
    "all make the same calls with ranks=; whether it is the first is asked for what follows, such "
    "as printing"
)


class Ranks:
    """This process and those that work on the same command; alone without a link.

    All of them run the same code on the same input. What they share out, each does a part of, and
    every one gets the results of all, in the same order: whatever is decided by these is decided
    alike everywhere, and nothing depends on how many there are. Every method is called by all ranks
    alike, and in the same order.

    Attributes:
        number, count: this process's rank, and how many there are.
    """

    def __init__(self, link: Link | None = None) -> None:
        self._link = link
        self.number = link.rank if link else 0
        self.count = link.count if link else 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes what there is once: index, manifest, the screen."""
        return self.number == 0

    def run_tensors(
        self,
        tensors: Sequence[StoredTensor],
        work: Callable[[StoredTensor, Scratch], Result],
        jobs: int | None = None,
        device: OnDevice | None = None,
        done: Callable[[StoredTensor], None] | None = None,
    ) -> Iterator[tuple[StoredTensor, Result]]:
        """:func:`prunectl.streaming.run_tensors`, each rank on a run of neighbours.

        Args:
            done: called with each of this rank's own tensors, those of :meth:`part`, when there is
                its result; all results come only after that, at once.

        Yields:
            All tensors with their results, in the order of ``tensors``, on every rank. What
            ``work`` returns must be of the kind that can be pickled.
        """
        made = _told(run_tensors(self.part(tensors), work, jobs, device), done)
        yield from zip(tensors, self.gathered(made), strict=True)

    def part(self, tensors: Sequence[StoredTensor]) -> Sequence[StoredTensor]:
        """The tensors that this rank works on in :meth:`run_tensors`."""
        if self._link is None:
            return tensors
        mine = slices([tensor.spec.nbytes for tensor in tensors], self.count)[self.number]
        return tensors[mine.start : mine.stop]

    def share(self, items: Sequence[Item], size: Callable[[Item], int]) -> list[Item]:
        """The items that this rank does: dealt out by size, the largest first."""
        if self._link is None:
            return list(items)
        return [items[i] for i in piles([size(item) for item in items], self.count)[self.number]]

    def gathered(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of all ranks, those of the first rank first, on every one of them.

        What a rank makes is made before anything is sent, and waits in a file.
        """
        if self._link is None:
            yield from items
            return
        with tempfile.SpooledTemporaryFile(max_size=_MESSAGE) as spool:
            sizes = [len(message) for message in _messages(items) if spool.write(message)]
            spool.seek(0)
            for source in range(self.count):
                mine = iter(sizes) if source == self.number else None
                while message := self._link.bytes_of(source, _next(spool, mine)):
                    yield from _items(message)

    def told(self, value: Item) -> Item:
        """What the first rank has for a value, on every rank; that of the others counts nothing."""
        if self._link is None:
            return value
        data = self._link.bytes_of(0, pickle.dumps(value) if self.is_first else b"")
        first: Item = pickle.loads(data)
        return first

    def use(self, device: torch.device) -> None:
        """Say where this rank computes. Where all do so on CUDA devices, each on one of its own,
        their tensors pass by nccl from one to the other; else by gloo, through the host's memory.

        Raises:
            RanksLost: nccl does not work.
        """
        if self._link is not None:
            names = tuple(self.gathered([name_of(device)]))
            self._link.use(device, names if all_own(names) else ())

    def add_up(self, tensor: torch.Tensor) -> None:
        """Put the sum of the ranks' tensors, contiguous, in that of every one; the same bits."""
        if self._link is not None:
            self._link.sum(tensor)

    def tensor_of(self, rank: int, tensor: torch.Tensor | None) -> torch.Tensor:
        """What ``rank`` has for a tensor, on every rank; others' counts nothing.

        It is on the CPU, or on each rank's own device where ``rank`` has it there and nccl joins
        them.
        """
        if self._link is None:
            assert tensor is not None
            return tensor
        import torch

        device = self._link.device
        held = tensor.contiguous() if tensor is not None and rank == self.number else None
        if held is not None and held.device != device:
            held = held.cpu()
        told = b""
        if held is not None:
            told = pickle.dumps((tuple(held.shape), held.dtype, held.device.type != "cpu"))
        shape, dtype, is_there = pickle.loads(self._link.bytes_of(rank, told))
        if held is None:
            held = torch.empty(shape, dtype=dtype, device=device if is_there else None)
        self._link.tensor_of(rank, held)
        return held

    def file_of_first(self, file: IO[bytes] | None) -> IO[bytes] | None:
        """The bytes of a file that the first rank has open, to read from here; None if it has none.

        On the first rank it is the file itself.
        """
        if self._link is None or not self.told(file is not None):
            return file
        copy: IO[bytes] = file or tempfile.SpooledTemporaryFile(max_size=_MESSAGE)  # noqa: SIM115
        while data := self._link.bytes_of(0, copy.read(_MESSAGE) if self.is_first else b""):
            if not self.is_first:
                copy.write(data)
        copy.seek(0)
        return copy

    def check_same(self, what: str, value: object, *, hint: str) -> None:
        """See to it that every rank has the same value, and has come to the same place.

        Raises:
            RanksDiffer: on all ranks, naming the first that has another.
        """
        if self._link is None:
            return
        values = list(self.gathered([(what, value)]))
        for rank, (place, other) in enumerate(values):
            if place != values[0][0]:
                raise RanksDiffer("work to do", rank, hint=SAME_CALLS)
            if other != values[0][1]:
                raise RanksDiffer(what, rank, hint=hint)

    def check_source(self, checkpoint: Checkpoint) -> None:
        """See to it that every rank has opened the same weights, and takes them for the same.

        Raises:
            RanksDiffer: as :meth:`check_same`.
        """
        if self._link is not None:
            seen = (checkpoint.identity(), plain(checkpoint.roles.roles))
            hint = (
                "all need the same files, from a shared disk or the Hub, and the same transformers"
            )
            self.check_same("weights", seen, hint=hint)


ALONE = Ranks()


def _told(
    made: Iterable[tuple[StoredTensor, Result]], done: Callable[[StoredTensor], None] | None
) -> Iterator[Result]:
    for tensor, result in made:
        if done is not None:
            done(tensor)
        yield result


def _messages(items: Iterable[Item]) -> Iterator[bytes]:
    """Pickles one after another, about ``_MESSAGE`` bytes of them at a time."""
    batch = bytearray()
    for item in items:
        batch += pickle.dumps(item)
        if len(batch) >= _MESSAGE:
            yield bytes(batch)
            batch.clear()
    if batch:
        yield bytes(batch)


def _items(message: bytes) -> Iterator[Any]:
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        yield pickle.load(stream)


def _next(spool: IO[bytes], sizes: Iterator[int] | None) -> bytes:
    return b"" if sizes is None else spool.read(next(sizes, 0))
