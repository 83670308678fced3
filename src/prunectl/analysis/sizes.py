"""Estimated bytes of tensors, stored densely and in each layout."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence

from prunectl.analysis.result import SPARSITIES, SourceFacts, TensorStats
from prunectl.layouts.layout import Layout, Statistics, entropy
from prunectl.layouts.table import LAYOUTS
from prunectl.pattern import NM
from prunectl.tensorspec import BY_LABEL

PREDICTED = (0.3, 0.4, 0.5)
"""Sparsities with predicted sizes."""


_Change = float | NM | None
"""How the prunable tensors are pruned: to a sparsity, to a pattern, or not at all."""


def predicted_bytes(
    source: SourceFacts, tensors: Sequence[TensorStats], patterns: Iterable[NM]
) -> dict[str, int]:
    """Estimated bytes of all tensors in each layout, by LAYOUT or LAYOUT@CHANGE.

    ``dense`` and ``packed`` with nothing pruned; layouts for unstructured zeros at each sparsity
    (``bitmask@0.4``), and layouts that use N:M after each pattern (``nm@2:4``).
    """
    sparsities = PREDICTED if any(tensor.prunable for tensor in tensors) else ()
    result = {}
    for change in (None, *sparsities, *patterns):
        known = [(tensor, _after(tensor, change)) for tensor in tensors if _is_known(tensor)]
        for name, layout in _of_use(change).items():
            saved = sum(
                max(0, facts.dense_bytes - layout.predicted(facts))
                for tensor, facts in known
                # the zeros that a tensor has unpruned do not make it take the layout
                if tensor.prunable or layout.unpruned
            )
            result[name if change is None else f"{name}@{change}"] = source.tensor_bytes - saved
    return result


def bytes_in_groups(sizes: Mapping[str, int], pattern: NM) -> int:
    """The bytes in ``predicted_bytes`` after a pattern, in the smallest layout of exact size."""
    names = [name for name, layout in _of_use(pattern).items() if layout.is_exact]
    return min(sizes[f"{name}@{pattern}"] for name in names)


def _of_use(change: _Change) -> dict[str, Layout]:
    """The layouts that benefit from a change."""

    def gains(layout: Layout) -> bool:
        if change is None:
            return bool(layout.unpruned)
        return layout.takes_groups if isinstance(change, NM) else layout.takes_unstructured

    return {name: layout for name, layout in LAYOUTS.items() if gains(layout)}


def _is_known(tensor: TensorStats) -> bool:
    return tensor.measured and tensor.numel > 0 and tensor.dtype in BY_LABEL


def _after(tensor: TensorStats, change: _Change) -> Statistics:
    """The predicted statistics of a tensor after a change."""
    counts = [float(count) for _, count in sorted(tensor.octaves.items())]
    kept, pattern = float(tensor.numel - tensor.zeros), None
    if tensor.prunable and isinstance(change, NM):
        fit = tensor.patterns.get(str(change))
        if fit is not None and not fit.reason:
            counts, pattern = in_groups(counts, tensor.zeros, change), change
            kept = sum(counts)
    elif tensor.prunable and change is not None:
        row = SPARSITIES.index(change)
        kept = tensor.numel - round(tensor.sparsity[row] * tensor.numel)
        counts = largest(counts, kept)
    return Statistics(BY_LABEL[tensor.dtype], tensor.numel, kept, entropy(counts), pattern)


def stored_as(id_: str) -> str:
    """Describe a key of ``predicted_bytes``: ``dense``, ``packed``, ``bitmask@0.4``, ``nm@2:4``.

    An unknown key is returned unchanged.
    """
    name, at, detail = id_.partition("@")
    layout, words = LAYOUTS.get(name), ""
    if layout is not None and not at:
        words = layout.unpruned
    elif layout is not None:
        with contextlib.suppress(ValueError):
            after = detail if ":" in detail else f"{float(detail):.0%} unstructured"
            words = layout.pruned.format(after)
    return words or id_


def largest(counts: Sequence[float], kept: float) -> list[float]:
    """Cut counts by magnitude, smallest first, to the largest ``kept`` weights."""
    left = []
    for count in reversed(counts):
        stays = min(count, max(0.0, kept))
        left.append(stays)
        kept -= stays
    return left[::-1]


def in_groups(counts: Sequence[float], zeros: int, pattern: NM) -> list[float]:
    """Expected counts by magnitude, smallest first, after N:M, if weights are in random order.

    A weight of quantile u stays if fewer than N of the other M - 1 are larger:
    sum over j < N of binom(M-1, j) (1-u)^j u^(M-1-j).
    """
    total = sum(counts) + zeros
    left, below = [], float(zeros)
    for count in counts:
        points = [(below + count * part / 8) / total for part in (1, 3, 5, 7)] if total else []
        left.append(count * sum(_stays(u, pattern) for u in points) / 4 if points else 0.0)
        below += count
    return left


def _stays(u: float, pattern: NM) -> float:
    others = pattern.m - 1
    return sum(math.comb(others, j) * (1 - u) ** j * u ** (others - j) for j in range(pattern.n))
