"""Work that is shared by the processes of ``accelerate launch``, each with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

One = TypeVar("One")
Result = TypeVar("Result")


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
