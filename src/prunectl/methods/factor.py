"""Damp second moments until they can be factorized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl.errors import PrunectlError
from prunectl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


RAISES = 6
"""How often a damping is raised tenfold before giving up."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A Cholesky factor of damped, inverted second moments.

    Attributes:
        upper: fp32 [in, in], upper triangular, ``U^T U = (H + d * mean(diag H) * I)^-1``.
        damping: d, the one that sufficed.
        raised: how often it was raised.
    """

    upper: Tensor
    damping: float
    raised: int


def woken(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of ``hessian`` [in, in], with values for inputs that never fired.

    These get the mean of the others, so that neither they nor the unit of the inputs affects the
    damping; 1 if no input fired.

    Returns:
        fp32 [in], all positive; and bool [in], True = never fired: the rest of the row and column
        is zero.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    if not bool(dead.any()):
        return diagonal, dead
    alive = diagonal[~dead]
    return torch.where(dead, alive.mean() if len(alive) else 1.0, diagonal), dead


def inverse_factor(hessian: Tensor, diagonal: Tensor, damping: float) -> Factor:
    """Factorize the inverse of ``hessian`` fp32 [in, in] with another ``diagonal``, all positive.

    With J the reversal of all inputs and ``J H J = L L^T``, ``R = J L J`` is upper triangular and
    ``H = R R^T``, so ``U = R^-1``: one Cholesky factorization and one triangular inverse, where
    forming the inverse of H first would lose digits twice.

    Raises:
        SingularHessian: no tried damping makes it positive definite.
    """
    mean = diagonal.mean()
    for raised in range(RAISES + 1):
        upper = _root(hessian, diagonal + damping * mean)
        if upper is not None:
            # by columns, as LAPACK requires, so that nothing is copied
            inverse = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device).T
            torch.linalg.solve_triangular(upper, inverse, upper=True, out=inverse)
            if bool(inverse.isfinite().all()):
                return Factor(inverse, damping, raised)
            del inverse
        tried, damping = damping, 10 * damping or 0.001
    raise SingularHessian(tried)


def _root(hessian: Tensor, diagonal: Tensor) -> Tensor | None:
    """R, upper triangular, with ``R R^T`` = H with another diagonal; None if there is none."""
    flipped = hessian.flip(0, 1)
    flipped.diagonal().copy_(diagonal.flip(0))
    lower, info = torch.linalg.cholesky_ex(flipped)
    del flipped
    return lower.flip(0, 1) if int(info) == 0 else None


# --- errors ---------------------------------------------------------------------------------------


class SingularHessian(PrunectlError):
    """The second moments cannot be factorized, even with large damping.

    Attributes:
        damping: the last one tried.
    """

    def __init__(self, damping: float) -> None:
        super().__init__(
            "the second moments of a layer's inputs cannot be factorized, "
            f"even with a damping of {damping:g} x their mean",
            hint="the inputs are degenerate: calibrate on more or other data",
        )
        self.damping = damping
