"""The processes that work on one command, as the verbs use them."""

from __future__ import annotations

import heapq
import io
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import IO, TYPE_CHECKING, Any, TypeVar

from prunectl._version import __version__
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.parallel.devices import Place, name_of, why_by_host
from prunectl.parallel.errors import RanksDiffer
from prunectl.parallel.link import Link
from prunectl.to_json import to_json

if TYPE_CHECKING:
    import torch


Item = TypeVar("Item")

_MESSAGE = 16 << 20
"""Bytes of results that are sent together, and the limit of those that wait in memory."""

SAME_CALLS = (
    "all ranks must make the same calls with ranks=; ask is_first only for what follows, such as "
    "printing"
)
SAME_COMMAND = "all need the same command, with the same options, and the same version of prunectl"


class Ranks:
    """This process and the others that work on the same command; alone without a link.

    All ranks run the same code on the same input. Each does its part of shared work, and every rank
    gets all results in the same order. Decisions that depend on results are therefore the same on
    every rank, whatever their number. All ranks call every method, in the same order.

    Attributes:
        number, count: this process's rank, and the number of ranks.
    """

    def __init__(self, link: Link | None = None) -> None:
        self._link = link
        self._places: list[Place] = []
        self.number = link.rank if link else 0
        self.count = link.count if link else 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what exists once: index, manifest, the screen."""
        return self.number == 0

    def part(self, tensors: Sequence[StoredTensor]) -> Sequence[StoredTensor]:
        """This rank's part: consecutive items, about as many bytes as every other rank's."""
        if self._link is None:
            return tensors
        mine = slices([tensor.spec.nbytes for tensor in tensors], self.count)[self.number]
        return tensors[mine.start : mine.stop]

    def share(self, items: Sequence[Item], size: Callable[[Item], int]) -> list[Item]:
        """The items of this rank: distributed by size, the largest first."""
        if self._link is None:
            return list(items)
        return [items[i] for i in piles([size(item) for item in items], self.count)[self.number]]

    def all_gather(self, items: Iterable[Item]) -> Iterator[Item]:
        """All-gather the items of all ranks, in the order of ranks.

        A rank makes all its items before it sends any; until then they are in a temporary file.
        """
        if self._link is None:
            yield from items
            return
        with tempfile.SpooledTemporaryFile(max_size=_MESSAGE) as spool:
            sizes = [len(message) for message in _messages(items) if spool.write(message)]
            spool.seek(0)
            for source in range(self.count):
                own = iter(sizes if source == self.number else ())
                while message := self._link.bytes_of(source, spool.read(next(own, 0))):
                    yield from _items(message)

    def broadcast(self, value: Item) -> Item:
        """Broadcast rank 0's value."""
        return self._value_of(0, value)

    def _value_of(self, rank: int, value: Item) -> Item:
        if self._link is None:
            return value
        data = self._link.bytes_of(rank, pickle.dumps(value) if rank == self.number else b"")
        found: Item = pickle.loads(data)
        return found

    def use(self, device: torch.device, on_event: OnEvent = ignore_events) -> None:
        """Set this rank's device.

        Sums use NCCL if every rank has a CUDA device of its own and NCCL connects them; otherwise
        gloo, through the host's memory.

        Args:
            on_event: on rank 0, receives a :class:`Note` with the choice if there are GPUs.
        """
        if self._link is None:
            return
        places = list(self.all_gather([Place(str(device), name_of(device))]))
        if places == self._places:
            return
        self._places = places
        self._link.leave()
        why = why_by_host(places)
        failed = "" if why else self._join(self._link, device)
        if self.is_first and any(place.device.startswith("cuda") for place in places):
            way = f"through the host: {why or failed}" if why or failed else "by NCCL"
            on_event(Note(f"sums are computed {way}", warning=bool(failed)))

    def _join(self, link: Link, device: torch.device) -> str:
        """Connect all ranks' devices; on failure return why, and connect none."""
        began = time.monotonic()
        why = link.join(device)
        answers = self.all_gather([(time.monotonic() - began, self.number, why)])
        failed = [one for one in answers if one[2]]
        if not failed:
            return ""
        link.leave()
        _, rank, why = min(failed)  # the rank that failed first: the others waited for it
        return f"NCCL cannot connect rank {rank} ({why}); NCCL_DEBUG=INFO shows more"

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """All-reduce a contiguous tensor by a sum, in place; the same bits on every rank."""
        if self._link is not None:
            self._link.sum(tensor)

    def tensor_of(self, rank: int, tensor: torch.Tensor | None) -> torch.Tensor:
        """Broadcast the tensor of ``rank``, on the CPU."""
        if self._link is None:
            assert tensor is not None
            return tensor
        import torch

        kind = self._value_of(rank, None if tensor is None else (tensor.shape, tensor.dtype))
        assert kind is not None
        if rank == self.number and tensor is not None:
            held = tensor.cpu().contiguous()
        else:
            held = torch.empty(kind[0], dtype=kind[1])
        self._link.tensor_of(rank, held)
        return held

    def file_of_first(self, file: IO[bytes] | None) -> IO[bytes] | None:
        """The bytes of a file that rank 0 has open, to read from here; None if it has none.

        Rank 0 gets its own file back.
        """
        if self._link is None or not self.broadcast(file is not None):
            return file
        copy: IO[bytes] = file or tempfile.SpooledTemporaryFile(max_size=_MESSAGE)  # noqa: SIM115
        while data := self._link.bytes_of(0, copy.read(_MESSAGE) if self.is_first else b""):
            if not self.is_first:
                copy.write(data)
        copy.seek(0)
        return copy

    def check_same(self, what: str, value: object, *, hint: str) -> None:
        """Check that every rank has the same value, at the same point of the program.

        Raises:
            RanksDiffer: on all ranks; the message names the first rank that differs.
        """
        if self._link is None:
            return
        values = list(self.all_gather([(what, value)]))
        for rank, (place, other) in enumerate(values):
            if place != values[0][0]:
                raise RanksDiffer("work to do", rank, hint=SAME_CALLS)
            if other != values[0][1]:
                raise RanksDiffer(what, rank, hint=hint)

    def check_source(self, checkpoint: Checkpoint, verb: str, *arguments: object) -> None:
        """Check that every rank has opened the same weights with the same roles, for the same work.

        Args:
            verb: the verb that runs.
            arguments: those that decide what the ranks exchange.

        Raises:
            RanksDiffer: as :meth:`check_same`.
        """
        if self._link is not None:
            seen = (checkpoint.identity(), to_json(checkpoint.roles.roles))
            hint = (
                "all need the same files, from a shared disk or the Hub, and the same transformers"
            )
            self.check_same("weights", seen, hint=hint)
            self.check_same("command", (__version__, verb, arguments), hint=SAME_COMMAND)


