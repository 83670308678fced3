"""From points to a curve: means over seeds, intervals from drawing samples and seeds again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prunectl.evaluation.metric import MAJORITY
from prunectl.evaluation.resampling import DRAWS, interval, redrawn
from prunectl.studies.sweep.points import Point
from prunectl.studies.sweep.result import CurvePoint
from prunectl.studies.sweep.tolerance import EpsilonMode, Tolerance
from prunectl.studies.sweep.turning import Essential, essential, knee, unlearned

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]


@dataclass(frozen=True, slots=True)
class Requested:
    """A sparsity that was asked for, and what each seed gave, by seed."""

    sparsity: float
    points: dict[int, Point]

    @property
    def failed(self) -> str:
        """Why there is no score: the first reason of a seed; '' if all have one."""
        return next((one.failed for one in self.points.values() if one.failed), "")


@dataclass(frozen=True, slots=True)
class Read:
    """What a curve says."""

    points: tuple[CurvePoint, ...]
    essential: Essential
    knee: float | None
    bound: float | None


class Redraws:
    """Scores of points on samples that are drawn again, the same for all points; each once.

    Args:
        statistic: of samples [samples, columns].
        seed: of what is drawn.
    """

    def __init__(self, statistic: Statistic, seed: int) -> None:
        self._statistic, self._seed = statistic, seed
        self._known: dict[Point, Floats] = {}

    def of(self, one: Requested) -> Floats:
        """Scores of draws [draws]: of samples, and of seeds where there are several; [0] where
        there are none, as of a point that failed."""
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
    """Everything about one curve.

    Args:
        requested: ascending in sparsity; the first is the dense model.
        redraws: of the metric that made the points.
    """
    dense = requested[0]
    bound = None
    if not dense.failed:
        bound = _finite(tolerance.bound(_mean(dense), higher_is_better=higher_is_better))
    scores = [redraws.of(one) for one in requested]
    losses: list[float] = []
    lost: list[Floats] = []
    points = [_curve_point(dense, scores[0], 0.0 if not dense.failed else None, None)]
    for one, drawn in zip(requested[1:], scores[1:], strict=True):
        loss, spread = math.nan, np.zeros(0)
        if not one.failed and not dense.failed:
            loss = float(
                tolerance.losses(
                    np.array(_mean(one)), _mean(dense), higher_is_better=higher_is_better
                )
            )
            spread = tolerance.losses(drawn, scores[0], higher_is_better=higher_is_better)
        losses.append(loss)
        lost.append(spread)
        points.append(_curve_point(one, drawn, loss, spread))
    measured = [i for i, loss in enumerate(losses) if not math.isnan(loss)]
    grid = [points[1 + i].sparsity for i in measured]
    at = [losses[i] for i in measured]
    drawn_losses = np.stack([lost[i] for i in measured], 1) if measured else np.zeros((0, 0))
    # A draw of one class only has no score: it says nothing of how sure the others are.
    drawn_losses = drawn_losses[~np.isnan(drawn_losses).any(axis=1)]
    turning = essential(grid, at, drawn_losses, tolerance)
    if more := _unmeasured(requested, tolerance):
        turning = replace(turning, text=f"{turning.text} {more}")
    majority = points[0].parts.get(MAJORITY)
    if higher_is_better and majority is not None and (points[0].score or 0.0) <= majority:
        return Read(tuple(points), unlearned(), None, bound)
    return Read(tuple(points), turning, knee(grid, at), bound)


def _unmeasured(requested: Sequence[Requested], tolerance: Tolerance) -> str:
    """A sentence on what is not known of a curve; '' if all is."""
    dense = requested[0]
    if dense.failed:
        return "The dense model has no score."
    if not math.isfinite(_mean(dense)):
        return "The dense model's score is infinite."
    if tolerance.mode is EpsilonMode.RELATIVE and not _mean(dense):
        return (
            "The dense model's score is 0, and a share of it is nothing: --epsilon-mode absolute."
        )
    failed = [f"{one.sparsity:.3g}" for one in requested if one.failed]
    return f"Not measured: {', '.join(failed)}." if failed else ""


def _mean(one: Requested) -> float:
    return float(np.mean([point.score for point in one.points.values() if point.score is not None]))


def _curve_point(
    one: Requested, drawn: Floats, loss: float | None, spread: Floats | None
) -> CurvePoint:
    known = list(one.points.values())
    around = interval(drawn)
    change = None if spread is None else interval(spread)
    names = known[0].parts if known and not one.failed else {}
    return CurvePoint(
        sparsity=float(np.mean([point.sparsity for point in known])),
        requested=one.sparsity,
        overall=float(np.mean([point.overall for point in known])),
        score=None if one.failed else _finite(_mean(one)),
        low=around.low if around else None,
        high=around.high if around else None,
        change=None if loss is None else _finite(loss),
        change_low=change.low if change else None,
        change_high=change.high if change else None,
        seconds=sum(point.seconds for point in known),
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
