"""Draws the events of long functions: bars on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.events import Advanced, Event, Note, OnEvent, PhaseDone, PhaseStarted

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL = 60.0
"""Seconds between two lines."""


@contextmanager
def bar_progress(
    tell: Callable[[Note], None], above: Callable[[], RenderableType] | None = None
) -> Iterator[OnEvent]:
    """A bar for each phase: bytes, rate, time left. It is wiped away at the end.

    A phase that has done nothing yet, and the time outside of phases, show a moving bar: reading
    one large tensor, or the modules of a model, takes seconds in which there is nothing to count.

    Args:
        above: what is drawn above the bars, asked for whenever they are drawn.
    """
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from prunectl.cli.output import screen

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[done]}", style="progress.download", markup=False),
        TimeRemainingColumn(compact=True),
    )
    bars: dict[str, TaskID] = {}
    phases: dict[str, _Phase] = {}

    # Notes go through stderr itself, which rich moves above the bars while they are drawn.
    class Bars(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            if above is not None:
                yield above()
            yield from super().get_renderables()

    with Bars(*columns, console=screen(sys.stderr), transient=True) as progress:
        outside = progress.add_task("preparing", total=None, start=False, done="")

        def on_event(event: Event) -> None:
            match event:
                case PhaseStarted(phase, total, unit):
                    progress.update(outside, visible=False)
                    phases[phase] = one = _Phase(total, now := time.monotonic(), now, unit)
                    done = one.words(now)
                    bars[phase] = progress.add_task(phase, total=total, start=False, done=done)
                case Advanced(phase, count) if phase in bars:
                    phases[phase].done += count
                    progress.start_task(bars[phase])
                    progress.update(
                        bars[phase], advance=count, done=phases[phase].words(time.monotonic())
                    )
                case PhaseDone(phase) if phase in bars:
                    progress.remove_task(bars.pop(phase))
                    progress.update(outside, visible=not bars, description="working", refresh=True)
                case Note():
                    tell(event)

        yield on_event


@dataclass(slots=True)
class _Phase:
    total: int
    started: float
    told: float
    unit: str = "bytes"
    done: int = 0

    def words(self, now: float, percent: str = "") -> str:
        """``1.2 GB of 8.0 GB, 1.1 GB/s``; ``12 of 107 windows, 3.4/s``."""
        elapsed = now - self.started
        if self.unit == "bytes":
            amount = f"{numbers.size(self.done)} of {numbers.size(self.total)}"
            rate = numbers.rate(self.done, elapsed)
        else:
            amount = f"{self.done:,} of {self.total:,} {self.unit}"
            rate = f"{numbers.real(self.done / elapsed)}/s" if elapsed > 0 else ""
        return ", ".join(filter(None, (amount + percent, rate)))


class LineProgress:
    """For logs: nothing for short phases, one line a minute for long ones."""

    def __init__(
        self,
        say: Callable[[str], None],
        tell: Callable[[Note], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._tell, self._clock = say, tell, clock
        self._phases: dict[str, _Phase] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseStarted(phase, total, unit):
                now = self._clock()
                self._phases[phase] = _Phase(total, now, now, unit)
            case Advanced(phase, count) if phase in self._phases:
                self._phases[phase].done += count
                self._maybe_say(phase, self._phases[phase])
            case PhaseDone(phase):
                self._phases.pop(phase, None)
            case Note():
                self._tell(event)

    def _maybe_say(self, name: str, phase: _Phase) -> None:
        now = self._clock()
        if now - phase.told < INTERVAL or phase.done >= phase.total:
            return
        phase.told = now
        elapsed = now - phase.started
        left = elapsed * (phase.total - phase.done) / max(phase.done, 1)
        percent = f" ({numbers.share(phase.done / phase.total, 0)})"
        self._say(f"{name}: {phase.words(now, percent)}, {numbers.duration(left)} left")
