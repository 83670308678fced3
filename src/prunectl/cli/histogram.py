"""The picture of a model's magnitudes: one bar for each binary exponent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunectl import numbers

BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"
_TAIL = 0.005
"""Exponents at the low end that together hold less than this share make one row."""
_MAX_ROWS = 20


@dataclass(frozen=True, slots=True)
class HistogramRow:
    """Magnitudes of one exponent or several.

    Attributes:
        low, high: exponents; the row holds 2^low <= |w| < 2^(high + 1). None for the zeros.
        count: weights.
        cumulative: share of all weights that are in this row or before it.
        marks: sparsities whose threshold lies in this row.
    """

    low: int | None
    high: int | None
    count: int
    cumulative: float
    marks: tuple[float, ...]


def histogram_rows(
    octaves: Mapping[int, int], zeros: int, thresholds: Sequence[tuple[float, float]]
) -> list[HistogramRow]:
    """Rows from the smallest magnitude to the largest; rare small ones share a row.

    Args:
        octaves: exponent e -> weights with 2^e <= |w| < 2^(e+1).
        zeros: weights that are zero.
        thresholds: (sparsity, threshold) to be marked.
    """
    total = zeros + sum(octaves.values())
    if not total:
        return []
    rows = []
    if zeros:
        marks = tuple(s for s, threshold in thresholds if threshold == 0)
        rows.append(HistogramRow(None, None, zeros, zeros / total, marks))
    below = zeros
    for low, high in _spans(octaves, total):
        count = sum(octaves.get(e, 0) for e in range(low, high + 1))
        below += count
        marks = tuple(s for s, threshold in thresholds if low <= _exponent(threshold) <= high)
        rows.append(HistogramRow(low, high, count, below / total, marks))
    return rows


def histogram_cells(rows: Sequence[HistogramRow]) -> list[tuple[str, str, str, str, str]]:
    """Each row as text: magnitudes, bar, share, cumulative share, marks."""
    top = max((row.count for row in rows), default=1)
    total = sum(row.count for row in rows)
    lowest = next((row for row in rows if row.low is not None), None)
    return [
        (
            _magnitudes(row, is_open=row is lowest and row.low != row.high),
            _bar(row.count / top),
            numbers.share(row.count / total) if row.count else "",
            numbers.share(row.cumulative),
            _marks(row.marks),
        )
        for row in rows
    ]


def _spans(octaves: Mapping[int, int], total: int) -> list[tuple[int, int]]:
    """Ranges of exponents, one row each: a wide one for the low tail, single ones above it."""
    present = sorted(e for e, count in octaves.items() if count)
    if not present:
        return []
    seen = 0
    for exponent in present:
        seen += octaves[exponent]
        if seen >= _TAIL * total or exponent == present[-1]:
            break
    first = max(exponent, present[-1] - _MAX_ROWS + 1)
    tail = [(present[0], first - 1)] if present[0] < first else []
    return tail + [(e, e) for e in range(first, present[-1] + 1)]


def _exponent(value: float) -> float:
    return math.frexp(value)[1] - 1 if value > 0 and math.isfinite(value) else -math.inf


def _magnitudes(row: HistogramRow, *, is_open: bool) -> str:
    if row.low is None or row.high is None:
        return "zero"
    if is_open:
        return f"below 2^{row.high + 1}"
    return f"2^{row.low:<4} {2.0**row.low:.3g}"


def _bar(part: float) -> str:
    """A bar of ``BAR_WIDTH`` characters at 1.0, in steps of an eighth; never empty above zero."""
    eighths = math.floor(part * BAR_WIDTH * 8 + 0.5)
    if part > 0:
        eighths = max(eighths, 1)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _marks(marks: Sequence[float]) -> str:
    if len(marks) > 2:
        return f"{marks[0]:.0%} .. {marks[-1]:.0%}"
    return ", ".join(f"{mark:.0%}" for mark in marks)
