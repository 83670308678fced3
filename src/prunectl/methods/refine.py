"""The best weights for a given mask: least squares on a fixed support.

For every row, with second moments H, a small multiple of the identity for directions that the data
does not determine, and S the row's kept inputs,

    min over w on S of (w - w0) (H + d * mean(diag H) * I) (w - w0)^T

by conjugate gradients preconditioned by the diagonal, for all rows at once: the residual is masked,
so every row stays on its own support. This is the second step of ALPS (arXiv 2406.07831), and works
with any mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunectl.lazy import torch
from prunectl.methods import checks
from prunectl.methods.products import linear

if TYPE_CHECKING:
    from torch import Tensor

ITERATIONS = 60
"""Maximum steps; most layers stop earlier."""

SMALLEST_GAIN = 5e-4
"""Minimum gain of a step, as a share of the error summed over rows, for another to follow."""


def refine(
    dense: Tensor,
    pruned_weight: Tensor,
    mask: Tensor,
    hessian: Tensor,
    *,
    damping: float = 0.01,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Update the kept weights to bring the layer's outputs close to the dense layer's.

    Args:
        dense: float [out, in], the weight with the desired outputs.
        pruned_weight: float [out, in], the start; values outside the mask are ignored.
        mask: bool [out, in], True = kept.
        hessian: float [in, in], ``2/n * sum x x^T``, singular or not.
        damping: share of its mean diagonal that pulls weights to the dense ones. Weights of inputs
            that never fired (0 on its diagonal) are unchanged.
        iterations: maximum steps of conjugate gradients.

    Returns:
        fp32 [out, in], +0.0 outside the mask. No row's output error, by the hessian without
        damping, increases: a row without improvement is unchanged.

    Raises:
        ValueError: shapes that do not fit, a mask that is not bool, or NaN or Inf.
    """
    dense, start = checks.matrix("dense weight", dense), checks.matrix("weight", pruned_weight)
    checks.same_shape("weight", start, dense)
    checks.same_shape("mask", mask, dense)
    if mask.dtype is not torch.bool:
        raise ValueError(f"a mask is bool, not {mask.dtype}")
    hessian = checks.second_moments(hessian, dense)
    checks.share(damping)
    start = torch.where(mask, start, 0.0)
    pull = damping * float(hessian.diagonal().mean())
    moved = descend(dense, start, mask, hessian, pull, iterations)
    better = gains(dense, start, moved, hessian) > 0
    return torch.where(better[:, None], moved, start)


def descend(
    dense: Tensor, start: Tensor, mask: Tensor, hessian: Tensor, pull: float, iterations: int
) -> Tensor:
    """Conjugate gradients on the support, from ``start`` [out, in], without a check of the result.

    Each row has its own step size, in fp64.
    """
    diagonal = hessian.diagonal()
    inverse = torch.where(diagonal > 0, 1 / (diagonal + pull), 0.0)
    weight = start.clone()
    change = dense - start
    residual = _pulled(change, hessian, pull)
    error = float(_dots(change, residual).sum())
    residual.mul_(mask)
    del change
    direction = residual * inverse
    slope = _dots(residual, direction)
    for _ in range(iterations):
        ahead = _pulled(direction, hessian, pull).mul_(mask)
        curvature = _dots(direction, ahead)
        step = torch.where(curvature > 0, slope / curvature, 0.0)
        weight.addcmul_(direction, step[:, None].float())
        gain = float((step * slope).sum())
        error -= gain
        if not gain > SMALLEST_GAIN * error:
            break
        residual.addcmul_(ahead, step[:, None].float(), value=-1)
        scaled = residual * inverse
        before, slope = slope, _dots(residual, scaled)
        ratio = torch.where(before > 0, slope / before, 0.0)
        direction.mul_(ratio[:, None].float()).add_(scaled)
    return weight


def gains(dense: Tensor, old: Tensor, new: Tensor, hessian: Tensor) -> Tensor:
    """The reduction of every row's output error from ``old`` to ``new``: fp64 [out].

    ``e H e^T - f H f^T = (e - f) H (e + f)^T``, in fp64 throughout, so that rounding does not
    decide the comparison; a part at a time.
    """
    gained = torch.zeros(len(dense), dtype=torch.float64, device=dense.device)
    for start in range(0, len(dense), _ROWS):
        rows = slice(start, start + _ROWS)
        change = old[rows].double() - new[rows].double()
        total = old[rows].double() + new[rows].double() - 2 * dense[rows].double()
        for first in range(0, len(hessian), _PART):
            part = slice(first, first + _PART)
            gained[rows] += ((change @ hessian[:, part].double()) * total[:, part]).sum(1)
    return gained


def _pulled(change: Tensor, hessian: Tensor, pull: float) -> Tensor:
    return linear(change, hessian).add_(change, alpha=pull)  # it is symmetric


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of rows, fp64 [out]."""
    return (a * b).sum(1, dtype=torch.float64)


_ROWS = 256
_PART = 1024
