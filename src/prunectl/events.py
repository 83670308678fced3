"""Progress as data: events that long functions send to a caller.

A caller passes ``on_event``; the command line renders the events, a library user may ignore them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A long step begins; ``total`` is in bytes, or in ``unit`` (a plural)."""

    phase: str
    total: int
    unit: str = "bytes"


@dataclass(frozen=True, slots=True)
class Advanced:
    """``count`` more of the phase is done; ``item`` is the tensor or file just worked on."""

    phase: str
    count: int
    item: str = ""


@dataclass(frozen=True, slots=True)
class PhaseDone:
    """The phase is over."""

    phase: str


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the user about a decision or a finding; ``warning`` if it may matter."""

    text: str
    warning: bool = False


Event = PhaseStarted | Advanced | PhaseDone | Note
OnEvent = Callable[[Event], None]


def ignore_events(event: Event) -> None:
    """The default listener."""
