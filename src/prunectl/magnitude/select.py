"""The exact k-th smallest magnitude over many tensors of any dtypes, from their histograms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prunectl.magnitude.codes import CodeFormat, Codes, common_format, widen
from prunectl.magnitude.histogram import Histogram, Spans


class Histograms(Protocol):
    """Per-tensor histograms, read one at a time; for example a :class:`HistogramStore`."""

    @property
    def names(self) -> Iterable[str]: ...

    def get(self, name: str) -> Histogram: ...


Refine = Callable[[dict[str, Spans]], Iterable[tuple[str, Histogram]]]
"""Subdivides bins of tensors; yields each tensor's fine histogram, one after another."""


@dataclass(frozen=True)
class Selected:
    """The magnitude of one rank.

    Attributes:
        format: of ``code``: the common format of all tensors.
        code: magnitude code.
        value: its value.
        below: magnitudes that are smaller.
        at: magnitudes that are equal.
    """

    format: CodeFormat
    code: int
    value: float
    below: int
    at: int


class _Pool:
    """All bins of one format with their counts over all tensors: small for any model."""

    def __init__(self, format: CodeFormat) -> None:
        self.format = format
        self.starts = np.zeros(0, np.uint64)
        self.logs = np.zeros(0, np.uint8)
        self.counts = np.zeros(0, np.int64)
        self._waiting: list[tuple[Codes, ...]] = []
        self._waiting_bins = 0

    def add(self, histogram: Histogram) -> None:
        self._waiting.append((histogram.starts, histogram.log2_widths, histogram.counts))
        self._waiting_bins += histogram.starts.size
        if self._waiting_bins > 2**18:
            self.settle()

    def settle(self) -> None:
        """Sum the counts of equal bins."""
        parts = [(self.starts, self.logs, self.counts), *self._waiting]
        starts, logs, counts = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = np.lexsort((logs, starts))
        starts, logs, counts = starts[order], logs[order], counts[order]
        new = np.ones(starts.size, bool)
        new[1:] = (starts[1:] != starts[:-1]) | (logs[1:] != logs[:-1])
        sums = np.add.reduceat(counts, np.flatnonzero(new)) if starts.size else counts
        self.starts, self.logs, self.counts = starts[new], logs[new], sums
        self._waiting, self._waiting_bins = [], 0

    def replace(self, spans: Spans, fine: _Pool) -> None:
        """Replace ``spans`` by ``fine``, which subdivides them in all tensors."""
        gone = np.zeros(self.starts.size, bool)
        for start, log in spans:
            gone |= (self.starts == np.uint64(start)) & (self.logs == log)
        fine.settle()
        if self.counts[gone].sum() != fine.counts.sum():
            raise ValueError("refined bins do not hold what the coarse ones did")
        kept = ~gone
        self.starts, self.logs, self.counts = self.starts[kept], self.logs[kept], self.counts[kept]
        self._waiting = [(fine.starts, fine.logs, fine.counts)]
        self.settle()

    def interval(self, target: CodeFormat) -> tuple[Codes, Codes]:
        """First and last code of each bin, as codes of ``target``."""
        last = self.starts + ((np.uint64(1) << self.logs.astype(np.uint64)) - np.uint64(1))
        last = np.minimum(last, np.uint64(self.format.nan_code - 1))
        return (
            widen(self.starts, self.format, target).astype(np.uint64),
            widen(last, self.format, target).astype(np.uint64),
        )


def resolve(histograms: Histograms, ranks: Sequence[int], refine: Refine) -> list[Selected]:
    """The k-th smallest magnitude of all tensors together, for each k of ``ranks`` (from 1).

    Each round brackets every rank between the k-th smallest first code and the k-th smallest last
    code of all bins; wide bins that reach into a bracket are refined, until each is one code. That
    takes no round for 8- and 16-bit tensors, at most one if all are fp32 and three if all are fp64.

    ``histograms`` is read one tensor at a time; memory holds the bins of all tensors summed up, and
    one fine histogram.

    Raises:
        ValueError: a rank is out of range, or the counts from ``refine`` differ from those of the
            coarse bins (the weights changed in between).
    """
    pools: dict[CodeFormat, _Pool] = {}
    for name in histograms.names:
        histogram = histograms.get(name)
        pools.setdefault(histogram.format, _Pool(histogram.format)).add(histogram)
    for pool in pools.values():
        pool.settle()
    total = sum(int(p.counts.sum()) for p in pools.values())
    if any(not 1 <= k <= total for k in ranks):
        raise ValueError(f"ranks {list(ranks)} are not all in 1..{total}")
    if not ranks:
        return []
    target = common_format(set(pools))
    while True:
        brackets = _brackets(list(pools.values()), ranks, target)
        wanted = {f: spans for f, p in pools.items() if (spans := _wide(p, brackets, target))}
        if not wanted:
            return _select(list(pools.values()), brackets, target)
        _refine_round(histograms, pools, wanted, refine)


