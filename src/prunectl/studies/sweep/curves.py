"""From points to a curve: means over seeds, intervals, and where the curve turns.

Essential sparsity is the largest sparsity at which the score is within a tolerance of the dense
model's, so that a small further step breaks it ("The Emergence of Essential Sparsity in Large
Pre-trained Models", arXiv 2306.03805, where the tolerance is 1%). It is always a measured point,
never a point between two. Its interval comes from the bootstrap over samples, and over seeds where
there are several: the whole curve is computed for each draw, and the essential sparsity of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prunectl.evaluation.metric import MAJORITY
from prunectl.evaluation.resampling import DRAWS, LEVEL, Floats, Statistic, interval, redrawn
from prunectl.studies.sweep.points import Point
from prunectl.studies.sweep.result import CurvePoint, Essential, Status
from prunectl.studies.sweep.settings import EpsilonMode, Tolerance

LEAST_KNEE = 5
"""Points below which a knee is chance."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A sparsity that was asked for, and its points by seed."""

    sparsity: float
    points: dict[int, Point]

    @property
    def failed(self) -> str:
        """Why there is no score: the first reason of a seed; '' if every seed has a score."""
        return next((one.failed for one in self.points.values() if one.failed), "")

    @property
    def mean(self) -> float:
        """The mean score over the seeds that have one."""
        scores = [point.score for point in self.points.values() if point.score is not None]
        return float(np.mean(scores))

    @property
    def seconds(self) -> float:
        """Of all seeds together."""
        return sum(point.seconds for point in self.points.values())


@dataclass(frozen=True, slots=True)
class Read:
    """A curve as it was read from its points."""

    points: tuple[CurvePoint, ...]
    essential: Essential
    knee: float | None
    bound: float | None


class Redraws:
    """The bootstrap of points: scores on redrawn samples, with the same draws for all points.

    Args:
        statistic: of samples [samples, columns].
        seed: of the draws.
    """

    def __init__(self, statistic: Statistic, seed: int) -> None:
        self._statistic, self._seed = statistic, seed
        self._known: dict[Point, Floats] = {}

    def of(self, one: Requested) -> Floats:
        """Scores of the draws, float64 [draws]: of samples, and of seeds where there are several.

        [0] where there are no draws, as for a point that failed.
        """
        if one.failed:
            return np.zeros(0)
        each = np.stack([self._of_point(point) for point in one.points.values()])
        if len(each) == 1 or not each.size:
            return np.asarray(each[0])
        chosen = np.random.default_rng((self._seed, 1)).integers(len(each), size=(DRAWS, len(each)))
        return np.asarray(each[chosen, np.arange(DRAWS)[:, None]].mean(axis=1))

    def _of_point(self, point: Point) -> Floats:
        if point not in self._known:
            values = point.values
            assert values is not None
            self._known[point] = redrawn(values, self._statistic, self._seed)
        return self._known[point]


def read_curve(
    requested: Sequence[Requested],
    redraws: Redraws,
    tolerance: Tolerance,
    *,
    higher_is_better: bool,
) -> Read:
    """Compute losses, intervals, essential sparsity and knee of one curve.

    Args:
        requested: ascending in sparsity; the first is the dense model.
        redraws: of the metric that made the points.
    """
    dense = requested[0]
    bound = None
    if not dense.failed:
        bound = _finite(tolerance.bound(dense.mean, higher_is_better=higher_is_better))
    scores = [redraws.of(one) for one in requested]
    losses: list[float] = []
    lost: list[Floats] = []
    points = [_curve_point(dense, scores[0], 0.0 if not dense.failed else None, None)]
    for one, drawn in zip(requested[1:], scores[1:], strict=True):
        loss, spread = math.nan, np.zeros(0)
        if not one.failed and not dense.failed:
            loss = float(
                tolerance.losses(np.array(one.mean), dense.mean, higher_is_better=higher_is_better)
            )
            spread = tolerance.losses(drawn, scores[0], higher_is_better=higher_is_better)
        losses.append(loss)
        lost.append(spread)
        points.append(_curve_point(one, drawn, loss, spread))
    measured = [i for i, loss in enumerate(losses) if not math.isnan(loss)]
    grid = [points[1 + i].sparsity for i in measured]
    at = [losses[i] for i in measured]
    drawn_losses = np.stack([lost[i] for i in measured], 1) if measured else np.zeros((0, 0))
    # A draw of a single class has no score, and says nothing about the others.
    drawn_losses = drawn_losses[~np.isnan(drawn_losses).any(axis=1)]
    turning = essential(grid, at, drawn_losses, tolerance)
    if more := _unmeasured(requested, tolerance):
        turning = replace(turning, text=f"{turning.text} {more}")
    majority = points[0].parts.get(MAJORITY)
    if higher_is_better and majority is not None and (points[0].score or 0.0) <= majority:
        return Read(tuple(points), unlearned(), None, bound)
    return Read(tuple(points), turning, knee(grid, at), bound)


