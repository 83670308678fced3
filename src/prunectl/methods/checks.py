"""Checks of inputs that would otherwise give silent nonsense."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunectl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def matrix(name: str, value: Tensor) -> Tensor:
    """A finite, real matrix, as fp32.

    Raises:
        ValueError: not 2-D, not of floats, or NaN or Inf among them.
    """
    if value.ndim != 2:
        raise ValueError(f"{name} must be [out, in], not {list(value.shape)}")
    return _finite(name, value)


def vector(name: str, value: Tensor, length: int) -> Tensor:
    """Finite statistics of ``length`` inputs, as fp32.

    Raises:
        ValueError: another shape, not of floats, negative, or NaN or Inf among them.
    """
    if value.shape != (length,):
        raise ValueError(f"{name} is of shape [{length}], not {list(value.shape)}")
    value = _finite(name, value)
    if bool((value < 0).any()):
        raise ValueError(f"{name} holds negative values")
    return value


def second_moments(hessian: Tensor, weight: Tensor) -> Tensor:
    """Finite second moments of the inputs of ``weight`` [out, in], as fp32 [in, in].

    Raises:
        ValueError: another shape or device, not of floats, NaN or Inf among them, or a negative
            diagonal.
    """
    inputs = weight.shape[1]
    if hessian.shape != (inputs, inputs):
        raise ValueError(
            f"the hessian of a weight {list(weight.shape)} is of shape [{inputs}, {inputs}], "
            f"not {list(hessian.shape)}"
        )
    if hessian.device != weight.device:
        raise ValueError(f"weight is on {weight.device} and its hessian on {hessian.device}")
    hessian = _finite("hessian", hessian)
    if bool((hessian.diagonal() < 0).any()):
        raise ValueError("hessian has negative values on its diagonal")
    return hessian


def same_shape(name: str, value: Tensor, weight: Tensor) -> None:
    """Check that ``value`` has the shape of ``weight``.

    Raises:
        ValueError: it has another shape.
    """
    if value.shape != weight.shape:
        raise ValueError(
            f"{name} {list(value.shape)} does not have the weight's shape {list(weight.shape)}"
        )


def share(damping: float) -> None:
    """Check that ``damping`` is finite and not negative.

    Raises:
        ValueError: it is negative, infinite or NaN.
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be a share of the mean diagonal, 0 or more, not {damping}")


def _finite(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise ValueError(f"{name} is of floats, not {value.dtype}")
    value = value.to(torch.float32)
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} holds NaN or Inf")
    return value
