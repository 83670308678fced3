"""Damping of second moments, until they can be factorized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunectl.methods.errors import SingularHessian

RAISES = 6
"""How often a damping is raised tenfold before the second moments are given up."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A Cholesky factor of damped, inverted second moments.

    Attributes:
        upper: fp32 [in, in], upper triangular, ``U^T U = (H + d * mean(diag H) * I)^-1``.
        damping: d, the one that worked.
        raised: how often it was raised.
    """

    upper: Tensor
    damping: float
    raised: int


def wake_dead(hessian: Tensor) -> Tensor:
    """Give inputs that never fired a place on the diagonal of ``hessian`` [in, in], in place.

    They get the mean of the others, so that neither they nor the unit of the inputs matters to the
    damping; 1 if no input fired at all.

    Returns:
        bool [in], True = never fired. Nothing else in their rows and columns is nonzero.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    alive = diagonal[~dead]
    diagonal[dead] = alive.mean() if len(alive) else 1.0
    return dead


def inverse_factor(hessian: Tensor, damping: float) -> Factor:
    """Factorize the inverse of ``hessian`` fp32 [in, in] whose diagonal is positive.

    With J the reversal of all inputs and ``J H J = L L^T``, ``R = J L J`` is upper triangular and
    ``H = R R^T``, so ``U = R^-1``: one Cholesky factorization and one triangular inverse, where
    forming the inverse of H first would lose digits twice.

    Raises:
        SingularHessian: no damping of those tried makes it positive definite.
    """
    mean = hessian.diagonal().mean()
    for raised in range(RAISES + 1):
        flipped = hessian.flip(0, 1)
        flipped.diagonal().add_(damping * mean)
        lower, info = torch.linalg.cholesky_ex(flipped)
        if int(info) == 0:
            one = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True)
            if bool(upper.isfinite().all()):
                return Factor(upper, damping, raised)
        tried, damping = damping, 10 * damping or 0.001
    raise SingularHessian(tried)
