"""Magnitude: prune the smallest weights, without data, as the other methods do it."""

from __future__ import annotations

import torch
from torch import Tensor

from prunectl.methods import checks
from prunectl.methods.pruned import Pruned
from prunectl.methods.target import Target, choose


def magnitude(weight: Tensor, target: Target) -> Pruned:
    """Prune the weights of smallest ``|W_ij|``.

    Args:
        weight: float [out, in], finite.
        target: how many go, and what is compared with what.

    Returns:
        the weight in fp32 with survivors unchanged, and the mask.

    Raises:
        ValueError: not a matrix, a target that does not fit, or NaN or Inf.
    """
    weight = checks.matrix("weight", weight)
    mask = choose(weight.abs(), target)
    return Pruned(torch.where(mask, weight, 0.0), mask)
