"""Interleaved rounds: every side runs once in each, so that drift of the machine hits all of them.

A *pass* does the work once and returns the marks between which its phases ran. Short passes are
repeated within a sample, the same number of times on all sides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunectl.benchmarking.clocks import Clock
from prunectl.benchmarking.statistics import LEAST_ROUNDS

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
