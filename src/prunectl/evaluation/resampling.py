"""How sure a score is: the percentile bootstrap over samples, the same draws for all models.

Samples are drawn with replacement (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993,
chapter 13); scores that belong together are computed of the same draws, so that what one hard text
does to all models alike does not widen the interval of their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]


@dataclass(frozen=True, slots=True)
class Interval:
    """The ``LEVEL`` interval of a number."""

    low: float
    high: float


def draws(samples: int, seed: int, count: int = DRAWS) -> Iterator[NDArray[np.int64]]:
    """Indices of samples, int64 [samples], ``count`` times; the same for the same arguments.

    None of a single sample: it would look as if it were sure. One after the other, since all at
    once would take 8,000 bytes for each sample.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count if samples > 1 else 0):
        yield rng.integers(samples, size=samples)


def redrawn(values: Floats, statistic: Statistic, seed: int) -> Floats:
    """The statistic of each draw by ``seed``, float64 [``DRAWS``]; [0] of a single sample.

    Args:
        values: [samples, columns].
    """
    return np.array([statistic(values[indices]) for indices in draws(len(values), seed)])


def interval(scores: Floats) -> Interval | None:
    """Percentiles of redrawn scores; None where some are not finite, as of a single class."""
    if not len(scores) or not np.isfinite(scores).all():
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(scores, [tail, 100 - tail])
    return Interval(float(low), float(high))
