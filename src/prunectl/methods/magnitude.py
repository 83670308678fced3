"""Magnitude: prune the smallest weights, without data, with the interface of the other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunectl.lazy import torch
from prunectl.methods import checks
from prunectl.methods.spec import Memory, MethodSpec, Needs, Pruned
from prunectl.methods.target import Target, choose
from prunectl.pattern import Scope

if TYPE_CHECKING:
    from torch import Tensor


def magnitude(weight: Tensor, target: Target) -> Pruned:
    """Prune the weights of smallest ``|W_ij|``.

    Args:
        weight: float [out, in], finite.
        target: how many weights to prune, and which are compared with each other.

    Returns:
        The weight in fp32 with survivors unchanged, and the mask.

    Raises:
        ValueError: not a matrix, a target that does not fit, or NaN or Inf.
    """
    weight = checks.matrix("weight", weight)
    mask = choose(weight.abs(), target)
    return Pruned(torch.where(mask, weight, 0.0), mask)


METHOD = MethodSpec(
    name="magnitude",
    prune=lambda weight, _, target, *, damping: magnitude(weight, target),
    needs=Needs.NOTHING,
    updates=False,
    scope=Scope.GLOBAL,
    memory=Memory(squares=0, matrices=6),
    help="prunes the smallest weights; needs no data",
    card="one-shot magnitude pruning",
)