ALONE = Ranks()


def _messages(items: Iterable[Item]) -> Iterator[bytes]:
    """Pickle items one after another, in messages of about ``_MESSAGE`` bytes."""
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


# --- partitions, the same in every process --------------------------------------------------------


def slices(sizes: Sequence[int], count: int) -> list[range]:
    """Cut items into ``count`` runs of consecutive items, about equal in size.

    An item belongs to the run that its middle falls into, so no item is in two runs, and a rank
    reads files from one end to the other.

    Args:
        sizes: of the items, at least 0; the same on every rank.
        count: number of runs; some are empty where there are fewer items.
    """
    total = sum(sizes)
    ends = list(accumulate(sizes))
    bounds = [0]
    at = 0
    for part in range(1, count):
        limit = 2 * total * part
        while at < len(sizes) and count * (2 * ends[at] - sizes[at]) < limit:
            at += 1
        bounds.append(at)
    bounds.append(len(sizes))
    return [range(first, last) for first, last in pairwise(bounds)]


def piles(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Distribute items over ``count`` piles, the largest first, each to the smallest pile.

    Of equal items the earlier is placed first, and of equal piles the first receives it.

    Returns:
        The items' indices in each pile, ascending.
    """
    heap = [(0, number) for number in range(count)]
    found: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        held, number = heapq.heappop(heap)
        found[number].append(index)
        heapq.heappush(heap, (held + sizes[index], number))
    return [sorted(pile) for pile in found]
