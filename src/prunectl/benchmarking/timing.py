"""Interleaved rounds on a clock of the device, and what their samples say.

Every model runs once in each round, so that drift of the machine affects all of them alike. A
*pass* does the work once and returns the marks between which its phases ran. Short passes are
repeated within a sample, equally often for every model.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Clock(Protocol):
    """What a measurement needs of a clock."""

    def mark(self) -> Any:
        """A point in time, in the order of the work."""

    def settle(self) -> None:
        """Wait until all work is done."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds from one mark to another; ``settle`` has been called since."""


class WallClock:
    """The system's monotonic clock, for work that is done when a call returns."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def settle(self) -> None:
        """Nothing to wait for."""

    def between(self, first: float, last: float) -> float:
        return last - first


class CudaClock:
    """CUDA events on the current stream: marks cost nothing, and the device itself stamps them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        import torch

        torch.cuda.synchronize(self._device)

    def between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        return float(first.elapsed_time(last)) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else WallClock()


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


Span = tuple[Any, Any, int]
"""First mark, last mark, and how many equal steps ran between them."""
Pass = Callable[[Clock], Mapping[str, Span]]

LEAST_SAMPLE = 0.02
"""Seconds that one sample lasts at least; shorter ones are mostly noise of timers and scheduler."""
WARM_UP_PASSES = 12
WARM_UP_SECONDS = 20.0
WARM_UP_SHARE = 0.2
"""Of the time that the rounds may take, what the warm-up of all sides may take beside it."""
_STABLE = 0.1
_ALIKE = 3


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one step of each phase, by side and phase, a sample a round.

    Attributes:
        samples: side -> phase -> samples.
        rounds: how many.
        repeats: passes in one sample.
        warm_up: passes before the first round, all sides together.
    """

    samples: dict[str, dict[str, tuple[float, ...]]]
    rounds: int
    repeats: int
    warm_up: int


def time_passes(passes: Mapping[str, Pass], clock: Clock, *, rounds: int, seconds: float) -> Timed:
    """Warm every side up until it is stable, then time them in turns.

    Args:
        passes: by side.
        rounds: samples of each side.
        seconds: what the rounds may take; fewer rounds are planned, never under ``LEAST_ROUNDS``,
            where the warm-up shows that they would take longer. It is not looked at afterwards.

    Raises:
        What a pass raises.
    """
    took: dict[str, float] = {}
    warm = 0
    for side, one in passes.items():
        lasted = warm_up(one, clock, min(WARM_UP_SECONDS, WARM_UP_SHARE * seconds / len(passes)))
        warm += len(lasted)
        took[side] = min(lasted)
    fastest, whole = min(took.values()), sum(took.values())
    repeats = max(1, min(1000, math.ceil(LEAST_SAMPLE / max(fastest, 1e-9))))
    affordable = int(seconds / max(whole * repeats, 1e-9))
    planned = max(LEAST_ROUNDS, min(rounds, affordable))
    samples: dict[str, dict[str, list[float]]] = {side: defaultdict(list) for side in passes}
    for number in range(planned):
        for side in turns(list(passes), number):
            for phase, value in _sample(passes[side], clock, repeats).items():
                samples[side][phase].append(value)
    return Timed(
        {side: {name: tuple(all_) for name, all_ in one.items()} for side, one in samples.items()},
        planned,
        repeats,
        warm,
    )


def turns(sides: Sequence[str], round_: int) -> list[str]:
    """The order of sides in a round: it starts with another one each time, and runs both ways.

    So no side always follows the same one, or finds the caches as another leaves them.
    """
    start = (round_ // 2) % len(sides)
    order = [*sides[start:], *sides[:start]]
    return order if round_ % 2 == 0 else order[::-1]


def warm_up(one: Pass, clock: Clock, seconds: float) -> list[float]:
    """Run until three passes in a row differ by less than 10%; at most 12 passes, or ``seconds``.

    Returns the seconds of each pass; there is at least one.
    """
    lasted: list[float] = []
    while len(lasted) < WARM_UP_PASSES and (sum(lasted) < seconds or not lasted):
        begin = clock.mark()
        one(clock)
        end = clock.mark()
        clock.settle()
        lasted.append(clock.between(begin, end))
        last = lasted[-_ALIKE:]
        if len(last) == _ALIKE and max(last) <= (1 + _STABLE) * min(last):
            break
    return lasted


def _sample(one: Pass, clock: Clock, repeats: int) -> dict[str, float]:
    """The mean seconds of a step in each phase, over some passes."""
    spans = [one(clock) for _ in range(repeats)]
    clock.settle()
    total: dict[str, float] = defaultdict(float)
    steps: dict[str, int] = defaultdict(int)
    for marks in spans:
        for phase, (first, last, count) in marks.items():
            total[phase] += clock.between(first, last)
            steps[phase] += count
    return {phase: total[phase] / steps[phase] for phase in total}