def _brackets(
    pools: list[_Pool], ranks: Sequence[int], target: CodeFormat
) -> list[tuple[int, int]]:
    """For each rank, the codes between which its magnitude lies."""
    ends = [p.interval(target) for p in pools]
    counts = np.concatenate([p.counts for p in pools])
    limits: list[NDArray[np.uint64]] = []
    for which in (0, 1):
        codes = np.concatenate([e[which] for e in ends])
        order = np.argsort(codes, kind="stable")
        limits.append(codes[order][np.searchsorted(np.cumsum(counts[order]), np.array(ranks))])
    return [(int(low), int(high)) for low, high in zip(*limits, strict=True)]


def _wide(pool: _Pool, brackets: list[tuple[int, int]], target: CodeFormat) -> Spans:
    """Bins of more than one code that reach into a bracket."""
    first, last = pool.interval(target)
    hit = np.zeros(first.size, bool)
    for low, high in brackets:
        hit |= (first <= np.uint64(high)) & (last >= np.uint64(low))
    hit &= pool.logs > 0
    return list(zip(pool.starts[hit].tolist(), pool.logs[hit].tolist(), strict=True))


def _refine_round(
    histograms: Histograms,
    pools: dict[CodeFormat, _Pool],
    wanted: dict[CodeFormat, Spans],
    refine: Refine,
) -> None:
    requests: dict[str, Spans] = {}
    for name in histograms.names:
        histogram = histograms.get(name)
        if spans := _owned(histogram, wanted.get(histogram.format, [])):
            requests[name] = spans
    fine: dict[CodeFormat, _Pool] = {f: _Pool(f) for f in wanted}
    for _, part in refine(requests):
        if part.format not in fine:
            raise ValueError("refine returned a tensor that was not asked for")
        fine[part.format].add(part)
    for format, spans in wanted.items():
        pools[format].replace(spans, fine[format])


def _owned(histogram: Histogram, spans: Spans) -> Spans:
    """The ``spans`` that lie in a bin of ``histogram``, without those nested in other spans.

    Spans nest if some tensors were refined before and others were not.
    """
    if not spans or not histogram.starts.size:
        return []
    starts = np.array([s for s, _ in spans], np.uint64)
    ends = starts + np.array([1 << log for _, log in spans], np.uint64)
    at = np.searchsorted(histogram.starts, starts, side="right") - 1
    inside = (at >= 0) & (ends <= histogram.ends[at])
    owned = [span for span, yes in zip(spans, inside, strict=True) if yes]
    outermost: Spans = []
    end = 0
    for start, log in sorted(owned, key=lambda span: (span[0], -span[1])):
        if start >= end:
            outermost.append((start, log))
            end = start + (1 << log)
    return outermost


def _select(
    pools: list[_Pool], brackets: list[tuple[int, int]], target: CodeFormat
) -> list[Selected]:
    codes = np.concatenate([p.interval(target)[0] for p in pools])
    counts = np.concatenate([p.counts for p in pools])
    order = np.argsort(codes, kind="stable")
    codes, totals = codes[order], np.concatenate(([0], np.cumsum(counts[order])))
    found = []
    for code, _ in brackets:
        below = int(totals[np.searchsorted(codes, np.uint64(code), side="left")])
        upto = int(totals[np.searchsorted(codes, np.uint64(code), side="right")])
        found.append(Selected(target, code, target.value(code), below, upto - below))
    return found


def cut_for(selected: Selected, format: CodeFormat) -> tuple[int, bool]:
    """The place of a threshold in a tensor's own format: (code, has_ties).

    Magnitude codes < code are below the threshold. If has_ties, code == threshold; otherwise no
    value of this format equals the threshold.
    """
    code = format.floor_code(selected.value)
    exact = format.value(code) == selected.value
    return (code, True) if exact else (code + 1, False)


def quantile_rank(q: float, numel: int) -> int:
    """k = max(1, ceil(q * n)), where q is the decimal that it prints as (0.1 is a tenth)."""
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile is in 0..1, not {q}")
    top, bottom = _ratio(float(q))
    return max(1, -(-top * numel // bottom))


@functools.lru_cache(64)
def _ratio(q: float) -> tuple[int, int]:
    """The decimal that ``q`` prints as, as a ratio."""
    return Fraction(repr(q)).as_integer_ratio()


def quantile_bins(histogram: Histogram, quantiles: Sequence[float]) -> Spans:
    """The bins that must be refined before :func:`quantiles` is exact; none if it already is."""
    bins = [histogram.select(quantile_rank(q, histogram.numel)) for q in quantiles]
    return sorted({(b.start, b.log2_width) for b in bins if b.log2_width})


def quantiles(histogram: Histogram, quantiles: Sequence[float]) -> list[float]:
    """Exact quantiles of the magnitudes by nearest rank: the k-th smallest, k = max(1, ceil(q*n)).

    Raises:
        ValueError: an empty histogram, a quantile outside 0..1, or one in a wide bin.
    """
    bins = [histogram.select(quantile_rank(q, histogram.numel)) for q in quantiles]
    if any(b.log2_width for b in bins):
        raise ValueError("a quantile is in a bin of many codes; refine it first")
    codes = np.array([b.start for b in bins], histogram.format.uint)
    return [float(value) for value in histogram.format.values(codes)]
