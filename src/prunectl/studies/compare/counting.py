"""Two tensors' masks, block by block: how many weights go in each and in both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from prunectl.parallel.streaming import BLOCK_BYTES, Scratch
from prunectl.studies.compare.overlap import Overlap
from prunectl.studies.compare.sides import FileMasks, WeightMasks

if TYPE_CHECKING:
    from prunectl.studies.compare.sides import Bits

Masks = WeightMasks | FileMasks


class Sums:
    """Overlaps of tensors added up: over all of them, by component, by layer."""

    def __init__(self) -> None:
        self.whole = Overlap()
        self.components: dict[str, Overlap] = {}
        self.layers: dict[str, Overlap] = {}

    def add(self, component: str, layer: str, overlap: Overlap) -> None:
        """Add a tensor; a label of '' belongs to no group."""
        self.whole += overlap
        for group, label in ((self.components, component), (self.layers, layer)):
            if label:
                group[label] = group.get(label, Overlap()) + overlap


def overlaps(first: Masks, second: Masks, numel: int, scratch: Scratch) -> list[Overlap]:
    """The overlap at each target of two tensors of ``numel`` > 0 weights."""
    unit = math.lcm(first.unit, second.unit)
    size = max(BLOCK_BYTES // max(first.itemsize, second.itemsize) // unit, 1) * unit
    counts = np.zeros((first.targets, 3), np.int64)
    for start in range(0, numel, size):
        count = min(size, numel - start)
        pairs = zip(
            first.kept(start, count, scratch), second.kept(start, count, scratch), strict=True
        )
        counts += [_pruned(one, other, count) for one, other in pairs]
    return [Overlap.of_tensor(numel, *row) for row in counts.tolist()]


def _pruned(first: Bits, second: Bits, count: int) -> tuple[int, int, int]:
    """Of ``count`` weights: pruned in the first, in the second, in both."""
    kept, other, either = (
        int(np.bitwise_count(bits).sum(dtype=np.int64)) for bits in (first, second, first | second)
    )
    return count - kept, count - other, count - either
