"""Wanda: prune by weights and activations, without an update (arXiv 2306.11695).

    S_ij = |W_ij| * ||x_j||_2

The paper compares the scores within each output row (:class:`PerRow`, or N:M). Weights that are
zero go first, then those of inputs that never fired, which cost nothing, the smallest first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunectl.methods import checks
from prunectl.methods.pruned import Pruned
from prunectl.methods.target import Target, choose, costless, ranked


def wanda(weight: Tensor, norms: Tensor, target: Target) -> Pruned:
    """Prune the weights whose products with their inputs are smallest.

    Args:
        weight: float [out, in], finite.
        norms: float [in], ``||x_j||_2`` over the calibration tokens; only ratios matter.
        target: how many go, and what is compared with what.

    Returns:
        the weight in fp32 with survivors unchanged, and the mask.

    Raises:
        ValueError: shapes that do not fit, or NaN or Inf.
    """
    weight = checks.matrix("weight", weight)
    norms = checks.vector("norms", norms, weight.shape[1]).to(weight.device)
    dead = norms == 0
    mask = choose(ranked(weight.abs() * norms, costless(weight, dead)), target)
    return Pruned(torch.where(mask, weight, 0.0), mask, dead=int(dead.sum()))
