"""Histograms of magnitudes in dyadic bins of codes: exact where it matters, coarse elsewhere.

A bin holds the codes ``start .. start + 2**log2_width - 1`` with start a multiple of its width, so
any two bins are nested or disjoint. A bin of width 1 is one exact magnitude.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunectl.magnitude import records
from prunectl.magnitude.codes import CodeFormat, code_format

Spans = list[tuple[int, int]]
"""Bins by (start, log2_width)."""


class Bin(NamedTuple):
    """A bin: its first code, log2 of its width, and the number of magnitudes below it."""

    start: int
    log2_width: int
    below: int


@dataclass(frozen=True)
class Octaves:
    """Counts per binary exponent: ``counts[i]`` magnitudes have floor(log2) ``exponents[i]``."""

    exponents: NDArray[np.int64]
    counts: NDArray[np.int64]
    zeros: int
    infs: int


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts and energies of magnitudes, NaN excluded. Immutable.

    Attributes:
        format: what the codes mean.
        starts: u64[n], first code of each bin, increasing; empty bins are absent.
        log2_widths: u8[n].
        counts: i64[n], all > 0.
        given_energies: f64[n], sum of squares of the finite values; read where the width is not 1
            (where it is, :attr:`energies` follow from the counts).

    Raises:
        ValueError: the arrays are not such a histogram.
    """

    format: CodeFormat
    starts: NDArray[np.uint64]
    log2_widths: NDArray[np.uint8]
    counts: NDArray[np.int64]
    given_energies: NDArray[np.float64]

    def __post_init__(self) -> None:
        kinds = (np.uint64, np.uint8, np.int64, np.float64)
        arrays = [np.asarray(getattr(self, n), k) for n, k in zip(_COLUMNS, kinds, strict=True)]
        _check(self.format, *arrays)
        self._set_columns([array.view() for array in arrays])

    def _set_columns(self, arrays: Iterable[NDArray[Any]]) -> None:
        for name, array in zip(_COLUMNS, arrays, strict=True):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def trusted(cls, format: CodeFormat, *columns: NDArray[Any]) -> Histogram:
        """A histogram of columns that are valid by construction and of the right types: no checks.

        The arrays become read-only.
        """
        own = cls.__new__(cls)
        object.__setattr__(own, "format", format)
        own._set_columns(columns)
        return own

    @cached_property
    def energies(self) -> NDArray[np.float64]:
        """f64[n], sum of squares of the finite values in each bin."""
        with np.errstate(over="ignore"):
            exact = self.counts * _squares(self.format, self.starts)
        own = np.where(self.log2_widths == 0, exact, self.given_energies)
        own.flags.writeable = False
        return own

    @cached_property
    def ends(self) -> NDArray[np.uint64]:
        """u64[n], one past the last code of each bin."""
        return self.starts + (np.uint64(1) << self.log2_widths.astype(np.uint64))

    @cached_property
    def _totals(self) -> NDArray[np.int64]:
        return np.concatenate(([0], np.cumsum(self.counts)))

    @cached_property
    def _energy_totals(self) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            return np.concatenate(([0.0], np.cumsum(self.energies)))

    @property
    def numel(self) -> int:
        """The number of magnitudes."""
        return int(self._totals[-1])

    def count_below(self, code: int) -> int:
        """The number of magnitude codes < ``code``.

        Raises:
            ValueError: ``code`` is strictly inside a wide bin.
        """
        return int(self._totals[self._position(code)])

    def energy_below(self, code: int) -> float:
        """Sum of squares of the finite magnitudes below ``code``; raises as :meth:`count_below`."""
        return float(self._energy_totals[self._position(code)])

    def count_at(self, code: int) -> int:
        """The number of magnitudes with exactly this code.

        Raises:
            ValueError: ``code`` is in a wide bin.
        """
        i = self._position(code)
        if i == self.starts.size or int(self.starts[i]) != code:
            return 0
        if self.log2_widths[i]:
            raise ValueError(f"code {code} is in a bin of many codes")
        return int(self.counts[i])

    def counts_below(self, codes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """:meth:`count_below` for many codes, u64[k]."""
        return self._totals[self._positions(codes)]

    def energies_below(self, codes: NDArray[np.uint64]) -> NDArray[np.float64]:
        """:meth:`energy_below` for many codes, u64[k]."""
        return self._energy_totals[self._positions(codes)]

    def counts_at(self, codes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """:meth:`count_at` for many codes, u64[k]; those in a wide bin count as absent."""
        at = self._positions(codes)
        here = np.minimum(at, self.starts.size - 1) if self.starts.size else at
        if not self.starts.size:
            return np.zeros(codes.size, np.int64)
        found = (at < self.starts.size) & (self.starts[here] == codes)
        return np.where(found & (self.log2_widths[here] == 0), self.counts[here], 0)

    def bins_split_by(self, codes: NDArray[np.uint64]) -> Spans:
        """The wide bins with a code strictly inside, which must be refined to count below it."""
        owner = np.searchsorted(self.starts, codes, side="right") - 1
        held = (owner >= 0) & (self.starts[owner] < codes) & (self.ends[owner] > codes)
        return sorted(
            {(int(self.starts[i]), int(self.log2_widths[i])) for i in np.unique(owner[held])}
        )

    def within(self, spans: Spans) -> Histogram:
        """The bins inside ``spans``."""
        kept = np.zeros(self.starts.size, bool)
        for start, log in spans:
            kept |= (self.starts >= np.uint64(start)) & (
                self.starts <= np.uint64(start + (1 << log) - 1)
            )
        return Histogram.trusted(self.format, *self._columns(np.flatnonzero(kept)))

    def _positions(self, codes: NDArray[np.uint64]) -> NDArray[np.int64]:
        at = np.searchsorted(self.starts, codes)
        before = np.maximum(at - 1, 0)
        if self.starts.size and ((at > 0) & (self.ends[before] > codes)).any():
            raise ValueError("a code is inside a bin of many codes")
        return at

    def _position(self, code: int) -> int:
        i = int(np.searchsorted(self.starts, np.uint64(code)))
        if i and int(self.ends[i - 1]) > code:
            raise ValueError(f"code {code} is inside a bin of many codes")
        return i

    def select(self, k: int) -> Bin:
        """The bin that holds the k-th smallest magnitude, k from 1.

        Raises:
            ValueError: k is not in 1..numel.
        """
        if not 1 <= k <= self.numel:
            raise ValueError(f"rank {k} is not in 1..{self.numel}")
        i = int(np.searchsorted(self._totals, k)) - 1
        return Bin(int(self.starts[i]), int(self.log2_widths[i]), int(self._totals[i]))

    def refined(self, fine: Histogram) -> Histogram:
        """This histogram with the bins that ``fine`` subdivides replaced by those of ``fine``.

        Raises:
            ValueError: the formats differ, a bin of ``fine`` is outside, or the counts differ.
        """
        if fine.format != self.format:
            raise ValueError("cannot refine with another format")
        if not fine.starts.size:
            return self
        owner = np.searchsorted(self.starts, fine.starts, side="right") - 1
        if owner[0] < 0 or (fine.ends > self.ends[owner]).any():
            raise ValueError("a fine bin is in no bin of the histogram")
        gone = np.unique(owner)
        sums = np.add.reduceat(fine.counts, np.searchsorted(owner, gone))
        if (sums != self.counts[gone]).any():
            raise ValueError("fine counts do not add up to those of the bins they subdivide")
        kept = np.delete(np.arange(self.starts.size), gone)
        parts = [self._columns(kept), fine._columns(np.arange(fine.starts.size))]
        columns = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
        order = np.argsort(columns[0])
        return Histogram(self.format, *(c[order] for c in columns))

    def _columns(self, index: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        arrays = (self.starts, self.log2_widths, self.counts, self.given_energies)
        return tuple(a[index] for a in arrays)

    def octaves(self) -> Octaves:
        """Counts per binary exponent. A wide bin that starts at 0 counts as zeros."""
        zero = self.starts == 0
        inf = self.starts >= self.format.inf_code
        finite = ~(zero | inf)
        _, exponents = np.frexp(self.format.values(self.starts[finite].astype(self.format.uint)))
        unique, group = np.unique(exponents - 1, return_inverse=True)
        counts = np.zeros(unique.size, np.int64)
        np.add.at(counts, group, self.counts[finite])
        zeros, infs = int(self.counts[zero].sum()), int(self.counts[inf].sum())
        return Octaves(unique.astype(np.int64), counts, zeros, infs)

    def to_bytes(self) -> bytes:
        """A compact, checksummed record; :meth:`from_bytes` is its inverse, bit for bit."""
        columns = (self.starts, self.log2_widths, self.counts, self.given_energies)
        return records.pack(self.format.dtype, *columns)

    @classmethod
    def from_bytes(cls, data: bytes) -> Histogram:
        """Read :meth:`to_bytes`.

        Raises:
            ValueError: the bytes are not what :meth:`to_bytes` writes.
        """
        dtype, columns = records.unpack(data)
        return cls(code_format(dtype), *columns)

    @classmethod
    def from_own_bytes(cls, data: bytes) -> Histogram:
        """Read a record that this process wrote or checked before: no checks."""
        dtype, columns = records.columns_of(data)
        return cls.trusted(code_format(dtype), *columns)


_COLUMNS = ("starts", "log2_widths", "counts", "given_energies")
"""The fields that are arrays, in the order of a record's columns."""


def _squares(format: CodeFormat, codes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Squares of the finite values, 0 for Inf."""
    values = format.values(codes.astype(format.uint))
    with np.errstate(over="ignore"):
        return np.where(codes < format.inf_code, values * values, 0.0)


def _check(
    format: CodeFormat,
    starts: NDArray[np.uint64],
    logs: NDArray[np.uint8],
    counts: NDArray[np.int64],
    energies: NDArray[np.float64],
) -> None:
    if not starts.ndim == 1 or not starts.shape == logs.shape == counts.shape == energies.shape:
        raise ValueError("histogram arrays differ in shape")
    if not starts.size:
        return
    if logs.max() >= format.bits or starts.max() >= format.nan_code:
        raise ValueError("a bin is outside of the format")
    ends = starts + (np.uint64(1) << logs.astype(np.uint64))
    if (starts & (ends - starts - np.uint64(1))).any():
        raise ValueError("a bin does not start at a multiple of its width")
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("bins overlap or are not in order")
    if counts.min() < 1:
        raise ValueError("a bin is empty")
    if (np.isnan(energies) | (energies < 0)).any():
        raise ValueError("an energy is not a sum of squares")
