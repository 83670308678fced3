"""The output error of a pruned layer, ``||(W' - W) X||^2``, from the second moments alone.

With ``H = 2/n X X^T`` and ``D = W' - W``, ``tr(D H D^T)`` is twice the squared output error of a
token, averaged over the calibration tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunectl.methods import checks

if TYPE_CHECKING:
    from torch import Tensor


def output_error(dense: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """The squared output error relative to the squared output: ``tr(D H D^T) / tr(W H W^T)``.

    Args:
        dense: float [out, in], W.
        weight: float [out, in], W'.
        hessian: float [in, in], not damped.

    Returns:
        0.0 = no change; 0.0 too if the dense outputs are all zero.

    Raises:
        ValueError: shapes that do not fit, or NaN or Inf.
    """
    dense, weight, hessian = _checked(dense, weight, hessian)
    outputs = float(quadratic(dense, hessian).double().sum())
    if outputs <= 0:
        return 0.0
    return float(quadratic(weight - dense, hessian).double().sum()) / outputs


def row_errors(dense: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    """The squared output error of every output row, ``(D H D^T)_ii``.

    Args:
        dense: float [out, in].
        weight: float [out, in].
        hessian: float [in, in], not damped.

    Returns:
        fp32 [out], absolute: in the units of the hessian times those of the weight squared.

    Raises:
        ValueError: shapes that do not fit, or NaN or Inf.
    """
    dense, weight, hessian = _checked(dense, weight, hessian)
    return quadratic(weight - dense, hessian)


def quadratic(change: Tensor, hessian: Tensor) -> Tensor:
    """``(D H D^T)_ii`` of a change D [out, in] in fp32: [out], at least 0."""
    # H is positive semidefinite: negative results are rounding errors
    return ((change @ hessian) * change).sum(1).clamp_(min=0)


def _checked(dense: Tensor, weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dense, weight = checks.matrix("dense weight", dense), checks.matrix("weight", weight)
    checks.same_shape("weight", weight, dense)
    return dense, weight, checks.second_moments(hessian, dense)
