"""Interleaved rounds on the clock of the device, and what their samples say.

Every side runs once in each round, so that drift of the machine affects all sides alike. A *pass*
does the work once and returns the marks between which its phases ran. Short passes are repeated
within a sample, equally often on all sides.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prunectl.benchmarking.settings import LEAST_ROUNDS
from prunectl.evaluation.resampling import LEVEL, Floats, Interval, interval

if TYPE_CHECKING:
    import torch


class Clock(Protocol):
    """Marks are set while work runs, and read as seconds once it is done."""

    def mark(self) -> Any:
        """A point in time, in the order of the work."""

    def settle(self) -> None:
        """Wait until all work is done."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks; ``settle`` has been called since."""


class WallClock:
    """The system's monotonic clock, for work that is finished when a call returns."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def settle(self) -> None:
        """Nothing to wait for."""

    def between(self, first: float, last: float) -> float:
        return last - first


class CudaClock:
    """CUDA events on the current stream, which cost nothing and carry the device's own time."""

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


LEAST_RATIO = 1.03
"""Ratios closer to 1 count as no difference, however narrow the interval: models that do the same
work were measured 2% apart, since the rounds of a process keep the places of weights in memory."""
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
class Ratio:
    """A ratio of medians with its ``LEVEL`` bootstrap interval.

    ``chance`` is the p-value of the two-sided sign test: how likely equal sides win rounds this
    unequally. It is 0 where samples do not come in rounds.
    """

    ratio: float
    low: float
    high: float
    chance: float = 0.0

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower``: an interval without 1, by ``LEAST_RATIO``, and in most rounds.

        The bootstrap alone calls 5 to 6% of equal sides different with 7 rounds. The sign test
        assumes nothing about the distribution of samples.
        """
        if self.chance > 1 - LEVEL:
            return UNDECIDED
        if self.low > 1 and self.ratio >= LEAST_RATIO:
            return FASTER
        return SLOWER if self.high < 1 and self.ratio <= 1 / LEAST_RATIO else UNDECIDED


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize one or more samples; the coefficient of variation of a single sample is 0.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("no samples")
    values = np.asarray(samples, np.float64)
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    mean = float(values.mean())
    cv = spread / mean if mean else 0.0
    return Summary(float(median), float(p10), float(p90), cv, len(values))


def paired_ratio(baseline: Sequence[float], other: Sequence[float], seed: int) -> Ratio:
    """Median of ``baseline`` / median of ``other``: above 1, the other one is faster.

    Sample i of both comes from the same round. The bootstrap draws rounds, so that what slowed
    down a whole round affects both sides.

    Raises:
        ValueError: the counts differ, or there are none.
    """
    if len(baseline) != len(other) or not baseline:
        raise ValueError("a pair needs a sample of each side in every round")
    drawn = np.random.default_rng(seed).integers(len(other), size=(RESAMPLES, len(other)))
    first, second = np.asarray(baseline, np.float64), np.asarray(other, np.float64)
    chance = sign_test(int((first > second).sum()), int((first < second).sum()))
    return replace(_bootstrap(first, second, drawn, drawn), chance=chance)


def sign_test(wins: int, losses: int) -> float:
    """The p-value that a fair coin falls this unequally; ties are not counted.

    :func:`scipy.stats.binomtest` differs in the last bits, and refuses 0 tosses.
    """
    tosses, more = wins + losses, max(wins, losses)
    tail = sum(math.comb(tosses, heads) for heads in range(more, tosses + 1))
    return float(min(1.0, 2 * tail / 2**tosses))


def unpaired_ratio(baseline: Sequence[float], other: Sequence[float], seed: int) -> Ratio:
    """As :func:`paired_ratio`, for samples of different runs, whose counts may differ.

    Raises:
        ValueError: one of them has no samples.
    """
    if not baseline or not other:
        raise ValueError("no samples")
    rng = np.random.default_rng(seed)
    return _bootstrap(
        np.asarray(baseline, np.float64),
        np.asarray(other, np.float64),
        rng.integers(len(baseline), size=(RESAMPLES, len(baseline))),
        rng.integers(len(other), size=(RESAMPLES, len(other))),
    )


def _bootstrap(
    baseline: Floats,
    other: Floats,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> Ratio:
    """The percentile bootstrap, from the indices of the samples drawn."""
    ratios = np.median(baseline[first], axis=1) / np.median(other[second], axis=1)
    # Numbers in a file of old results may overflow.
    around = interval(ratios) or Interval(math.nan, math.nan)
    return Ratio(float(np.median(baseline) / np.median(other)), around.low, around.high)


Span = tuple[Any, Any, int]
"""First mark, last mark, and the number of equal steps between them."""
Pass = Callable[[Clock], Mapping[str, Span]]

LEAST_SAMPLE = 0.02
"""Least seconds of a sample; shorter ones are mostly noise of timers and scheduler."""
WARM_UP_PASSES = 12
WARM_UP_SECONDS = 20.0
WARM_UP_SHARE = 0.2
"""Time for the warm-up of all sides, as a share of the time for the rounds, which it adds to."""
_STABLE = 0.1
_ALIKE = 3


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one step of each phase, by side and phase, one sample for each round.

    Attributes:
        samples: side -> phase -> samples.
        rounds: their number.
        repeats: passes in one sample.
        warm_up: passes before the first round, all sides together.
    """

    samples: dict[str, dict[str, tuple[float, ...]]]
    rounds: int
    repeats: int
    warm_up: int


def pass_of(work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Pass:
    """A pass of one phase named ``work``, after something that is not timed."""

    def run(clock: Clock) -> dict[str, Span]:
        prepare()
        begin = clock.mark()
        work()
        return {"work": (begin, clock.mark(), 1)}

    return run


def time_passes(passes: Mapping[str, Pass], clock: Clock, *, rounds: int, seconds: float) -> Timed:
    """Warm every side up until it is stable, then time them in turns.

    Args:
        passes: by side.
        rounds: samples of each side.
        seconds: for all rounds. Fewer rounds, but at least ``LEAST_ROUNDS``, are planned where the
            warm-up shows that they would take longer.

    Raises whatever a pass raises.
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
    """The order of sides in a round: the first one changes, and so does the direction.

    No side thus always follows the same other side, whose work it finds in the caches.
    """
    start = (round_ // 2) % len(sides)
    order = [*sides[start:], *sides[:start]]
    return order if round_ % 2 == 0 else order[::-1]


def warm_up(one: Pass, clock: Clock, seconds: float) -> list[float]:
    """Run until three passes in a row differ by less than 10%; at most 12 passes, or ``seconds``.

    Returns:
        the seconds of each pass, at least one.
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
    """The mean seconds of a step in each phase, over ``repeats`` passes."""
    spans = [one(clock) for _ in range(repeats)]
    clock.settle()
    total: dict[str, float] = defaultdict(float)
    steps: dict[str, int] = defaultdict(int)
    for marks in spans:
        for phase, (first, last, count) in marks.items():
            total[phase] += clock.between(first, last)
            steps[phase] += count
    return {phase: total[phase] / steps[phase] for phase in total}
