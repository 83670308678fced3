"""Plain references for the pruning mathematics, and layers to run them on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunectl.methods.target import PerRow, PerTensor, Target
from prunectl.pattern import NM


def layer(out: int, inputs: int, seed: int, *, rank: int = 0, dead: int = 0) -> tuple[Tensor, ...]:
    """A weight [out, inputs] and activations [tokens, inputs]: a few strong directions, some noise.

    ``rank`` limits the directions and leaves the noise out; ``dead`` inputs never fire.
    """
    g = torch.Generator().manual_seed(seed)
    directions = rank or max(inputs // 6, 1)
    strength = torch.linspace(2, 0.2, directions)
    x = (torch.randn(4 * inputs, directions, generator=g) * strength) @ torch.randn(
        directions, inputs, generator=g
    )
    if not rank:
        x += 0.5 * torch.randn(x.shape, generator=g)
    x *= torch.rand(inputs, generator=g) + 0.1
    if dead:
        x[:, torch.randperm(inputs, generator=g)[:dead]] = 0
    return torch.randn(out, inputs, generator=g) / inputs**0.5, x


def second_moments(x: Tensor) -> Tensor:
    """2/n X^T X in double precision, rounded once."""
    return (2 / len(x) * (x.double().T @ x.double())).float()


def keep(scores: np.ndarray, target: Target) -> np.ndarray:
    """``choose`` by sorting, one comparison group after the other."""
    mask = np.ones(scores.shape, bool)
    if isinstance(target, PerTensor):
        order = np.argsort(scores.reshape(-1), kind="stable")
        mask.reshape(-1)[order[: target.zeros]] = False
    elif isinstance(target, PerRow):
        for row, kept in zip(scores, mask, strict=True):
            kept[np.argsort(row, kind="stable")[: target.zeros]] = False
    else:
        for row, kept in zip(scores, mask, strict=True):
            for first in range(0, len(row), target.m):
                group = range(first, first + target.m)
                ranked = sorted(group, key=lambda j: (-row[j], j))
                kept[ranked[target.n :]] = False
    return mask


def share_of(target: Target, first: int, last: int, columns: int) -> Target:
    """What a block of columns prunes: counts so far, rounded to nearest, half up."""
    if isinstance(target, NM):
        return target
    before, after = (int(np.floor(target.zeros * c / columns + 0.5)) for c in (first, last))
    return type(target)(after - before)


def sparsegpt_reference(
    weight: Tensor, hessian: Tensor, target: Target, block: int, damping: float
) -> tuple[np.ndarray, np.ndarray]:
    """SparseGPT by its definition, in double precision: no Cholesky factor, no blocked updates.

    The inverse of H without the fixed inputs comes from eliminating one input after the other, as
    in optimal brain surgery: [H_(j+1:)^-1] = (H_(j:)^-1 - column row / pivot) without j.
    """
    w, h = weight.double().numpy().copy(), hessian.double().numpy().copy()
    dead = np.diag(h) == 0
    alive = np.diag(h)[~dead]
    h[dead, dead] = alive.mean() if len(alive) else 1.0
    w[:, dead] = 0
    h += damping * np.diag(h).mean() * np.eye(len(h))
    inverse = np.linalg.inv(h)
    inverses = [inverse]  # inverses[j] is of the inputs from j on
    for _ in range(len(h) - 1):
        last = inverses[-1]
        inverses.append(last[1:, 1:] - np.outer(last[1:, 0], last[0, 1:]) / last[0, 0])
    pivots = np.array([i[0, 0] for i in inverses])
    mask = np.ones(w.shape, bool)
    step = target.m if isinstance(target, NM) else block
    for j in range(len(h)):
        if j % step == 0:
            end = min(j + step, len(h))
            part = share_of(target, j, end, len(h))
            mask[:, j:end] = keep(w[:, j:end] ** 2 / pivots[j:end], part)
        error = np.where(mask[:, j], 0, w[:, j]) / pivots[j]
        w[:, j:] -= np.outer(error, inverses[j][0])
    return np.where(mask, w, 0), mask


def optimal(dense: Tensor, mask: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """The minimum of the damped error on every row's support, by solving for it, in fp64."""
    h = hessian.double()
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    best = torch.zeros_like(dense, dtype=torch.float64)
    for row, kept, wanted in zip(best, mask, dense.double(), strict=True):
        s = kept.nonzero().flatten()
        if len(s):
            row[s] = torch.linalg.solve(h[s][:, s], h[s] @ wanted)
    return best


def errors(dense: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    """Output error of every row, one row after the other, in double precision."""
    h = hessian.double()
    return torch.stack([d @ h @ d for d in weight.double() - dense.double()])