def _unmeasured(requested: Sequence[Requested], tolerance: Tolerance) -> str:
    """A sentence on what was not measured of a curve; '' if nothing is missing."""
    dense = requested[0]
    if dense.failed:
        return "The dense model has no score."
    if not math.isfinite(dense.mean):
        return "The dense model's score is infinite."
    if tolerance.mode is EpsilonMode.RELATIVE and not dense.mean:
        return (
            "The dense model's score is 0, and a share of it is nothing: --epsilon-mode absolute."
        )
    failed = [f"{one.sparsity:.3g}" for one in requested if one.failed]
    return f"Not measured: {', '.join(failed)}." if failed else ""


def _curve_point(
    one: Requested, drawn: Floats, loss: float | None, spread: Floats | None
) -> CurvePoint:
    known = list(one.points.values())
    low, high = ends(drawn)
    change_low, change_high = (None, None) if spread is None else ends(spread)
    names = known[0].parts if known and not one.failed else {}
    return CurvePoint(
        sparsity=float(np.mean([point.sparsity for point in known])),
        requested=one.sparsity,
        overall=float(np.mean([point.overall for point in known])),
        score=None if one.failed else _finite(one.mean),
        low=low,
        high=high,
        change=None if loss is None else _finite(loss),
        change_low=change_low,
        change_high=change_high,
        seconds=one.seconds,
        seeds={
            str(seed): None if point.score is None else _finite(point.score)
            for seed, point in one.points.items()
        },
        parts={
            name: _finite(float(np.mean([point.parts.get(name, math.nan) for point in known])))
            for name in names
        },
        failed=one.failed or None,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def essential(
    sparsities: Sequence[float], losses: Sequence[float], redrawn: Floats, tolerance: Tolerance
) -> Essential:
    """Find the essential sparsity of a curve.

    Args:
        sparsities: of the points, ascending, without the dense model (0).
        losses: of each point against dense, as :meth:`Tolerance.losses` computes them.
        redrawn: float64 [draws, points], the losses of each draw; [0, points] without draws.
        tolerance: the loss that is free.
    """
    if not len(sparsities):
        text = "No point could be measured."
        return Essential(None, None, None, Status.FAILED, None, text)
    at = last_within(np.asarray(losses, np.float64)[None], tolerance.epsilon)[0]
    places = last_within(redrawn, tolerance.epsilon)
    grid = np.array([0.0, *sparsities])
    low = high = None
    if len(places):
        # Order statistics, so that the ends of the interval are measured points too.
        tail = (1 - LEVEL) / 2
        low = float(np.quantile(grid[places], tail, method="lower"))
        high = float(np.quantile(grid[places], 1 - tail, method="higher"))
    found = float(grid[at])
    beyond = float(sparsities[at]) if at < len(sparsities) else None
    if not found and beyond is not None:
        at = 0  # a budget too small for any matrix leaves the dense model
    status = _status(at, len(sparsities), redrawn, tolerance, sure=bool(at) and low == high)
    value = found if status in (Status.FOUND, Status.NOT_REACHED) else None
    if status is Status.NOISE and at:
        value = found
    text = _sentence(status, found, beyond, low, high, losses, tolerance, at)
    return Essential(value, low, high, status, beyond, text)


def unlearned() -> Essential:
    """The result of a curve that starts at chance, and therefore says nothing about sparsity."""
    text = (
        "The dense model is no better than always giving the most frequent answer, so that this "
        "curve says nothing: train it longer or on more, or measure something that it can do."
    )
    return Essential(None, None, None, Status.UNLEARNED, None, text)


def last_within(losses: Floats, epsilon: float) -> NDArray[np.int64]:
    """Count the points up to the last one within the tolerance, int64 [curves].

    Args:
        losses: [curves, points], ascending in sparsity. NaN is not within.
    """
    within = losses <= epsilon
    points = losses.shape[1]
    last = points - np.argmax(within[:, ::-1], axis=1)
    return np.where(within.any(axis=1), last, 0).astype(np.int64)


def ends(redrawn: Floats) -> tuple[float | None, float | None]:
    """The ends of the 95% interval of draws; None and None where there is no interval."""
    found = interval(redrawn)
    return (found.low, found.high) if found else (None, None)


def knee(sparsities: Sequence[float], losses: Sequence[float]) -> float | None:
    """The knee of the curve of losses, by Kneedle (Satopaa et al., 2011); None without one.

    It needs no tolerance, but depends on how far the curve goes: it complements the essential
    sparsity and does not replace it.
    """
    known = [(s, v) for s, v in zip([0.0, *sparsities], [0.0, *losses], strict=True)
             if math.isfinite(v)]  # fmt: skip
    if len(known) < LEAST_KNEE or max(v for _, v in known) <= 0:
        return None
    x, y = np.array(known).T
    # On a log scale one exploding point does not hide all others.
    at = _kneedle(x, np.maximum.accumulate(np.log1p(np.maximum(y, 0.0))))
    # The last point measured is no knee.
    return None if at is None or x[at] == x[-1] else float(x[at])


def _kneedle(x: Floats, y: Floats) -> int | None:
    """Kneedle's first knee of a convex curve that rises, as an index, with its sensitivity at 1.

    That is a place where the curve is farthest below its chord, if the distance then falls by more
    than the mean step of x before it grows again; the search begins at the end of the curve.
    """
    across, up = (1 - (one[::-1] - one.min()) / (one.max() - one.min()) for one in (x, y))
    below, step = up - across, np.diff(across).mean()
    left, right = np.pad(below, 1, mode="edge")[:-2], np.pad(below, 1, mode="edge")[2:]
    peaks = (below >= left) & (below >= right)
    valleys = (below <= left) & (below <= right)
    peak = None
    for at in range(len(below) - 1):
        if peaks[at]:
            peak = at
        if valleys[at]:
            peak = None
        if peak is not None and below[at + 1] < below[peak] - step:
            return len(x) - 1 - peak
    return None


def _status(at: int, points: int, redrawn: Floats, tolerance: Tolerance, *, sure: bool) -> Status:
    # Noise matters at the last point within the tolerance, or at the first point where none is, and
    # not far beyond. Where all draws end at the same point, noise does not change the result.
    draws = redrawn[:, max(at - 1, 0)] if len(redrawn) else redrawn
    low, high = ends(draws)
    is_wide = low is not None and high is not None and (high - low) / 2 > tolerance.epsilon
    if not sure and is_wide and (at or draws.min() <= tolerance.epsilon):
        return Status.NOISE
    if not at:
        return Status.NONE
    return Status.FOUND if at < points else Status.NOT_REACHED


def _sentence(
    status: Status,
    found: float,
    beyond: float | None,
    low: float | None,
    high: float | None,
    losses: Sequence[float],
    tolerance: Tolerance,
    at: int,
) -> str:
    limit = str(tolerance)
    sure = (
        f" (95%: {_share(low)} to {_share(high)})" if low is not None and high is not None else ""
    )
    if status is Status.FAILED:
        return "No point could be measured."
    if status is Status.NOISE:
        here = f"the last point within is {_share(found)}{sure}" if at else "no point is within it"
        return f"The noise is larger than the tolerance of {limit}: {here}. More samples tell more."
    if status is Status.NONE:
        return f"Nothing is free: {_share(beyond)} already loses more than {limit}."
    if status is Status.NOT_REACHED:
        return f"Not reached in this range: {_share(found)} is still within {limit}{sure}."
    early = [i for i in range(at) if losses[i] > tolerance.epsilon]
    odd = " Some points before it are not: the curve is not even." if early else ""
    return f"{_share(found)} is within {limit}{sure}, {_share(beyond)} is not.{odd}"


def _share(value: float | None) -> str:
    """``18%`` or ``2.64%``, since budgets end between whole percents."""
    return f"{100 * (value or 0.0):.3g}%"
