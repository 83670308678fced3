"""Samples in seconds to what may be said of them: medians, spread, and intervals of ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_ROUNDS = 7
"""Fewer rounds give intervals that are too narrow: the bootstrap only knows what it has seen."""
LEVEL = 0.95
LEAST_RATIO = 1.03
"""Ratios nearer to 1 are no difference, however narrow the interval: models that do the same work
were measured 2% apart, since rounds of one process do not vary where the weights lie in memory."""
RESAMPLES = 4000
FASTER, SLOWER, UNDECIDED = "faster", "slower", "no difference found"


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, 10th and 90th percentile, and standard deviation over mean, of ``rounds`` samples."""

    median: float
    p10: float
    p90: float
    cv: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio of medians, and the ``LEVEL`` bootstrap interval around it.

    ``chance`` is that of equal sides being ahead of one another in so unequal a number of rounds
    (two-sided sign test); 0 where samples do not come in rounds.
    """

    ratio: float
    low: float
    high: float
    chance: float = 0.0

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower``: an interval without 1, by ``LEAST_RATIO``, and in most rounds.

        The bootstrap alone calls 5 to 6% of equal sides different with 7 rounds. The sign test
        assumes nothing of how samples spread.
        """
        if self.chance > 1 - LEVEL:
            return UNDECIDED
        if self.low > 1 and self.ratio >= LEAST_RATIO:
            return FASTER
        return SLOWER if self.high < 1 and self.ratio <= 1 / LEAST_RATIO else UNDECIDED


def summarize(samples: Sequence[float]) -> Summary:
    """The summary of one or more samples; the coefficient of variation of a single one is 0.

    Raises:
        ValueError: there are none.
    """
    import numpy as np

    if not samples:
        raise ValueError("no samples")
    values = np.asarray(samples, np.float64)
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    mean = float(values.mean())
    cv = spread / mean if mean else 0.0
    return Summary(float(median), float(p10), float(p90), cv, len(values))


def paired_ratio(baseline: Sequence[float], other: Sequence[float], seed: int) -> Interval:
    """Median of ``baseline`` / median of ``other``: above 1, the other one is faster.

    Sample i of both comes from the same round. Rounds are drawn, not samples, so that what slowed
    down a whole round does so on both sides.

    Raises:
        ValueError: the counts differ, or there are none.
    """
    import numpy as np

    if len(baseline) != len(other) or not baseline:
        raise ValueError("a pair needs a sample of each side in every round")
    drawn = np.random.default_rng(seed).integers(len(other), size=(RESAMPLES, len(other)))
    first, second = np.asarray(baseline, np.float64), np.asarray(other, np.float64)
    chance = sign_test(int((first > second).sum()), int((first < second).sum()))
    return replace(_interval(first, second, drawn, drawn), chance=chance)


def sign_test(wins: int, losses: int) -> float:
    """Chance that a fair coin falls as unequally as this, or more so; ties are not counted."""
    tosses, more = wins + losses, max(wins, losses)
    tail = sum(math.comb(tosses, heads) for heads in range(more, tosses + 1))
    return float(min(1.0, 2 * tail / 2**tosses))


def unpaired_ratio(baseline: Sequence[float], other: Sequence[float], seed: int) -> Interval:
    """As :func:`paired_ratio`, for samples of different runs, which may differ in number.

    Raises:
        ValueError: one of them has no samples.
    """
    import numpy as np

    if not baseline or not other:
        raise ValueError("no samples")
    draw = np.random.default_rng(seed)
    return _interval(
        np.asarray(baseline, np.float64),
        np.asarray(other, np.float64),
        draw.integers(len(baseline), size=(RESAMPLES, len(baseline))),
        draw.integers(len(other), size=(RESAMPLES, len(other))),
    )


def _interval(
    baseline: NDArray[np.float64],
    other: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> Interval:
    """The percentile bootstrap, from indices of the samples drawn."""
    import numpy as np

    ratios = np.median(baseline[first], axis=1) / np.median(other[second], axis=1)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Interval(float(np.median(baseline) / np.median(other)), float(low), float(high))
