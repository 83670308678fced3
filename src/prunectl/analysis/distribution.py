"""Distributions of magnitudes, and the zeros that one threshold gives in each matrix.

Everything is computed from the existing histograms: edges and thresholds are bounds of the bins of
every type, so counts are exact and no weights are read again.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prunectl.analysis.result import Cell, Cuts, Magnitudes, TensorStats, layer_label
from prunectl.magnitude.codes import CodeFormat
from prunectl.measure.measured import Measured
from prunectl.pattern import pruned_count

Counts = NDArray[np.int64]

BINS_PER_OCTAVE = 4
"""Bins of the histograms per octave."""
_WIDEST = 40
"""Most octaves of the histograms, counted from the lowest."""
_TAIL = 0.0005
"""Share of a role's weights that may lie below the lowest edge, in a single bin."""

_WANTED = tuple(step / 100 for step in range(1, 100))
_FINE, _COARSE = 128, 32
"""Thresholds tried in each octave; the coarse ones are bounds of the wide bins of fp64."""
_LOWEST, _HIGHEST = -126, 1022
"""Limits of the exponents of edges: fp32's smallest normal number; the largest finite double."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def kind_of(component: str) -> str:
    """A component with ``*`` for the numbers in its path: the same for all experts of a layer."""
    return _NUMBER.sub("*", component)


def magnitudes(measured: Measured, tensors: Sequence[TensorStats]) -> Magnitudes:
    """Histograms of |w| by role, by component and by layer; see :class:`Magnitudes`."""
    present = [t for t in tensors if t.name in measured.facts and t.numel]
    edges = _edges(present)
    groups: tuple[dict[str, Counts], ...] = ({}, {}, {})
    for tensor in present if edges else ():
        counts = _counts(measured, tensor.name, edges)
        labels = [tensor.role]
        if tensor.prunable:
            labels += [kind_of(tensor.component), layer_label(tensor)]
        for group, label in zip(groups, labels, strict=False):
            group[label] = group[label] + counts if label in group else counts
    roles, components, layers = (
        {label: tuple(counts.tolist()) for label, counts in group.items()} for group in groups
    )
    return Magnitudes(edges, roles, components, layers)


def cuts(measured: Measured, tensors: Sequence[TensorStats]) -> Cuts:
    """The zeros of magnitude pruning at thresholds about 1% of the weights apart.

    Makes two passes over the histograms of the prunable tensors: one finds the thresholds, one
    counts. See :class:`Cuts`.
    """
    prunable = [t for t in tensors if t.prunable and t.numel]
    if not prunable:
        return Cuts()
    chosen = _thresholds(measured, prunable)
    cells: dict[tuple[str, int | None, str], _CellCounts] = {}
    lost = np.zeros(len(chosen))
    for tensor in prunable:
        histogram = measured.histograms.get(tensor.name)
        codes = _codes(histogram.format, chosen)
        zeros = np.maximum(histogram.counts_below(codes), tensor.zeros)
        lost += histogram.energies_below(codes)
        key = tensor.stack, tensor.layer, kind_of(tensor.component)
        cells.setdefault(key, _CellCounts(len(chosen))).add(tensor, zeros)
    norm = sum(t.norm_squared for t in prunable)
    return Cuts(
        thresholds=chosen,
        zeros=tuple(np.sum([cell.zeros for cell in cells.values()], axis=0).tolist()),
        norm_kept=tuple(1 - part / norm if norm else 1.0 for part in lost.tolist()),
        cells=tuple(
            Cell(*key, cell.tensors, cell.weights, tuple(cell.zeros.tolist()))
            for key, cell in cells.items()
        ),
    )


@dataclass
class _CellCounts:
    size: int
    tensors: int = 0
    weights: int = 0
    zeros: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.zeros = np.zeros(self.size, np.int64)

    def add(self, tensor: TensorStats, zeros: Counts) -> None:
        self.tensors, self.weights = self.tensors + 1, self.weights + tensor.numel
        self.zeros += zeros


def _edges(tensors: Iterable[TensorStats]) -> tuple[float, ...]:
    """Bounds of the bins, from the lowest octave that is in no role's tail."""
    roles: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for tensor in tensors:
        roles[tensor.role].update(tensor.octaves)
    spread = [octaves for octaves in roles.values() if octaves]
    if not spread:
        return ()
    low = max(_LOWEST, min(_low_end(octaves) for octaves in spread))
    high = min(_HIGHEST, low + _WIDEST, max(max(octaves) for octaves in spread))
    return (*_ladder(range(low, high + 1), BINS_PER_OCTAVE), math.ldexp(1.0, high + 1))


def _low_end(octaves: Mapping[int, int]) -> int:
    """The first exponent above the tail."""
    total, seen = sum(octaves.values()), 0
    for exponent in sorted(octaves):
        seen += octaves[exponent]
        if seen > _TAIL * total:
            break
    return exponent


def _ladder(exponents: Iterable[int], steps: int) -> list[float]:
    return [math.ldexp(1 + i / steps, e) for e in exponents for i in range(steps)]


def _counts(measured: Measured, name: str, edges: tuple[float, ...]) -> Counts:
    """Counts of one tensor: nonzero weights below the first edge, between edges, above the last."""
    histogram = measured.histograms.get(name)
    below = histogram.counts_below(_codes(histogram.format, edges))
    return np.diff(below, prepend=measured.facts[name].zeros, append=histogram.numel)


@functools.lru_cache(32)
def _codes(format: CodeFormat, values: tuple[float, ...]) -> NDArray[np.uint64]:
    """For each value, the smallest magnitude code that is not below it."""
    codes = []
    for value in values:
        code = format.floor_code(value)
        codes.append(code + (format.value(code) != value))
    return np.array(codes, np.uint64)


def _thresholds(measured: Measured, tensors: Sequence[TensorStats]) -> tuple[float, ...]:
    """0, and the thresholds between bins that are nearest to 1%, 2% .. 99%."""
    octaves: Counter[int] = Counter()
    for tensor in tensors:
        octaves.update(tensor.octaves)
    usual = [e for e in sorted(octaves) if _LOWEST <= e <= _HIGHEST]
    steps = _COARSE if any(t.dtype == "fp64" for t in tensors) else _FINE
    values = tuple(_ladder([*usual, usual[-1] + 1] if usual else (), steps))
    weights = sum(t.numel for t in tensors)
    present = sum(t.zeros for t in tensors)
    total = np.zeros(len(values), np.int64)
    for tensor in tensors if values else ():
        histogram = measured.histograms.get(tensor.name)
        total += histogram.counts_below(_codes(histogram.format, values))
    found, last = [0.0], present
    for at in _nearest(total, [pruned_count(sparsity, weights) for sparsity in _WANTED]):
        if last < total[at] < weights:
            last = int(total[at])
            found.append(values[at])
    return tuple(found)


def _nearest(sorted_counts: Counts, wanted: Iterable[int]) -> Iterable[int]:
    """For each wanted count, the index of the nearest count; of equally near ones, the first."""
    for count in wanted if sorted_counts.size else ():
        yield int(np.abs(sorted_counts - count).argmin())
