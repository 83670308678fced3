"""Mask and weights together, by ADMM on the layer's least squares (after ALPS, arXiv 2406.07831).

    min over W of tr((W - W0) H (W - W0)^T)   subject to W having the zeros of the goal

with a copy D of W that has the zeros, multipliers V, and a penalty rho that ties W to D:

    W = (W0 H - V + rho D) (H + rho I)^-1
    D = W + V / rho, with its lowest weights zeroed as the goal says
    V = V + rho (W - D)

H is damped, and scaled to a diagonal of 1: a weight is then compared by its share in the outputs,
as in Wanda. One eigendecomposition of H serves every rho. rho grows while the support of D still
changes, faster the more it changes; once the support is stable, conjugate gradients find the best
weights on it. The change is measured as the share of the kept weights that are new: half of the
difference that ALPS compares with the same bounds, so rho grows more slowly here.

Weights that are zero are pruned first and stay zero; then those of inputs that never fired (0 on
the diagonal of H), the smallest first: pruning either costs nothing. Kept ones of either kind are
unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl.lazy import torch
from prunectl.methods import checks
from prunectl.methods.factor import RAISES, SingularHessian, woken
from prunectl.methods.goal import MatrixGoal, check_goal, choose, costless, ranked
from prunectl.methods.products import linear
from prunectl.methods.refine import ITERATIONS, descend, gains
from prunectl.methods.spec import Memory, MethodSpec, Needs, Pruned
from prunectl.pattern import Scope

if TYPE_CHECKING:
    from torch import Tensor

FIRST_PENALTY = 0.1
"""Initial rho, relative to a diagonal of 1."""

EVERY = 3
"""Steps between two checks of the support, with one rho and so one inverse."""

GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""(share of the support that is new, growth of rho if the share was larger)."""


def admm(
    weight: Tensor,
    hessian: Tensor,
    goal: MatrixGoal,
    *,
    damping: float = 0.01,
    iterations: int = 300,
) -> Pruned:
    """Prune to a mask and weights that are chosen together.

    Args:
        weight: float [out, in], finite.
        hessian: float [in, in], ``2/n * sum x x^T``.
        goal: how many weights to prune, and which are compared with each other.
        damping: added to the diagonal, as a share of its mean; raised tenfold repeatedly while H
            has negative eigenvalues.
        iterations: maximum steps of ADMM; the support is usually stable after 30 to 50.

    Returns:
        The new weight in fp32, its mask, and the damping used. Its output error, by the hessian
        without damping, is never above that of scaled magnitudes (Wanda's score) on their support.

    Raises:
        ValueError: shapes that do not fit, or NaN or Inf.
        SingularHessian: no damping helps.
    """
    weight = checks.matrix("weight", weight)
    hessian = checks.second_moments(hessian, weight)
    check_goal(goal, *weight.shape)
    checks.share(damping)
    diagonal, dead = woken(hessian)
    dense = weight.masked_fill(dead, 0.0)
    free = costless(weight, dead)
    spectrum = decompose(hessian, diagonal, damping)
    scaled = dense * spectrum.scale
    first = choose(ranked(scaled.abs(), free), goal)
    start = torch.where(first, dense, 0.0)
    moved, mask = _alternate(scaled, spectrum, goal, first, free, iterations)
    found = moved.div_(spectrum.scale)
    pull = spectrum.damping * float(diagonal.mean())
    damping, raised = spectrum.damping, spectrum.raised
    del spectrum, scaled
    best = descend(dense, found, _support(mask, free), hessian, pull, ITERATIONS)
    best = torch.where((gains(dense, found, best, hessian) > 0)[:, None], best, found)
    if float(gains(dense, start, best, hessian).sum()) < 0:
        best, mask = start, first
    if free is not None:
        best = torch.where(mask & dead, weight + 0.0, best)
    return Pruned(best, mask, damping, raised, int(dead.sum()))


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues and -vectors of the damped, scaled second moments.

    Attributes:
        values: fp32 [in], at least 0.
        vectors: fp32 [in, in], in the columns.
        scale: fp32 [in], square root of the damped diagonal; H is divided by it on both sides.
        damping: the one that sufficed.
        raised: how often it was raised.
    """

    values: Tensor
    vectors: Tensor
    scale: Tensor
    damping: float
    raised: int


def decompose(hessian: Tensor, diagonal: Tensor, damping: float) -> Spectrum:
    """Damp, scale and diagonalize ``hessian`` fp32 [in, in], with its diagonal replaced, positive.

    Raises:
        SingularHessian: no tried damping makes it positive semidefinite.
    """
    mean = diagonal.mean()
    for raised in range(RAISES + 1):
        damped = hessian.clone()
        damped.diagonal().copy_(diagonal + damping * mean)
        scale = damped.diagonal().sqrt()
        found = _eigen(damped.div_(scale).div_(scale[:, None]))
        # rounding alone puts zero eigenvalues this far below zero
        if found is not None and float(found[0][0]) >= -1e-5 * float(found[0][-1]):
            return Spectrum(found[0].clamp_(min=0), found[1], scale, damping, raised)
        tried, damping = damping, 10 * damping or 0.001
    raise SingularHessian(tried)


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues in order, and vectors; None if the decomposition fails."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it did not converge
        return None
    return (values, vectors) if bool(vectors.isfinite().all()) else None


def _support(mask: Tensor, free: Tensor | None) -> Tensor:
    """The mask without weights that are zero: these are not kept, even if the mask keeps them."""
    return mask if free is None else mask & ~free.isneginf()


def _alternate(
    dense: Tensor,
    spectrum: Spectrum,
    goal: MatrixGoal,
    mask: Tensor,
    free: Tensor | None,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Run ADMM on scaled weights [out, in] until the support is stable.

    Args:
        mask: the initial mask.
        free: from :func:`prunectl.methods.goal.costless`.

    Returns:
        D, and its mask.
    """
    values, vectors = spectrum.values, spectrum.vectors
    wanted = linear(dense, linear(vectors * values, vectors))
    copy, multipliers = torch.where(mask, dense, 0.0), torch.zeros_like(dense)
    penalty, seen, kept = FIRST_PENALTY, mask, max(int(mask.sum()), 1)
    for step in range(1, iterations + 1):
        if step % EVERY == 1:  # rho changes only then
            inverse = linear(vectors / (values + penalty), vectors)
        moved = linear((copy * penalty).sub_(multipliers).add_(wanted), inverse)  # symmetric
        proposal = moved.add_(multipliers, alpha=1 / penalty)
        mask = choose(ranked(proposal.abs(), free), goal)
        copy = torch.where(_support(mask, free), proposal, 0.0)
        # W + V/rho - D, times rho: the new multipliers.
        multipliers = proposal.sub_(copy).mul_(penalty)
        if step % EVERY:
            continue
        new = int((mask & ~seen).sum()) / kept
        if not new:
            break
        penalty *= next(growth for share, growth in GROWTH if new > share)
        seen = mask
    return copy, mask


METHOD = MethodSpec(
    name="admm",
    prune=admm,
    needs=Needs.MOMENTS,
    updates=True,
    scope=Scope.TENSOR,
    memory=Memory(squares=6, matrices=17),
    help="like sparsegpt, closer to the optimum, and slower",
    card="one-shot pruning by ADMM (arXiv 2406.07831)",
)
