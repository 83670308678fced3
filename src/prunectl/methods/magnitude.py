"""Magnitude: prune the smallest weights, without data, with the interface of the other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunectl.lazy import torch
from prunectl.methods import checks
from prunectl.methods.goal import MatrixGoal, choose
from prunectl.methods.spec import Memory, MethodSpec, Needs, Pruned
from prunectl.pattern import Scope

if TYPE_CHECKING:
    from torch import Tensor


def magnitude(weight: Tensor, goal: MatrixGoal) -> Pruned:
    """Prune the weights of smallest ``|W_ij|``.

    Args:
        weight: float [out, in], finite.
        goal: how many weights to prune, and which are compared with each other.

    Returns:
        The weight in fp32 with survivors unchanged, and the mask.

    Raises:
        ValueError: not a matrix, a goal that does not fit, or NaN or Inf.
    """
    weight = checks.matrix("weight", weight)
    mask = choose(weight.abs(), goal)
    return Pruned(torch.where(mask, weight, 0.0), mask)


METHOD = MethodSpec(
    name="magnitude",
    prune=lambda weight, _, goal, *, damping: magnitude(weight, goal),
    needs=Needs.NOTHING,
    updates=False,
    scope=Scope.GLOBAL,
    memory=Memory(squares=0, matrices=6),
    help="prunes the smallest weights; needs no data",
    card="one-shot magnitude pruning",
)
