"""The training loop that the demo model and the digit classifiers share."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
AVERAGED = 10
"""Batches that the first and the last loss are averaged over."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer; the digit classifiers have neither vocabulary nor key-value heads."""

    hidden: int = 192
    intermediate: int = 512
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    vocab: int = 2048
    context: int = 256


@dataclass(frozen=True)
class Run:
    """How long and how to train, and where what comes out goes."""

    output: Path
    steps: int
    batch: int
    learning_rate: float
    seed: int
    save_every: int
    shape: Shape


def say(line: str) -> None:
    """Progress: to stderr, as stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


def learning_rate_at(step: int, run: Run) -> float:
    """Linear warm-up over the first 5% of the steps, then half a cosine down to 2% of the peak."""
    warm_up = max(1, run.steps // 20)
    if step < warm_up:
        return run.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, run.steps - warm_up)
    return run.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices only; norms and biases are left alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def shuffled(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of indices below ``count``, without end: each epoch in a new random order.

    A batch may begin in one epoch and end in the next, so that all are full.
    """
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def train(
    model: nn.Module,
    losses: Callable[[], Tensor],
    run: Run,
    save: Callable[[Path], None],
) -> dict[str, float]:
    """Train ``model`` for ``run.steps`` batches, saving a checkpoint folder every so often.

    ``losses`` draws the next batch and returns its mean loss, a float32 scalar. Returns the mean
    loss of the first and of the last batches, and the seconds that it took.
    """
    optimizer = optimizer_for(model)
    model.train()
    history: list[float] = []
    start = time.perf_counter()
    for step in range(run.steps):
        rate = learning_rate_at(step, run)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = losses()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
        done = step + 1
        if done % max(1, run.steps // 100) == 0 or done == run.steps:
            recent = history[-AVERAGED:]
            mean = sum(recent) / len(recent)
            seconds = time.perf_counter() - start
            say(f"step {done}/{run.steps}  loss {mean:.4f}  rate {rate:.2e}  {seconds:.0f} s")
        if run.save_every and done % run.save_every == 0:
            save(run.output / f"checkpoint-{done}")
    model.eval()
    first, last = history[:AVERAGED], history[-AVERAGED:]
    return {
        "first_loss": sum(first) / len(first),
        "last_loss": sum(last) / len(last),
        "training_seconds": time.perf_counter() - start,
    }
