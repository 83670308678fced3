"""From points to a curve: means over seeds, intervals from drawing samples and seeds again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunectl.evaluation.resampling import DRAWS, draws, interval, redrawn
from prunectl.study.points import Point
from prunectl.study.result import CurvePoint
from prunectl.study.tolerance import Tolerance
from prunectl.study.turning import Essential, essential, knee

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


def read_curve(
    requested: Sequence[Requested],
    statistic: Statistic,
    tolerance: Tolerance,
    *,
    higher_is_better: bool,
    seed: int,
) -> Read:
    """Everything about one curve.

    Args:
        requested: ascending in sparsity; the first is the dense model.
        statistic: of samples [samples, columns].
        seed: of what is drawn.
    """
    dense = requested[0]
    bound = None
    if not dense.failed:
        bound = tolerance.bound(_mean(dense), higher_is_better=higher_is_better)
    scores = [_redraw(one, statistic, seed) for one in requested]
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
    return Read(tuple(points), turning, knee(grid, at), bound)


def _mean(one: Requested) -> float:
    return float(np.mean([point.score for point in one.points.values() if point.score is not None]))


def _redraw(one: Requested, statistic: Statistic, seed: int) -> Floats:
    """Scores of draws [draws]: of samples, the same for all points, and of seeds."""
    if one.failed:
        return np.zeros(0)
    tables = [point.values for point in one.points.values() if point.values is not None]
    drawn = draws(len(tables[0]), seed)
    each = np.stack([redrawn(values, statistic, drawn) for values in tables])
    if len(each) == 1:
        return np.asarray(each[0])
    chosen = np.random.default_rng((seed, 1)).integers(len(each), size=(DRAWS, len(each)))
    return np.asarray(each[chosen, np.arange(DRAWS)[:, None]].mean(axis=1))


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
            name: float(np.mean([point.parts.get(name, math.nan) for point in known]))
            for name in names
        },
        failed=one.failed or None,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
