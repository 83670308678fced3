"""The number of weights to prune, and their choice: the lowest scores, counted exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl.lazy import torch
from prunectl.pattern import NM

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PerTensor:
    """Prune exactly ``zeros`` weights of the matrix."""

    zeros: int


@dataclass(frozen=True, slots=True)
class PerRow:
    """Prune exactly ``zeros`` weights of every row."""

    zeros: int


MatrixGoal = PerTensor | PerRow | NM


def choose(scores: Tensor, goal: MatrixGoal) -> Tensor:
    """The mask that keeps the highest scores.

    Args:
        scores: float [out, in], higher = keep; Inf of both signs are allowed.
        goal: the number to prune. Of equal scores, counts prune the lower row-major index first,
            and a group of N:M keeps the lower index.

    Returns:
        bool [out, in], True = kept: exactly ``zeros`` are False in the matrix or in every row, or
        exactly N of every M are True.

    Raises:
        ValueError: NaN, not a matrix, more zeros than weights, or rows whose length is not a
            multiple of M.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [out, in], not {list(scores.shape)}")
    check_goal(goal, scores.shape[0], scores.shape[1])
    if bool(scores.isnan().any()):
        raise ValueError("scores hold NaN, which has no order")
    if isinstance(goal, NM):
        return _grouped(scores, goal)
    if isinstance(goal, PerRow):
        return _lowest_pruned(scores, goal.zeros)
    return _lowest_pruned(scores.reshape(1, -1), goal.zeros).reshape(scores.shape)


def costless(weight: Tensor, dead: Tensor) -> Tensor | None:
    """Ranks of weights that cost nothing to prune, below all others; zero weights are lowest.

    Args:
        weight: fp32 [out, in], finite.
        dead: bool [in], True = the input never fired.

    Returns:
        fp32 [out, in]: -Inf where the weight is zero; below 0 where its input is dead, in the order
        of magnitudes; 0 elsewhere. None if 0 everywhere.
    """
    zero = weight == 0
    if not bool(dead.any()) and not bool(zero.any()):
        return None
    # the bits of floats are in the order of their magnitudes; the sign reverses it
    codes = weight.abs().view(torch.int32)
    below = (_LARGEST - codes + _SIGN).view(torch.float32)
    return torch.where(dead, below, 0.0).masked_fill(zero, -math.inf)


_LARGEST = 0x7F7FFFFF
"""Bits of the largest finite fp32."""
_SIGN = -(1 << 31)


def ranked(saliency: Tensor, free: Tensor | None) -> Tensor:
    """Saliencies [out, in], at least 0, with the ranks of :func:`costless` weights below them."""
    return saliency if free is None else torch.where(free < 0, free, saliency)


def check_goal(goal: MatrixGoal, rows: int, columns: int) -> None:
    """Check that a matrix [rows, columns] can follow ``goal``.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(goal, NM):
        if not 0 < goal.n <= goal.m or columns % goal.m:
            raise ValueError(f"rows of {columns} weights cannot follow {goal}")
        return
    room = columns if isinstance(goal, PerRow) else rows * columns
    if not 0 <= goal.zeros <= room:
        raise ValueError(f"{goal.zeros} zeros do not fit into {room} weights")


def choose_counts(scores: Tensor, zeros: Tensor) -> Tensor:
    """The mask that prunes the ``zeros`` [out] lowest ``scores`` [out, in] of each row.

    Of equal scores, the lower index is pruned first.
    """
    order = scores.sort(dim=1, stable=True).indices
    gone = torch.arange(scores.shape[1], device=scores.device) < zeros[:, None]
    return torch.empty_like(gone).scatter_(1, order, ~gone)


def _lowest_pruned(scores: Tensor, zeros: int) -> Tensor:
    """Prune the ``zeros`` lowest scores of every row; of equal ones the lower index."""
    if zeros == 0 or scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    cut = _lowest(scores, zeros)
    mask = scores > cut
    # the remaining zeros are among the weights equal to the cut, and nearly always are all of these
    left = scores.shape[1] - mask.sum(1) - zeros
    rows = left.nonzero().flatten()
    if len(rows):
        tied = scores[rows] == cut[rows]
        quota = tied.sum(1, keepdim=True) - left[rows, None]
        mask[rows] |= tied & (tied.cumsum(1) > quota)
    return mask


def _lowest(scores: Tensor, k: int) -> Tensor:
    """The k-th lowest score of every row, [out, 1]; numpy finds it many times faster than torch."""
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return torch.kthvalue(scores, k, dim=1, keepdim=True).values
    import numpy as np

    return torch.from_numpy(np.partition(scores.numpy(), k - 1, axis=1)[:, k - 1 : k])


def _grouped(scores: Tensor, goal: NM) -> Tensor:
    """Keep the n highest scores of every m; of equal ones the lower index."""
    groups = scores.reshape(-1, goal.m)
    if goal.m > _COUNTED:
        order = groups.sort(dim=1, descending=True, stable=True).indices[:, : goal.n]
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True)
        return mask.reshape(scores.shape)
    columns = groups.T.contiguous()
    ranks = torch.zeros_like(columns, dtype=torch.int8)
    for j in range(1, goal.m):
        # one comparison gives both ranks: the later one ranks lower unless it is larger
        later = columns[j] > columns[:j]
        ranks[:j] += later
        ranks[j] += (~later).sum(0, dtype=torch.int8)
    return (ranks < goal.n).T.reshape(scores.shape)


_COUNTED = 16
"""Groups up to this size are ranked by comparing all pairs, which beats sorting many short rows."""
