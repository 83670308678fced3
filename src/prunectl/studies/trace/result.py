"""What a trace found: series over the steps, their abrupt changes and trends, and findings.

*Abrupt* applies to rates, and not to values: a steady rise has no sudden point, however long it
lasts. PELT (Killick, Fearnhead and Eckley, arXiv 1101.1438; the library ruptures), with a penalty
like BIC's, cuts the rates between checkpoints into stretches of equal mean; the stretch whose rate
stands out is the abrupt one. The *trend* is Kendall's tau of values and steps, which is the test of
Mann (1945) and Kendall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl._version import __version__
from prunectl.errors import MissingLibrary
from prunectl.measure.model_stats import ModelStats
from prunectl.to_json import to_json

LEAST = 6
"""Checkpoints below which a change is chance."""
_PENALTY = 5.0
"""Penalty of a further stretch, in squared deviations and per log of the number of rates."""
_TIMES = 3.0
"""Least ratio of an abrupt stretch's rate to the rate elsewhere."""
_SIZE = 0.1
"""The least change, as a share of the larger of the two values."""
_NOISE = 6.0
"""The least change, in standard deviations of the scatter from one value to the next."""
_NORMAL = 1.4826
"""Standard deviation of normal numbers over their median absolute deviation."""

_SURE = 0.05
"""The p-value below which a trend is significant."""
_TREND = 5
"""Checkpoints from which a trend can be significant: for four in perfect order p is 0.08."""
_TURN = 0.02
"""How far a value must lie beyond both ends to be reported, as a share of the larger end."""
_REPORTED = "near zero 0.01*std"


@dataclass(frozen=True, slots=True)
class Change:
    """A stretch in which a series changes far faster than elsewhere.

    Attributes:
        start, end: steps. before, after: values there.
        times: its absolute rate over the mean rate elsewhere; None where nothing moves elsewhere.
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


def check_libraries() -> None:
    """Check before the work whether changes and trends can be found; loads nothing.

    Raises:
        MissingLibrary: a library is not installed.
    """
    for library in ("ruptures", "scipy"):
        if find_spec(library) is None:
            raise MissingLibrary(library, "trace", extra="trace")


def abrupt(steps: Sequence[int], values: Sequence[float]) -> Change | None:
    """The abrupt change of a series, if it has one.

    Args:
        steps: increasing. values: one for each step.
    """
    if len(values) < LEAST:
        return None
    at, heights = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    lengths = np.diff(at)
    rates = np.diff(heights) / lengths
    if not np.isfinite(rates).all() or not rates.any():
        return None
    pieces = _stretches(rates)
    # Between neighbouring checkpoints noise alone has high rates, but is no change.
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
    """Whether values rise or fall with the steps; None if all are equal, or one is not finite."""
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
    """Whether a stretch covers at most half of the steps, and changes enough."""
    first, last = piece
    before, after = heights[first], heights[last]
    size = max(least, _SIZE * max(abs(before), abs(after)))
    is_most = lengths[first:last].sum() > lengths.sum() / 2
    return bool(abs(after - before) >= size and not is_most)


def _noise(at: NDArray[np.float64], heights: NDArray[np.float64]) -> float:
    """Standard deviation of values around the lines between their neighbours, by the median."""
    part = (at[1:-1] - at[:-2]) / (at[2:] - at[:-2])
    off = heights[1:-1] - (1 - part) * heights[:-2] - part * heights[2:]
    return _NORMAL * float(np.median(np.abs(off) / np.sqrt(1 + part**2 + (1 - part) ** 2)))


def _stretches(rates: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Cut rates into stretches of equal mean; (first, past the last) of each."""
    from ruptures import Pelt

    scale = float(np.abs(rates).max())
    spread = _NORMAL * float(np.median(np.abs(rates - np.median(rates)))) / scale
    # Where most rates are equal, any other rate stands out.
    penalty = _PENALTY * max(spread, 1e-9) ** 2 * np.log(len(rates))
    found = Pelt(model="l2", min_size=1, jump=1).fit((rates / scale)[:, None]).predict(penalty)
    return list(pairwise([0, *found]))


