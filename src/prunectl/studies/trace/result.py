"""What a trace found: series over the steps, their abrupt changes and trends, and findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl._version import __version__
from prunectl.measure.model_stats import ModelStats
from prunectl.to_json import to_json

LEAST = 6
"""Checkpoints below which a change is chance."""
_PENALTY = 5.0
"""Of a further stretch, in squared deviations and per log of the number of rates."""
_TIMES = 3.0
"""How many times faster than elsewhere an abrupt stretch is, at least."""
_SIZE = 0.1
"""The least change, over the larger of the two values."""
_NOISE = 6.0
"""The least change, in standard deviations of what values scatter by from one to the next."""
_NORMAL = 1.4826
"""Standard deviation of normal numbers over their median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Change:
    """A stretch in which something changes far faster than elsewhere.

    Attributes:
        start, end: steps. before, after: values there.
        times: its rate over the mean rate elsewhere, absolute; None where nothing moves elsewhere.
    """

    start: int
    end: int
    before: float
    after: float
    times: float | None


@dataclass(frozen=True, slots=True)
class Trend:
    """Kendall's tau of values and steps, -1 to 1, and its two-sided p-value."""

    tau: float
    p: float


def abrupt(steps: Sequence[int], values: Sequence[float]) -> Change | None:
    """The abrupt change of a course, if it has one.

    Args:
        steps: increasing. values: as many.
    """
    if len(values) < LEAST:
        return None
    at, heights = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    lengths = np.diff(at)
    rates = np.diff(heights) / lengths
    if not np.isfinite(rates).all() or not rates.any():
        return None
    pieces = _stretches(rates)
    # Between checkpoints that lie close together noise alone has high rates, and is no change.
    least = _NOISE * _noise(at, heights)
    moved = [one for one in pieces if _is_change(one, lengths, heights, least)]
    if len(pieces) < 2 or not moved:
        return None
    first, last = max(moved, key=lambda one: abs(_mean(rates, lengths, [one])))
    others = [one for one in pieces if one != (first, last)]
    rate, elsewhere = _mean(rates, lengths, [(first, last)]), _mean(rates, lengths, others, True)
    if abs(rate) < _TIMES * elsewhere:
        return None
    before, after = float(heights[first]), float(heights[last])
    return Change(
        int(steps[first]),
        int(steps[last]),
        before,
        after,
        abs(rate) / elsewhere if elsewhere else None,
    )


def trend(steps: Sequence[int], values: Sequence[float]) -> Trend | None:
    """Whether values rise or fall with the steps; None where all are the same, or one is none."""
    from scipy.stats import kendalltau

    if len(set(values)) < 2 or not np.isfinite(values).all():
        return None
    found = kendalltau(steps, values)
    return Trend(float(found.statistic), float(found.pvalue))


def _is_change(
    piece: tuple[int, int],
    lengths: NDArray[np.float64],
    heights: NDArray[np.float64],
    least: float,
) -> bool:
    """Whether a stretch is no more than half of the way, and changes more than a little."""
    first, last = piece
    before, after = heights[first], heights[last]
    size = max(least, _SIZE * max(abs(before), abs(after)))
    is_most = lengths[first:last].sum() > lengths.sum() / 2
    return bool(abs(after - before) >= size and not is_most)


def _noise(at: NDArray[np.float64], heights: NDArray[np.float64]) -> float:
    """Standard deviation of values around the lines between their neighbours, by its median."""
    part = (at[1:-1] - at[:-2]) / (at[2:] - at[:-2])
    off = heights[1:-1] - (1 - part) * heights[:-2] - part * heights[2:]
    return _NORMAL * float(np.median(np.abs(off) / np.sqrt(1 + part**2 + (1 - part) ** 2)))


def _stretches(rates: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Cut into stretches of one mean; (first, past the last) of each."""
    from ruptures import Pelt

    scale = float(np.abs(rates).max())
    spread = _NORMAL * float(np.median(np.abs(rates - np.median(rates)))) / scale
    # Where most rates are equal, any other one stands out.
    penalty = _PENALTY * max(spread, 1e-9) ** 2 * np.log(len(rates))
    found = Pelt(model="l2", min_size=1, jump=1).fit((rates / scale)[:, None]).predict(penalty)
    return list(pairwise([0, *found]))


def _mean(
    rates: NDArray[np.float64],
    lengths: NDArray[np.float64],
    pieces: Sequence[tuple[int, int]],
    absolute: bool = False,
) -> float:
    """The mean rate over stretches, each checkpoint's by the steps it took."""
    chosen = np.concatenate([np.arange(*piece) for piece in pieces])
    values = np.abs(rates[chosen]) if absolute else rates[chosen]
    return float(np.average(values, weights=lengths[chosen]))


SCHEMA = "prunectl.trace/1"


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One checkpoint.

    Attributes:
        model: as given. label: ``step 500``, or the model where steps are not known.
        revision: commit, if it came from the Hub.
        step: of the training, or the place in the order given. stats: of its prunable weights.
    """

    model: str
    label: str
    revision: str | None
    step: int
    stats: ModelStats


@dataclass(frozen=True, slots=True)
class Series:
    """One number over the steps.

    Attributes:
        name: such as ``near zero 0.01*std`` or ``lost at 0.4``; values are shares of 1.
        change: where it changes abruptly; None where it does not, or checkpoints are too few.
        trend: None where it stays the same.
    """

    name: str
    values: tuple[float, ...]
    change: Change | None
    trend: Trend | None


@dataclass(frozen=True, slots=True)
class Trace:
    """The whole result of ``prunectl trace``.

    Attributes:
        points: in the order of their steps. steps_known: whether these are of the training.
        tensors, weights: prunable, of each checkpoint.
        series: what was followed. findings: sentences.
        command: that was given. seconds: all of it.
    """

    points: tuple[TracePoint, ...]
    steps_known: bool
    tensors: int
    weights: int
    series: tuple[Series, ...]
    findings: tuple[str, ...]
    command: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json`` and of ``-o``."""
        return {"schema": SCHEMA, "prunectl": __version__, **to_json(self)}


def measures(stats: ModelStats) -> dict[str, Callable[[ModelStats], float]]:
    """What is followed over the steps: shares of all weights, or of their squared norm."""

    def near(limit: str) -> Callable[[ModelStats], float]:
        return lambda one: one.near_zero[limit] / one.weights

    def lost(sparsity: str) -> Callable[[ModelStats], float]:
        return lambda one: 1 - one.norm_kept[sparsity]

    def broken(pattern: str) -> Callable[[ModelStats], float]:
        return lambda one: 1 - one.patterns[pattern]

    return {
        "zero": lambda one: one.zeros / one.weights,
        **{f"near zero {limit}": near(limit) for limit in stats.near_zero},
        **{f"lost at {sparsity}": lost(sparsity) for sparsity in stats.norm_kept},
        **{f"lost by {pattern}": broken(pattern) for pattern in stats.patterns},
    }
