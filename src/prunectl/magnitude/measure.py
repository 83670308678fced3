"""Statistics of one streamed pass over a tensor's codes: counts, sums, histogram, N:M losses.

Blocks come in file order; memory does not grow with the tensor. For 8- and 16-bit types everything
follows from exact counts, however the tensor is split. For 32- and 64-bit types the histogram is
coarse (the top 16 magnitude bits) and float sums depend on where blocks begin: use the same block
size to get the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunectl.magnitude.codes import CodeFormat, Codes, code_format
from prunectl.magnitude.histogram import Histogram
from prunectl.magnitude.kernels import counting, grouping
from prunectl.pattern import NM
from prunectl.tensorspec import DType

if TYPE_CHECKING:
    import torch

_FLUSH = 2**32 - 1
"""Elements after which the u32 tables might overflow."""

_FEW = 1 << 13
"""Up to this many elements are sorted, which is faster than tables of all codes."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """Exact facts about one tensor: small, kept for all tensors.

    Attributes:
        numel: elements, NaN included.
        zeros: of both signs.
        nans, infs: of any kind, both signs.
        minimum, maximum: of the values that are not NaN, Inf included; NaN if there are none.
        sum, norm_squared: over the finite values, float64.
    """

    numel: int
    zeros: int
    nans: int
    infs: int
    minimum: float
    maximum: float
    sum: float
    norm_squared: float

    @property
    def finite(self) -> int:
        """Elements that are neither NaN nor Inf."""
        return self.numel - self.nans - self.infs

    @property
    def mean(self) -> float:
        """Mean of the finite values; 0 if there are none."""
        return self.sum / self.finite if self.finite else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation of the finite values; 0 if there are none."""
        if not self.finite:
            return 0.0
        return math.sqrt(max(0.0, self.norm_squared / self.finite - self.mean * self.mean))


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of a pass over one tensor.

    Attributes:
        facts: counts and sums.
        histogram: of the magnitudes that are not NaN.
    """

    facts: TensorFacts
    histogram: Histogram


class TensorMeasure:
    """Measures one tensor: ``update`` with each block of codes, then ``finish``."""

    def __init__(self, dtype: DType) -> None:
        format = code_format(dtype)
        self._way: _Narrow | _Wide = _Narrow(format) if format.bits <= 16 else _Wide(format)

    def update(self, codes: Codes | torch.Tensor) -> None:
        """Add the next block, u8/u16/u32/u64[n], contiguous.

        For types of 8 and 16 bits it may also be a tensor of signed integers, on any device.
        """
        if isinstance(codes, np.ndarray):
            self._way.update(codes)
        elif isinstance(self._way, _Narrow):
            self._way.add(codes)
        else:
            raise TypeError("sums of floats come from the CPU's kernels")

    def finish(self) -> Measurement:
        """The measurement of all blocks so far."""
        return self._way.finish()


class _Narrow:
    """8 and 16 bits: everything follows from the counts of all signed codes.

    A tensor of one small block is sorted instead: tables would cost far more than its codes.
    """

    def __init__(self, format: CodeFormat) -> None:
        self._format = format
        self._first_block: Codes | None = None
        self._tables: NDArray[np.uint32] | None = None
        self._counts = np.zeros(0, np.int64)
        self._pending = 0

    def update(self, codes: Codes) -> None:
        if self._tables is None and self._first_block is None and codes.size <= _FEW:
            self._first_block = codes.copy()
            return
        tables = self._start()
        if self._pending + codes.size > _FLUSH:
            self._flush(tables)
        counting.tally(codes, tables)
        self._pending += codes.size

    def add(self, codes: torch.Tensor) -> None:
        """Add a block that is on a device."""
        from prunectl.magnitude.on_device import tally

        self._start()
        self._counts += tally(codes)

    def _start(self) -> NDArray[np.uint32]:
        """The tables, which are used for every block from now on."""
        if self._tables is None:
            self._tables = np.zeros((2, 1 << self._format.bits), np.uint32)
            self._counts = np.zeros(1 << self._format.bits, np.int64)
            if self._first_block is not None:
                self.update(self._first_block)
        return self._tables

    def _flush(self, tables: NDArray[np.uint32]) -> None:
        for table in tables:
            self._counts += table
        tables[:] = 0
        self._pending = 0

    def _present(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The signed codes that occur, in order, and their counts."""
        if self._tables is None:
            block = (
                self._first_block
                if self._first_block is not None
                else np.zeros(0, self._format.uint)
            )
            codes, counts = np.unique(block, return_counts=True)
            return codes.astype(np.int64), counts.astype(np.int64)
        self._flush(self._tables)
        present = np.flatnonzero(self._counts).astype(np.int64)
        return present, self._counts[present]

    def finish(self) -> Measurement:
        format = self._format
        codes, counts = self._present()
        number = (codes & format.mask) < format.nan_code
        nans = int(counts[~number].sum())
        codes, counts = codes[number], counts[number]
        magnitudes, values = codes & format.mask, format.values(codes.astype(format.uint))
        finite = magnitudes < format.inf_code
        few, real = counts[finite], values[finite]
        facts = TensorFacts(
            numel=int(counts.sum()) + nans,
            zeros=int(counts[magnitudes == 0].sum()),
            nans=nans,
            infs=int(counts[~finite].sum()),
            minimum=float(values.min()) + 0.0 if values.size else math.nan,
            maximum=float(values.max()) + 0.0 if values.size else math.nan,
            sum=math.fsum(few * real),
            norm_squared=math.fsum(few * (real * real)),
        )
        return Measurement(facts, _exact_histogram(format, magnitudes, counts))


