"""Subdividing coarse bins of a 32- or 64-bit tensor, one level at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prunectl.magnitude.codes import Codes, code_format
from prunectl.magnitude.histogram import Histogram
from prunectl.magnitude.kernels import counting
from prunectl.tensorspec import DType

_LEVEL_BITS = 16
_BUFFER = 1 << 15


class Refiner:
    """Histogram of the magnitudes in given bins only, each split into up to 2**16.

    Hits go to a small buffer first, so that a small tensor does not need the full tables. These
    take up to 1 MiB for each bin: refine some dozens of bins at a time.

    Args:
        dtype: F32 or F64 (narrower types are exact already).
        bins: (start, log2_width), disjoint, as :class:`TensorMeasure` and this class make them.

    Raises:
        ValueError: bins that overlap, are exact already, or are wider than the top level's.
    """

    def __init__(self, dtype: DType, bins: Sequence[tuple[int, int]]) -> None:
        f = self._format = code_format(dtype)
        shift = f.bits - 1 - _LEVEL_BITS
        ordered = sorted(bins)
        if any(not 0 < log <= shift or start % (1 << log) for start, log in ordered):
            raise ValueError(f"bins to refine have a log2 width of 1..{shift} and are aligned")
        if any(a + (1 << log) > b for (a, log), (b, _) in pairwise(ordered)):
            raise ValueError("bins to refine overlap")
        self._shift = f.uint.type(shift)
        self._starts = np.array([start for start, _ in ordered], f.uint)
        self._logs = np.array([log for _, log in ordered], f.uint)
        self._fine_logs = np.array([max(0, log - _LEVEL_BITS) for _, log in ordered], np.uint8)
        self._split = max((min(log, _LEVEL_BITS) for _, log in ordered), default=0)
        self._first = np.full(1 << _LEVEL_BITS, -1, np.int32)
        for i in reversed(range(len(ordered))):
            self._first[ordered[i][0] >> shift] = i
        self._hits = np.empty(_BUFFER, f.uint)
        self._used = 0
        self._counts: NDArray[np.int64] | None = None
        self._energies: NDArray[np.float64] | None = None

    def update(self, codes: Codes) -> None:
        """Add the next block, u32/u64[n], contiguous."""
        mask, at = self._format.uint.type(self._format.mask), 0
        bins = (self._first, self._starts, self._logs)
        while at < codes.size:
            space = self._hits[self._used :]
            at, found = counting.collect(codes, at, mask, self._shift, *bins, space)
            self._used += found
            if self._used == self._hits.size:
                self._spill()

    def _places(self, hits: Codes) -> NDArray[np.int64]:
        """For each hit its index in a table [bins, 2**split], flat."""
        owner = np.searchsorted(self._starts, hits, side="right") - 1
        inside = (hits - self._starts[owner]) >> self._fine_logs[owner].astype(hits.dtype)
        places: NDArray[np.int64] = owner << self._split | inside.astype(np.int64)
        return places

    def _squares(self, hits: Codes) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.square(self._format.values(hits))

    def _spill(self) -> None:
        """Move the buffer into full tables, whose pages need no memory until touched."""
        if self._counts is None or self._energies is None:
            self._counts = np.zeros(self._starts.size << self._split, np.int64)
            self._energies = np.zeros(self._counts.size)
        hits = self._hits[: self._used]
        places = self._places(hits)
        np.add.at(self._counts, places, 1)
        if self._fine_logs.any():
            np.add.at(self._energies, places, self._squares(hits))
        self._used = 0

    def finish(self) -> Histogram:
        """The histogram of the given bins' contents, one level finer, without NaN."""
        if self._counts is not None and self._energies is not None:
            self._spill()
            places = np.flatnonzero(self._counts)
            return self._histogram(places, self._counts[places], self._energies[places])
        hits = self._hits[: self._used]
        places, group, counts = np.unique(
            self._places(hits), return_inverse=True, return_counts=True
        )
        energies = np.zeros(places.size)
        np.add.at(energies, group, self._squares(hits))
        return self._histogram(places, counts, energies)

    def _histogram(
        self, places: NDArray[np.int64], counts: NDArray[np.int64], energies: NDArray[np.float64]
    ) -> Histogram:
        owner, inside = places >> self._split, places & ((1 << self._split) - 1)
        logs = self._fine_logs[owner]
        starts = self._starts[owner].astype(np.uint64)
        starts += inside.astype(np.uint64) << logs.astype(np.uint64)
        number = starts < self._format.nan_code
        columns = (starts, logs, counts, energies)
        return Histogram(self._format, *(c[number] for c in columns))
