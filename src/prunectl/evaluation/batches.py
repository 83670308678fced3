"""Samples run through a model in batches, fewer at once where memory is full; and shared out where
``accelerate launch`` or ``torchrun`` has started several processes, each with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from prunectl.data.errors import first_line
from prunectl.device import is_out_of_memory
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted
from prunectl.parallel.launched import launched

if TYPE_CHECKING:
    import torch

    from prunectl.data.tokens import Ids

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
    """``work`` on ``size`` items at a time; where memory is full, on half as many, and so on.

    Args:
        work: takes items and returns a result for each, in order.
        phase: name of the progress. unit: what it counts.

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


@contextmanager
def refusals(phase: str) -> Iterator[None]:
    """Report what a model's own code finds wrong with its inputs, in its words.

    Raises:
        EvaluationFailed: it does, as T5's does, which classifies by a token that the tokenizer may
            lack.
    """
    try:
        yield
    except ValueError as error:
        first = first_line(error)
        raise EvaluationFailed(
            phase,
            f"transformers cannot run the model on these data: {first}",
            hint="it may be the tokenizer: put the model's own next to the weights",
        ) from error


def padded(model: Any, rows: Sequence[Ids]) -> tuple[torch.Tensor, ...]:
    """Rows of tokens as one batch, on the model's device: ids, and the mask (0 = padding).

    Both are int64 [rows, tokens]. Under the mask, the padding token matters only to models that
    count positions from it; where the model names none, it is 0.
    """
    import torch

    padding = getattr(model.config, "pad_token_id", None)
    width = max(map(len, rows))
    ids = np.full((len(rows), width), padding if isinstance(padding, int) else 0, np.int64)
    mask = np.zeros_like(ids)
    for at, one in enumerate(rows):
        ids[at, : len(one)] = one
        mask[at, : len(one)] = 1
    device = next(model.parameters()).device
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def tell_unshared(on_event: OnEvent, *, trains: bool) -> None:
    """Warn where each of several processes does all of the work: only metrics that train share it
    out."""
    rank, count = launched()
    if count > 1 and not rank and not trains:
        text = f"each of the {count} processes does all of it: only training is shared out"
        on_event(Note(text, warning=True))


def shared(items: Sequence[One], work: Callable[[Sequence[One]], Sequence[Result]]) -> list[Result]:
    """``work`` on the items, each process on its share; every process gets all results, in order.

    Args:
        work: takes items and returns a result for each, in order.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(work(items))
    rank, count = dist.get_rank(), dist.get_world_size()
    parts: list[list[Result]] = [[] for _ in range(count)]
    dist.all_gather_object(parts, list(work(items[rank::count])))
    return [parts[index % count][index // count] for index in range(len(items))]
