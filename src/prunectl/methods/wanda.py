"""Wanda: prune by weights and activations, without an update (arXiv 2306.11695).

    S_ij = |W_ij| * ||x_j||_2

The paper compares the scores within each output row (:class:`PerRow`, or N:M). Weights that are
zero are pruned first, then those of inputs that never fired, the smallest first; these cost
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunectl.lazy import torch
from prunectl.methods import checks
from prunectl.methods.goal import MatrixGoal, choose, costless, ranked
from prunectl.methods.spec import Memory, MethodSpec, Needs, Pruned
from prunectl.pattern import Scope

if TYPE_CHECKING:
    from torch import Tensor


def wanda(weight: Tensor, norms: Tensor, goal: MatrixGoal) -> Pruned:
    """Prune the weights whose products with their inputs are smallest.

    Args:
        weight: float [out, in], finite.
        norms: float [in], ``||x_j||_2`` over the calibration tokens; only ratios matter.
        goal: how many weights to prune, and which are compared with each other.

    Returns:
        The weight in fp32 with survivors unchanged, and the mask.

    Raises:
        ValueError: shapes that do not fit, or NaN or Inf.
    """
    weight = checks.matrix("weight", weight)
    norms = checks.vector("norms", norms, weight.shape[1]).to(weight.device)
    dead = norms == 0
    mask = choose(ranked(weight.abs() * norms, costless(weight, dead)), goal)
    return Pruned(torch.where(mask, weight, 0.0), mask, dead=int(dead.sum()))


METHOD = MethodSpec(
    name="wanda",
    prune=lambda weight, norms, goal, *, damping: wanda(weight, norms, goal),
    needs=Needs.NORMS,
    updates=False,
    scope=Scope.ROW,
    memory=Memory(squares=0, matrices=7),
    help="prunes the smallest products of weight and input norm",
    card="one-shot pruning by Wanda (arXiv 2306.11695)",
)