def _exact_histogram(
    format: CodeFormat, magnitudes: NDArray[np.int64], counts: NDArray[np.int64]
) -> Histogram:
    """Sum the counts of equal magnitudes, which come as two sorted runs: merged in linear time."""
    order = np.argsort(magnitudes, kind="stable")
    magnitudes, counts = magnitudes[order], counts[order]
    first = np.flatnonzero(np.diff(magnitudes, prepend=-1))
    both = np.add.reduceat(counts, first) if first.size else counts
    n = first.size
    starts = magnitudes[first].astype(np.uint64)
    return Histogram.trusted(format, starts, np.zeros(n, np.uint8), both, np.zeros(n))


class _Wide:
    """32 and 64 bits: coarse bins of 2**15 or 2**47 codes, with energies.

    Zeros and Inf are counted separately; a coarse bin that holds nothing else becomes exact.
    """

    def __init__(self, format: CodeFormat) -> None:
        self._format = format
        self._shift = format.bits - 17
        self._table = np.zeros((1 << 16, 2))
        self._lanes = np.zeros(counting.LANES)
        self._zeros = self._nans = self._infs = self._numel = 0
        self._low, self._high = 2**format.bits, -1

    def update(self, codes: Codes) -> None:
        f, kind = self._format, self._format.uint.type
        reals = codes.view(f"f{f.bits // 8}")
        limits = (kind(f.mask), kind(f.inf_code), kind(f.nan_code), kind(self._shift))
        zeros, nans, infs = counting.coarse(codes, reals, *limits, self._table, self._lanes)
        self._zeros += zeros
        self._nans += nans
        self._infs += infs
        self._numel += codes.size
        numbers = codes[(codes & kind(f.mask)) < kind(f.nan_code)] if nans else codes
        if numbers.size:
            low, high = counting.extremes(numbers, kind(f.mask))
            self._low, self._high = min(self._low, int(low)), max(self._high, int(high))

    def finish(self) -> Measurement:
        none = self._high < 0
        facts = TensorFacts(
            numel=self._numel,
            zeros=self._zeros,
            nans=self._nans,
            infs=self._infs,
            minimum=math.nan if none else self._of_key(self._low),
            maximum=math.nan if none else self._of_key(self._high),
            sum=_total(self._lanes),
            norm_squared=_total(self._table[:, 1]),
        )
        return Measurement(facts, self._histogram())

    def _of_key(self, key: int) -> float:
        f = self._format
        sign = f.mask + 1
        return f.value(key ^ sign if key & sign else key ^ (sign | f.mask)) + 0.0

    def _histogram(self) -> Histogram:
        f = self._format
        index = np.flatnonzero(self._table[:, 0])
        counts = self._table[index, 0].astype(np.int64)
        energies = self._table[index, 1]
        starts = index.astype(np.uint64) << np.uint64(self._shift)
        logs = np.full(index.size, self._shift, np.uint8)
        if index.size and index[0] == 0 and counts[0] == self._zeros:
            logs[0] = 0
        if self._infs:
            starts = np.append(starts, np.uint64(f.inf_code))
            logs, energies = np.append(logs, np.uint8(0)), np.append(energies, 0.0)
            counts = np.append(counts, self._infs)
        return Histogram(f, starts, logs, counts, energies)


def _total(terms: NDArray[np.float64]) -> float:
    """The sum, added in order (numpy's order depends on the machine); fp64 may overflow to Inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.cumsum(terms)[-1])


@dataclass(frozen=True)
class PatternStats:
    """The effect of an N:M pattern on a tensor.

    Attributes:
        lost_energy: sum of squares of the finite weights that it drops, float64.
        zeros_after: zeros that the tensor would have, including those it already has.
        groups: groups of M.
    """

    lost_energy: float
    zeros_after: int
    groups: int


class PatternMeasure:
    """Measures the loss by N:M along the middle axis, without changing anything.

    Ties and Inf are treated as in :func:`masks.nm`; the caller must rule out NaN.
    """

    def __init__(self, dtype: DType, pattern: NM) -> None:
        self._format, self._pattern = code_format(dtype), pattern
        wide = self._format.bits == 64
        self._bits: Codes = np.zeros(grouping.TILE, np.uint64 if wide else np.uint32)
        self._reals: NDArray[np.floating] = self._bits.view(np.float64 if wide else np.float32)
        self._lanes = np.zeros(grouping.TILE)
        self._zeros = self._groups = 0

    def update(self, codes: Codes) -> None:
        """Add a block [outer, axis, inner].

        Raises:
            ValueError: the axis is not a multiple of M.
        """
        f, n, m = self._format, self._pattern.n, self._pattern.m
        if codes.shape[1] % m:
            raise ValueError(f"an axis of {codes.shape[1]} is not a multiple of {m}")
        kind, word = f.uint.type, self._bits.dtype.type
        shift, scale = _AS_FLOAT[f.dtype.name]
        limits = (kind(f.mask), kind(n), kind(f.inf_code), word(shift), scale)
        scratch = (self._bits, self._reals, self._lanes)
        if codes.shape[2] == 1 and codes.flags.c_contiguous:
            self._zeros += grouping.loss_flat(m)(codes.reshape(-1), *limits, *scratch)
        else:
            self._zeros += grouping.loss_strided(m)(codes, *limits, *scratch)
        self._groups += codes.size // m

    def finish(self) -> PatternStats:
        """The statistics of all blocks so far."""
        return PatternStats(_total(self._lanes), self._zeros, self._groups)


_AS_FLOAT: dict[str, tuple[int, float]] = {
    "F64": (0, 1.0),
    "F32": (0, 1.0),
    "BF16": (16, 1.0),
    "F16": (13, 2.0**112),
    "F8_E5M2": (21, 2.0**112),
    "F8_E4M3": (20, 2.0**120),
}
"""Shift that aligns exponent and mantissa with fp32's or fp64's, and the factor for the bias."""
