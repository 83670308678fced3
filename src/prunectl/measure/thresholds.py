"""Exact thresholds, and the effect of each on every tensor."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.magnitude.codes import CodeFormat
from prunectl.magnitude.histogram import Histogram, Spans
from prunectl.magnitude.select import Histograms, Selected, cut_for, resolve
from prunectl.measure.measured import Measured, refine, unresolved_bins
from prunectl.parallel.run import Run

NEAR_ZERO = (1e-8, 1e-5, 1e-3)
"""Absolute tolerances for near-zero counts; a fourth is 0.01 of the tensor's standard deviation."""

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Quantiles of |w| by lower nearest rank: the ceil(q*n)-th smallest magnitude."""

_FIXED_TOLERANCES = {f"{value:g}": value for value in NEAR_ZERO}


@dataclass(frozen=True, slots=True)
class ExactThreshold:
    """The threshold at which ``zeros`` weights of some tensors are zero."""

    zeros: int
    selected: Selected | None
    """The largest magnitude that is pruned; None where nothing is."""


@dataclass(frozen=True, slots=True)
class Share:
    """The effect of a threshold on one tensor.

    Attributes:
        code: in the tensor's own format; smaller magnitudes are pruned.
        quota: how many weights equal to ``code`` are pruned too, the first in row-major order.
        zeros: in the tensor afterwards.
        lost: sum of squares of the pruned weights.
    """

    code: int
    quota: int
    zeros: int
    lost: float


class Subset:
    """Some tensors of a store, in the given order, for :func:`resolve`."""

    def __init__(self, store: Histograms, names: Sequence[str]) -> None:
        self._store = store
        self._names = names

    @property
    def names(self) -> Iterable[str]:
        return self._names

    def get(self, name: str) -> Histogram:
        return self._store.get(name)


class _Unresolved:
    """The tensors whose own statistics still need finer bins."""

    def __init__(self, checkpoint: Checkpoint, measured: Measured) -> None:
        self._measured = measured
        self._names = [
            tensor.name
            for tensor in checkpoint.tensors
            if tensor.spec.dtype.bits > 16 and tensor.name in measured.facts
        ]

    def spans(self) -> dict[str, Spans]:
        """By tensor: bins that quantiles and near-zero counts fall into."""
        found = {}
        for name in self._names:
            histogram = self._measured.histograms.get(name)
            near = tolerances(self._measured, name).values()
            if spans := unresolved_bins(histogram, QUANTILES, near):
                found[name] = spans
        self._names = list(found)
        return found


def find_thresholds(
    checkpoint: Checkpoint,
    measured: Measured,
    names: Sequence[str],
    zeros: Sequence[int],
    run: Run,
    *,
    with_statistics: bool,
) -> list[ExactThreshold]:
    """Find exact thresholds over ``names``; refined histograms stay in ``measured``.

    Args:
        names: tensors compared with one another, in file order; none holds NaN.
        zeros: how many of their weights are to be zero, for each threshold.
        with_statistics: in the same pass, refine what quantiles and near-zero counts of all
            measured tensors need.
    """
    unresolved = _Unresolved(checkpoint, measured) if with_statistics else None

    def finer(requests: Mapping[str, Spans]) -> Iterator[tuple[str, Histogram]]:
        needs = unresolved.spans() if unresolved else {}
        for name in requests:
            needs[name] = sorted({*requests[name], *needs.get(name, ())})
        for name, part in refine(checkpoint, needs, measured, run):
            if name in requests:
                yield name, part.within(requests[name])

    places = [count for count in zeros if count > 0]
    found = iter(resolve(Subset(measured.histograms, names), places, finer))
    thresholds = [ExactThreshold(count, next(found) if count > 0 else None) for count in zeros]
    while unresolved and (needs := unresolved.spans()):
        for _ in refine(checkpoint, needs, measured, run):
            pass
    return thresholds


def find_own_thresholds(
    checkpoint: Checkpoint,
    measured: Measured,
    zeros: Mapping[str, int],
    run: Run,
) -> dict[str, ExactThreshold]:
    """A threshold for each tensor alone (scope ``tensor``): its own k-th smallest magnitude."""
    places = {name: count for name, count in zeros.items() if count > 0}
    bins = {name: measured.histograms.get(name).select(count) for name, count in places.items()}
    while wide := {n: [(b.start, b.log2_width)] for n, b in bins.items() if b.log2_width}:
        for name, _ in refine(checkpoint, wide, measured, run):
            bins[name] = measured.histograms.get(name).select(places[name])
    thresholds = {}
    for name, count in zeros.items():
        selected = None
        if count > 0:
            histogram, code = measured.histograms.get(name), bins[name].start
            selected = Selected(
                histogram.format,
                code,
                histogram.format.value(code),
                bins[name].below,
                histogram.count_at(code),
            )
        thresholds[name] = ExactThreshold(count, selected)
    return thresholds


def tolerances(measured: Measured, name: str) -> dict[str, float]:
    """Near-zero tolerances of one tensor, by label."""
    return {**_FIXED_TOLERANCES, "0.01*std": 0.01 * measured.facts[name].std}


def shares(
    measured: Measured, names: Sequence[str], thresholds: Sequence[ExactThreshold]
) -> Iterator[tuple[str, list[Share]]]:
    """The effect of each threshold on each tensor, in order.

    Ties at a threshold are pruned in file order: each tensor takes what the ones before it left.
    One tensor is in memory at a time.
    """
    left = [t.zeros - t.selected.below if t.selected else 0 for t in thresholds]
    cuts_of = functools.cache(functools.partial(_cuts, thresholds))
    for name in names:
        histogram = measured.histograms.get(name)
        codes, with_ties, squares = cuts_of(histogram.format)
        below = histogram.counts_below(codes)
        energy = histogram.energies_below(codes)
        ties = histogram.counts_at(codes)
        present = measured.facts[name].zeros
        result = []
        for i, has_ties in enumerate(with_ties):
            quota = max(0, min(left[i], int(ties[i]))) if has_ties else 0
            left[i] -= quota
            zeros = max(int(below[i]) + quota, present)
            lost = float(energy[i]) + (quota * squares[i] if quota else 0.0)
            result.append(Share(int(codes[i]), quota, zeros, lost))
        yield name, result


def _cuts(
    thresholds: Sequence[ExactThreshold], format: CodeFormat
) -> tuple[NDArray[np.uint64], list[bool], list[float]]:
    """For each threshold in one format: its code, whether values equal to it are ties, its
    square.

    Inf adds nothing to squared norms.
    """
    cuts = [cut_for(t.selected, format) if t.selected else (0, False) for t in thresholds]
    values = [format.value(code) for code, _ in cuts]
    squares = [value * value if math.isfinite(value) else 0.0 for value in values]
    return np.array([code for code, _ in cuts], np.uint64), [ties for _, ties in cuts], squares
