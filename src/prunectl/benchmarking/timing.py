"""Time sides in interleaved rounds on the device's clock, and compare their samples.

Every side is sampled once in each round, so that drift of the machine affects all sides alike. A
*pass* does the work once and returns the marks between which its phases ran. A sample is the mean
of one or more passes; short passes are repeated, equally often on all sides.
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
    """A clock whose marks are set while work runs, and read in seconds when it is done."""

    def mark(self) -> Any:
        """Mark the point that the work issued so far reaches."""

    def settle(self) -> None:
        """Wait until all work is done."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks. Call ``settle`` first."""


class WallClock:
    """The system's monotonic clock, for work that is finished when a call returns."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def settle(self) -> None:
        """Return at once: no work is pending."""

    def between(self, first: float, last: float) -> float:
        return last - first


class CudaClock:
    """CUDA events on the current stream, which carry the device's time and do not wait for it."""

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
"""Smaller ratios count as no difference, however narrow the interval: models that do the same work
were measured 2% apart, as all rounds of a process find the weights at the same addresses."""
RESAMPLES = 4000
FASTER, SLOWER, UNDECIDED = "faster", "slower", "no difference found"


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, 10th and 90th percentile, and coefficient of variation of ``rounds`` samples."""

    median: float
    p10: float
    p90: float
    cv: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians with its ``LEVEL`` bootstrap interval.

    ``chance`` is the p-value of the two-sided sign test: the probability that equal sides win
    rounds this unequally. It is 0 where samples are not paired by rounds.
    """

    ratio: float
    low: float
    high: float
    chance: float = 0.0

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, or ``no difference found``.

        A difference needs an interval without 1, a ratio of at least ``LEAST_RATIO``, and a
        significant sign test, which assumes nothing about the distribution of samples. With 7
        rounds, the bootstrap alone calls 5 to 6% of equal sides different.
        """
        if self.chance > 1 - LEVEL:
            return UNDECIDED
        if self.low > 1 and self.ratio >= LEAST_RATIO:
            return FASTER
        return SLOWER if self.high < 1 and self.ratio <= 1 / LEAST_RATIO else UNDECIDED


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize one or more samples; the coefficient of variation of a single sample is 0.

    Raises:
        ValueError: there are no samples.
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
    """Median of ``baseline`` / median of ``other``: above 1, ``other`` is faster.

    Sample i of both is from the same round. The bootstrap draws rounds, so that an event that
    slowed a whole round affects both sides.

    Raises:
        ValueError: the numbers of samples differ, or are 0.
    """
    if len(baseline) != len(other) or not baseline:
        raise ValueError("a pair needs a sample of each side in every round")
    drawn = np.random.default_rng(seed).integers(len(other), size=(RESAMPLES, len(other)))
    first, second = np.asarray(baseline, np.float64), np.asarray(other, np.float64)
    chance = sign_test(int((first > second).sum()), int((first < second).sum()))
    return replace(_bootstrap(first, second, drawn, drawn), chance=chance)


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of the sign test; ties are not counted.

    Exact; :func:`scipy.stats.binomtest` differs in the last bits, and refuses 0 tosses.
    """
    tosses, more = wins + losses, max(wins, losses)
    tail = sum(math.comb(tosses, heads) for heads in range(more, tosses + 1))
    return float(min(1.0, 2 * tail / 2**tosses))


def unpaired_ratio(baseline: Sequence[float], other: Sequence[float], seed: int) -> Ratio:
    """As :func:`paired_ratio`, for samples of different runs, whose numbers may differ.

    Raises:
        ValueError: a side has no samples.
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
    """The ratio of medians with its percentile bootstrap interval.

    Args:
        first, second: int64 [resamples, samples], indices of the samples drawn from each side.
    """
    ratios = np.median(baseline[first], axis=1) / np.median(other[second], axis=1)
    # Numbers read from a file of results may overflow.
    around = interval(ratios) or Interval(math.nan, math.nan)
    return Ratio(float(np.median(baseline) / np.median(other)), around.low, around.high)


Span = tuple[Any, Any, int]
"""First mark, last mark, and the number of equal steps between them; see :func:`_sample`."""
Pass = Callable[[Clock], Mapping[str, Span]]

LEAST_SAMPLE = 0.02
"""Least seconds of a sample: timers and the scheduler disturb shorter ones too much."""
WARM_UP_PASSES = 12
WARM_UP_SECONDS = 20.0
WARM_UP_SHARE = 0.2
"""Most time for the warm-up of all sides, as a share of the rounds' time, which it adds to."""
_STABLE_SPREAD = 0.1
_STABLE_PASSES = 3


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one step of each phase, by side and phase, one sample for each round.

    Attributes:
        samples: side -> phase -> samples.
        rounds: number of rounds.
        repeats: number of passes in a sample.
        warm_up: number of passes before the first round, of all sides together.
    """

    samples: dict[str, dict[str, tuple[float, ...]]]
    rounds: int
    repeats: int
    warm_up: int


def pass_of(work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Pass:
    """Make a pass with one phase, ``work``. ``prepare`` runs before it and is not timed."""

    def run(clock: Clock) -> dict[str, Span]:
        prepare()
        begin = clock.mark()
        work()
        return {"work": (begin, clock.mark(), 1)}

    return run


def time_passes(passes: Mapping[str, Pass], clock: Clock, *, rounds: int, seconds: float) -> Timed:
    """Warm every side up until it is stable, then time them in turns.

    Args:
        passes: the pass of each side.
        rounds: number of samples of each side.
        seconds: time for all rounds. If the warm-up shows that they would take longer, fewer rounds
            are run, but at least ``LEAST_ROUNDS``.

    Errors of a pass are passed through.
    """
    least: dict[str, float] = {}
    warm = 0
    for side, one in passes.items():
        durations = warm_up(one, clock, min(WARM_UP_SECONDS, WARM_UP_SHARE * seconds / len(passes)))
        warm += len(durations)
        least[side] = min(durations)
    fastest, per_round = min(least.values()), sum(least.values())
    repeats = max(1, min(1000, math.ceil(LEAST_SAMPLE / max(fastest, 1e-9))))
    affordable = int(seconds / max(per_round * repeats, 1e-9))
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
    """The order of sides in a round: the first side and the direction change between rounds.

    Thus no side always runs on caches that the same other side has filled.
    """
    start = (round_ // 2) % len(sides)
    order = [*sides[start:], *sides[:start]]
    return order if round_ % 2 == 0 else order[::-1]


def warm_up(one: Pass, clock: Clock, seconds: float) -> list[float]:
    """Run passes until three in a row differ by at most 10%, for at most 12 passes or ``seconds``.

    Returns:
        The seconds of each pass; there is at least one.
    """
    durations: list[float] = []
    while len(durations) < WARM_UP_PASSES and (sum(durations) < seconds or not durations):
        begin = clock.mark()
        one(clock)
        end = clock.mark()
        clock.settle()
        durations.append(clock.between(begin, end))
        last = durations[-_STABLE_PASSES:]
        if len(last) == _STABLE_PASSES and max(last) <= (1 + _STABLE_SPREAD) * min(last):
            break
    return durations


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
