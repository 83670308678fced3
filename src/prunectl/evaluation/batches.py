"""Samples through a model in batches, fewer at once where memory is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from prunectl.device import is_out_of_memory
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted

One = TypeVar("One")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[One],
    size: int,
    work: Callable[[Sequence[One]], Sequence[Result]],
    *,
    phase: str,
    unit: str,
    on_event: OnEvent,
) -> list[Result]:
    """``work`` on ``size`` items at a time; half as many, and so on, while memory does not suffice.

    Args:
        work: takes items, and gives a result for each, in order.
        phase: what the progress is called; unit: what it counts.

    Raises:
        RuntimeError, MemoryError: there is no memory for a single one.
    """
    import torch

    on_event(PhaseStarted(phase, len(items), unit))
    found: list[Result] = []
    while len(found) < len(items):
        batch = items[len(found) : len(found) + size]
        full = False
        try:
            found += work(batch)
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            full = True  # what the exception holds must be gone before the next try
        if full:
            size = len(batch) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            on_event(Note(f"memory is full: {size} {unit} at once from here on", warning=True))
            continue
        on_event(Advanced(phase, len(batch)))
    on_event(PhaseDone(phase))
    return found
