"""Who does what: plans that every process makes for itself, and that come out the same."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate, pairwise


def slices(sizes: Sequence[int], count: int) -> list[range]:
    """Cut items into ``count`` runs of neighbours, about as large as one another.

    Where a run ends is decided by its items' middles, so that no item is in two of them and a rank
    reads files from one end to the other.

    Args:
        sizes: of the items, at least 0; the same on every rank.
        count: runs; some are empty where there are fewer items.
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
    """Deal items out into ``count`` piles, the largest first, each to the pile with least.

    Of equal items the earlier goes first, and of equal piles the first gets it.

    Returns:
        The items' indices in each pile, rising.
    """
    heap = [(0, number) for number in range(count)]
    found: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        held, number = heapq.heappop(heap)
        found[number].append(index)
        heapq.heappush(heap, (held + sizes[index], number))
    return [sorted(pile) for pile in found]
