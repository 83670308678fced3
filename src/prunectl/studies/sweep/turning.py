"""Where a curve turns: the essential sparsity, how sure it is, and the knee.

Essential sparsity is the largest sparsity at which the score is within a tolerance of the dense
model's, so that a small step further breaks it ("The Emergence of Essential Sparsity in Large
Pre-trained Models", arXiv 2306.03805, where the tolerance is 1%). It is read off the measured
points and never between them. The interval comes from drawing samples again, and seeds where there
are several: of each draw the whole curve is computed, and its essential sparsity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from prunectl.studies.sweep.tolerance import Tolerance

Floats = NDArray[np.float64]
LEVEL = 0.95
LEAST_KNEE = 5
"""A knee of fewer points is chance."""


class Status(StrEnum):
    """What is known of an essential sparsity."""

    FOUND = "found"
    NOT_REACHED = "not reached"
    """Every point is within the tolerance: it lies beyond the range."""
    NONE = "none"
    """Even the first point is not."""
    NOISE = "noise"
    """The scores are less sure than the tolerance is wide."""
    UNLEARNED = "unlearned"
    """The dense model is no better than always giving the most frequent answer."""
    FAILED = "failed"
    """No point was measured."""


@dataclass(frozen=True, slots=True)
class Essential:
    """The essential sparsity of a curve.

    Attributes:
        sparsity: None where none was found. low, high: its 95% interval, on measured points.
        status: what is known.
        beyond: the measured point after it, which is out of the tolerance.
        text: one sentence.
    """

    sparsity: float | None
    low: float | None
    high: float | None
    status: Status
    beyond: float | None
    text: str


def essential(
    sparsities: Sequence[float], losses: Sequence[float], redrawn: Floats, tolerance: Tolerance
) -> Essential:
    """Read the essential sparsity off a curve.

    Args:
        sparsities: of the points, ascending, the dense model (0) not among them.
        losses: of each point against dense, as :meth:`Tolerance.losses` gives them.
        redrawn: float64 [draws, points], the losses of each draw; [0, points] where there are none.
        tolerance: what is free.
    """
    if not len(sparsities):
        text = "No point could be measured."
        return Essential(None, None, None, Status.FAILED, None, text)
    at = last_within(np.asarray(losses, np.float64)[None], tolerance.epsilon)[0]
    places = last_within(redrawn, tolerance.epsilon)
    grid = np.array([0.0, *sparsities])
    low = high = None
    if len(places):
        # Order statistics: an interval's ends are measured points too.
        tail = (1 - LEVEL) / 2
        low = float(np.quantile(grid[places], tail, method="lower"))
        high = float(np.quantile(grid[places], 1 - tail, method="higher"))
    found = float(grid[at])
    beyond = float(sparsities[at]) if at < len(sparsities) else None
    if not found and beyond is not None:
        at = 0  # a budget may be too small for any matrix: that is the dense model
    status = _status(at, len(sparsities), redrawn, tolerance, sure=bool(at) and low == high)
    value = found if status in (Status.FOUND, Status.NOT_REACHED) else None
    if status is Status.NOISE and at:
        value = found
    text = _sentence(status, found, beyond, low, high, losses, tolerance, at)
    return Essential(value, low, high, status, beyond, text)


def unlearned() -> Essential:
    """Of a curve that begins at chance: it stays there, and says nothing of sparsity."""
    text = (
        "The dense model is no better than always giving the most frequent answer, so that this "
        "curve says nothing: train it longer or on more, or measure something that it can do."
    )
    return Essential(None, None, None, Status.UNLEARNED, None, text)


def last_within(losses: Floats, epsilon: float) -> NDArray[np.int64]:
    """How many points lie up to the last one within the tolerance, int64 [curves].

    Args:
        losses: [curves, points], ascending in sparsity. NaN is not within.
    """
    within = losses <= epsilon
    points = losses.shape[1]
    last = points - np.argmax(within[:, ::-1], axis=1)
    return np.where(within.any(axis=1), last, 0).astype(np.int64)


def half_width(redrawn: Floats) -> float:
    """Half of the 95% interval of one point's losses [draws]; 0 where there are no draws."""
    if not len(redrawn) or not np.isfinite(redrawn).all():
        return 0.0
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(redrawn, [tail, 100 - tail])
    return float(high - low) / 2


def knee(sparsities: Sequence[float], losses: Sequence[float]) -> float | None:
    """The knee of the curve of losses, by Kneedle (Satopaa et al., 2011); None without one.

    It asks for no tolerance, and depends on how far the curve goes: read it beside the essential
    sparsity, not instead of it. Losses are taken on a log scale where they span more than that.
    """
    from kneed import KneeLocator

    known = [(s, v) for s, v in zip([0.0, *sparsities], [0.0, *losses], strict=True)
             if math.isfinite(v)]  # fmt: skip
    if len(known) < LEAST_KNEE or max(v for _, v in known) <= 0:
        return None
    x, y = zip(*known, strict=True)
    # Log of what is left of the score keeps one exploding point from hiding all others.
    heights = np.log1p(np.maximum(y, 0.0))
    locator = KneeLocator(x, np.maximum.accumulate(heights), curve="convex", direction="increasing")
    found = None if locator.knee is None else float(locator.knee)
    return None if found == x[-1] else found  # the end of what was measured is no knee of it


def _status(at: int, points: int, redrawn: Floats, tolerance: Tolerance, *, sure: bool) -> Status:
    # What lies far beyond may be as unsure as it likes: what counts is the last point within, and
    # the first one where none is. Where all draws end at one point, noise does not change it.
    draws = redrawn[:, max(at - 1, 0)] if len(redrawn) else redrawn
    if (
        not sure
        and half_width(draws) > tolerance.epsilon
        and (at or draws.min() <= tolerance.epsilon)
    ):
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
    """``18%``, ``2.64%``: budgets end between whole percents."""
    return f"{100 * (value or 0.0):.3g}%"
