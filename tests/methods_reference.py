"""Plain references for the pruning mathematics, and layers to run them on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunectl.methods.goal import MatrixGoal, PerRow, PerTensor
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


def keep(scores: np.ndarray, target: MatrixGoal) -> np.ndarray:
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


def precedence(scores: np.ndarray, weight: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """Whole numbers in the order in which weights go: first zeros, then those of dead inputs by
    their magnitude, then the others by their scores."""
    alive = np.broadcast_to(~dead, weight.shape)
    rows = np.stack([alive, np.where(alive, scores, np.abs(weight))], -1).reshape(-1, 2)
    rows = rows.astype(np.float64)
    rows[weight.reshape(-1) == 0] = -1
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(weight.shape)


def shares_of(
    target: MatrixGoal, weight: np.ndarray, dead: np.ndarray, ends: list[int]
) -> list[list[int]]:
    """How many go of each block of columns, by row, or (PerTensor) of all rows together.

    What costs nothing goes where it is, and of the others the counts so far are rounded to
    nearest, half up.
    """
    found = []
    for rows in [weight] if isinstance(target, PerTensor) else [row[None] for row in weight]:
        nothing = (rows == 0) | dead
        free = sorted(
            (rows[i, j] != 0, abs(rows[i, j]), i, j) for i, j in np.argwhere(nothing).tolist()
        )[: target.zeros]
        rest = target.zeros - len(free)
        total = max(int((~nothing).sum()), 1)
        counts = []
        for end in ends:
            seen = int((~nothing[:, :end]).sum())
            gone = sum(j < end for *_, j in free)
            counts.append(gone + (2 * rest * seen + total) // (2 * total))
        found.append([b - a for a, b in zip([0, *counts], counts, strict=False)])
    return found


def sparsegpt_reference(
    weight: Tensor, hessian: Tensor, target: MatrixGoal, block: int, damping: float
) -> tuple[np.ndarray, np.ndarray]:
    """SparseGPT by its definition, in double precision: no Cholesky factor, no blocked updates.

    The inverse of H without the fixed inputs comes from eliminating one input after the other, as
    in optimal brain surgery: [H_(j+1:)^-1] = (H_(j:)^-1 - column row / pivot) without j.
    """
    first = weight.double().numpy()
    w, h = first.copy(), hessian.double().numpy().copy()
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
    ends = [*range(step, len(h), step), len(h)]
    shares = None if isinstance(target, NM) else shares_of(target, first, dead, ends)
    for j in range(len(h)):
        if j % step == 0:
            part = slice(j, min(j + step, len(h)))
            order = precedence(w[:, part] ** 2 / pivots[part], first[:, part], dead[part])
            if shares is None:
                mask[:, part] = keep(order, target)
            elif isinstance(target, PerTensor):
                mask[:, part] = keep(order, PerTensor(shares[0][j // step]))
            else:
                for i, share in enumerate(shares):
                    mask[i : i + 1, part] = keep(order[i : i + 1], PerRow(share[j // step]))
        error = np.where(mask[:, j] & (first[:, j] != 0), 0, w[:, j]) / pivots[j]
        w[:, j:] -= np.outer(error, inverses[j][0])
    return np.where(mask, np.where(dead, first, w), 0), mask


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


def aimed(
    weight: torch.Tensor, x: torch.Tensor, dense: torch.Tensor, damping: float = 0.01
) -> torch.Tensor:
    """The weights that give on x what W gives half of the way from x to the dense model's inputs.

    A token goes less far the more its square exceeds the median. Extra rows pull the weights to W.
    """
    given, x, dense = (one.double() for one in (weight, x, dense))
    moved = dense - x
    squares = x.square().sum(1)
    largest = torch.maximum(squares, moved.square().sum(1))
    wanted = x + 0.5 * moved * (squares.median() / largest).clamp(max=1)[:, None]
    pull = (damping * x.square().sum(0).mean()).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    rows, outputs = torch.cat([x, pull]), torch.cat([wanted @ given.T, pull @ given.T])
    fitted: torch.Tensor = torch.linalg.lstsq(rows, outputs).solution.T
    return fitted.float()
