"""Clocks: marks are set while work runs, and read as seconds once it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


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