def _mean(
    rates: NDArray[np.float64],
    lengths: NDArray[np.float64],
    pieces: Sequence[tuple[int, int]],
    absolute: bool = False,
) -> float:
    """The mean rate over stretches, weighted by steps."""
    chosen = np.concatenate([np.arange(*piece) for piece in pieces])
    values = np.abs(rates[chosen]) if absolute else rates[chosen]
    return float(np.average(values, weights=lengths[chosen]))


SCHEMA = "prunectl.trace/1"


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One checkpoint of a trace.

    Attributes:
        model: as given. label: ``step 500``, or the model where steps are not known.
        revision: commit, if it came from the Hub.
        step: of the training, or the position in the order given. stats: of its prunable weights.
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
        change: its abrupt change; None if it has none, or if there are too few checkpoints.
        trend: None if it stays the same.
    """

    name: str
    values: tuple[float, ...]
    change: Change | None
    trend: Trend | None


@dataclass(frozen=True, slots=True)
class Trace:
    """The whole result of ``prunectl trace``.

    Attributes:
        points: in the order of their steps. steps_known: whether steps are those of the training.
        tensors, weights: the prunable ones of each checkpoint.
        series: the numbers that were followed. findings: sentences.
        command: as given. seconds: of the whole trace.
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
    """The numbers to follow over the steps: shares of all weights, or of their squared norm."""

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


def series_of(points: Sequence[TracePoint]) -> Iterator[Series]:
    """The series of a trace, with their changes and trends."""
    steps = [point.step for point in points]
    for name, value in measures(points[0].stats).items():
        values = tuple(value(point.stats) for point in points)
        yield Series(name, values, abrupt(steps, values), trend(steps, values))


def findings(result: Trace) -> Iterator[str]:
    """Sentences: an abrupt sparsification, and whether later checkpoints are more prunable."""
    by_name = {one.name: one for one in result.series}
    near = by_name[_REPORTED]
    if near.change is not None:
        change = near.change
        times = "" if change.times is None else f", {change.times:.1f} times as fast as elsewhere"
        where = "step" if result.steps_known else "checkpoint"
        yield (
            f"Abrupt: between {where} {change.start:,} and {change.end:,} the weights within 1% of "
            f"the standard deviation go from {change.before:.3%} to {change.after:.3%}{times}."
        )
    elif len(result.points) >= LEAST:
        yield "Weights near zero change nowhere abruptly."
    else:
        yield f"With fewer than {LEAST} checkpoints, an abrupt change is not looked for."
    for series in result.series:
        if series.name.startswith("lost") and all(map(math.isfinite, series.values)):
            yield f"{_prunability(series, [point.label for point in result.points])}."


def _prunability(series: Series, labels: Sequence[str]) -> str:
    """A sentence on one series of losses: ``at 0.4`` is a sparsity, ``by 2:4`` a pattern."""
    kind, _, target = series.name.removeprefix("lost ").partition(" ")
    what = f"{100 * float(target):.4g}% sparsity" if kind == "at" else target
    values = (
        f"{what} takes {series.values[0]:.2%} of the squared norm at first, "
        f"{_turn(series.values, labels)}and {series.values[-1]:.2%} at last"
    )
    found: Trend | None = series.trend
    if found is None:
        return f"{values}: it stays the same"
    if len(series.values) < _TREND:
        return f"{values}: fewer than {_TREND} checkpoints cannot show a trend"
    test = f"Kendall's tau {found.tau:.2f}, p = {found.p:.2g}"
    if found.p >= _SURE:
        return f"{values}: no trend ({test})"
    later = "more" if found.tau < 0 else "less"
    return f"{values}: later checkpoints are {later} prunable ({test})"


def _turn(values: Sequence[float], labels: Sequence[str]) -> str:
    """The least or the largest value, where it lies well beyond the first and the last."""
    ends = sorted((values[0], values[-1]))
    low, high = min(values), max(values)
    beyond = {low: ends[0] - low, high: high - ends[1]}
    found = max(beyond, key=lambda value: beyond[value])
    if beyond[found] <= _TURN * ends[1]:
        return ""
    return f"{found:.2%} at {labels[values.index(found)]} "
