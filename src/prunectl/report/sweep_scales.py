"""The ranges that a sweep is shown in: all of it, and near the dense score, where curves turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunectl.report.sweep_data import known

Rows = Sequence[dict[str, Any]]

LOG, LINEAR, NEAR = "Log", "Linear", "Near dense"
WITHIN, WHOLE = "Near the tolerance", "All"

_UNEVEN, _STEEP = 1.5, 3.0
"""Scores that differ by more than these factors can be shown on a log scale; are, at first."""
_ROOM_BETTER, _ROOM_WORSE = 2.5, 8.0
"""Tolerances that are shown on the better and the worse side of the dense score."""


def score_scales(points: Rows, dense: Rows, *, higher_is_better: bool) -> dict[str, dict[str, Any]]:
    """Scales for scores by name, as Vega-Lite writes them; the one to show first is first.

    Perplexity rises without end: a log scale shows all of it. Empty where there are no scores.
    """
    values = known(points, "score", "low", "high") + known(dense, "dense", "bound")
    if not values:
        return {}
    own = known(points, "score")
    scales: dict[str, dict[str, Any]] = {LINEAR: {"zero": False, "nice": True}}
    ratio = max(own) / min(own) if own and min(values) > 0 else 1.0
    if ratio > _UNEVEN:
        log = {LOG: {"type": "log", "nice": False, "domain": _wider(values)}}
        scales = log | scales if ratio > _STEEP else scales | log
    if near := _near(dense, values, higher_is_better=higher_is_better):
        scales[NEAR] = {"domain": near, "nice": False, "zero": False}
    return scales


def loss_ranges(points: Rows, epsilon: float) -> dict[str, list[float]]:
    """Ranges for losses by name; empty where there are none."""
    values = known(points, "change")
    if not values:
        return {}
    if epsilon <= 0:
        return {WHOLE: [min([*values, -0.01]), max([*values, 0.01])]}
    low = max(min([*known(points, "change", "change_low"), -epsilon]), -4 * epsilon)
    high = min(max([*values, 2 * epsilon]), _ROOM_WORSE * epsilon)
    whole = [min([*values, -epsilon]), max([*values, 2 * epsilon])]
    ranges = {WITHIN: [low * 1.1, high]}
    if whole[1] > high or whole[0] < low:
        ranges[WHOLE] = whole
    return ranges


def _wider(values: list[float]) -> list[float]:
    """The range of positive values with some room, as a log scale shows it."""
    room = (max(values) / min(values)) ** 0.04
    return [min(values) / room, max(values) * room]


def _near(dense: Rows, values: list[float], *, higher_is_better: bool) -> list[float] | None:
    """A range of some tolerances around the dense scores; None where all is in it anyway."""
    ends = []
    for row in dense:
        if row["bound"] is None:
            continue
        step = abs(row["bound"] - row["dense"])
        worse = -step if higher_is_better else step
        ends += [row["dense"] + _ROOM_WORSE * worse, row["dense"] - _ROOM_BETTER * worse]
    if not ends or (min(ends) <= min(values) and max(values) <= max(ends)):
        return None
    return [min(ends), max(ends)] if max(ends) > min(ends) else None
