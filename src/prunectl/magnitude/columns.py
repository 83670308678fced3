"""Rows that run across lines: scope ``row`` where the inputs are not the last axis.

Each column of a matrix [n, columns] is pruned on its own. The matrix comes in blocks of whole lines
and may be larger than memory: the k-th smallest of every column is found by bisection on its bits,
each step one count over all lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from prunectl.magnitude.codes import Codes
from prunectl.magnitude.kernels import cutting

Lines = Callable[[], Iterable[Codes]]
"""Reads the whole matrix each time: yields blocks [lines, columns], in order."""


class ColumnCutter:
    """Finds the cuts of one matrix, then applies them to its blocks in order, in place.

    Args:
        lines: reads the matrix; called once for each bit of the magnitude, and once more.
        columns: their number.
        kind: u16, u32 or u64.
        k: zeros of each column, unless it already has as many; of equal magnitudes the lower index
            goes first.

    Attributes:
        zeros: in the matrix after pruning.
    """

    def __init__(self, lines: Lines, columns: int, kind: np.dtype[np.unsignedinteger], k: int):
        self._lines, self._columns = lines, columns
        bits = 8 * kind.itemsize
        self._mask = kind.type((1 << (bits - 1)) - 1)
        present = self._less(np.ones(columns, kind))
        self._code: Codes = np.zeros(columns, kind)
        below = np.zeros(columns, np.int64)
        for step in range(bits - 1):
            trial = self._code | kind.type(1 << (bits - 2 - step))
            less = self._less(trial)
            reached = less < k
            self._code[reached], below[reached] = trial[reached], less[reached]
        enough = present >= k
        self._code[enough] = 0
        self._left = np.where(enough, 0, k - below)
        self.zeros = int(np.maximum(present, k).sum())

    def _less(self, limits: Codes) -> NDArray[np.int64]:
        counts = np.zeros(self._columns, np.int64)
        for block in self._lines():
            cutting.columns_less(block, self._mask, limits, counts)
        return counts

    def apply(self, block: Codes) -> None:
        """Prune the next block [lines, columns] in place."""
        cutting.cut_lines(block, self._mask, self._code, self._left)
