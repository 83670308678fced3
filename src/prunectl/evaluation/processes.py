"""Work that is shared by the processes of ``accelerate launch``, each with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from prunectl.events import Note, OnEvent
from prunectl.parallel.launched import launched

One = TypeVar("One")
Result = TypeVar("Result")


def tell_unshared(on_event: OnEvent, *, trains: bool) -> None:
    """Say so where several processes each do all of the work: a metric shares out what it trains.

    Args:
        trains: whether it does.
    """
    rank, count = launched()
    if count > 1 and not rank and not trains:
        text = f"each of the {count} processes does all of it: only training is shared out"
        on_event(Note(text, warning=True))


def shared(items: Sequence[One], work: Callable[[Sequence[One]], Sequence[Result]]) -> list[Result]:
    """``work`` on the items, each process on its share; the results of all, in order, to each.

    Args:
        work: takes items and gives a result for each, in order; alone, it gets all of them.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(work(items))
    rank, count = dist.get_rank(), dist.get_world_size()
    parts: list[list[Result]] = [[] for _ in range(count)]
    dist.all_gather_object(parts, list(work(items[rank::count])))
    return [parts[index % count][index // count] for index in range(len(items))]
