"""SparseGPT: prune column by column, and compensate in later columns (arXiv 2301.00774).

For a row w of the weight, second moments H of its inputs, and ``U^T U = H^-1`` upper triangular,
pruning w_j and updating the weights after it optimally is, in order of j (equation 3 of the paper,
with ``U_jj^2 = [H_(j:)^-1]_11``, the inverse of H without the inputs that are already fixed)

    error      e_j     = (w_j - pruned(w_j)) / U_jj
    update     w_(j:) -= e_j * U_j,(j:)
    saliency   s_j     = w_j^2 / U_jj^2

The mask is chosen a block of columns at a time, or a group of N:M at a time, on weights that
earlier columns have updated. Weights that are zero are pruned first and stay zero; then those of
inputs that never fired (0 on the diagonal of H), the smallest first: pruning either costs nothing.
Kept ones of either kind are unchanged.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

from prunectl.lazy import torch
from prunectl.methods import checks
from prunectl.methods.factor import inverse_factor, woken
from prunectl.methods.goal import (
    MatrixGoal,
    PerRow,
    PerTensor,
    check_goal,
    choose,
    choose_counts,
    costless,
    ranked,
)
from prunectl.methods.spec import Memory, MethodSpec, Needs, Pruned
from prunectl.pattern import NM, Scope

if TYPE_CHECKING:
    from torch import Tensor


def sparsegpt(
    weight: Tensor, hessian: Tensor, goal: MatrixGoal, *, block: int = 128, damping: float = 0.01
) -> Pruned:
    """Prune with one pass of optimal updates.

    Args:
        weight: float [out, in], finite.
        hessian: float [in, in], ``2/n * sum x x^T``.
        goal: how many weights to prune. Weights that cost nothing are pruned in any column; the
            rest of the count is distributed over the blocks of columns by cumulative rounding, so
            that the sum is exact. Within a block, all weights are compared (PerTensor), or those of
            each row (PerRow).
        block: columns whose mask is chosen together; rounded to a multiple of M for N:M.
        damping: added to the diagonal, as a share of its mean; raised tenfold repeatedly while H
            has no factor.

    Returns:
        The updated weight in fp32, its mask, and the damping used.

    Raises:
        ValueError: shapes that do not fit, NaN or Inf, or a block of no columns.
        SingularHessian: no damping helps.
    """
    weight = checks.matrix("weight", weight)
    hessian = checks.second_moments(hessian, weight)
    check_goal(goal, *weight.shape)
    checks.share(damping)
    if block < 1:
        raise ValueError(f"a block needs at least one column, not {block}")
    if isinstance(goal, NM):
        block = max(block // goal.m, 1) * goal.m
    diagonal, dead = woken(hessian)
    free = costless(weight, dead)
    quotas = _quotas(goal, free, block, weight.shape[1])
    factor = inverse_factor(hessian, diagonal, damping)
    # transposed, so that each column is contiguous
    columns = weight.masked_fill(dead, 0.0).T.contiguous()
    mask = torch.empty_like(columns, dtype=torch.bool)
    for start, quota in zip(range(0, len(columns), block), quotas, strict=True):
        end = min(start + block, len(columns))
        upper = factor.upper[start:end, start:end]
        part = None if free is None else free[:, start:end]
        errors = _prune_block(columns[start:end], mask[start:end], upper, quota, part)
        columns[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1)
    kept = mask.T.contiguous()
    result = torch.where(mask, columns, 0.0).T.contiguous()
    if free is not None:
        as_it_was = dead | (weight == 0)
        result = torch.where(kept & as_it_was, weight + 0.0, result)
    return Pruned(result, kept, factor.damping, factor.raised, int(dead.sum()))


Quota: TypeAlias = "MatrixGoal | Tensor"
"""The part of the goal for a block of columns; int64 [out] are counts of each row."""


def _prune_block(
    columns: Tensor, mask: Tensor, upper: Tensor, quota: Quota, free: Tensor | None
) -> Tensor:
    """Prune one block [columns, out], in place, and fill its mask.

    Args:
        free: [out, columns], from :func:`costless`, of the block.

    Returns:
        The errors e_j [columns, out], by which later blocks are updated.
    """
    spread = upper.diagonal()
    step = quota.m if isinstance(quota, NM) else len(columns)
    errors = torch.empty_like(columns)
    kept = mask if free is None else torch.empty_like(mask)
    for j in range(len(columns)):
        if j % step == 0:
            group = slice(j, j + step)
            saliency = (columns[group] / spread[group, None]).abs().T
            part = None if free is None else free[:, group]
            mask[group] = _choose(ranked(saliency, part), quota).T
            if part is not None:  # a zero is not kept, even if the mask keeps it
                kept[group] = mask[group] & ~part.T.isneginf()
        errors[j] = torch.where(kept[j], 0.0, columns[j]) / spread[j]
        columns[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
    return errors


def _choose(scores: Tensor, quota: Quota) -> Tensor:
    return (
        choose_counts(scores, quota) if isinstance(quota, torch.Tensor) else choose(scores, quota)
    )


def _quotas(goal: MatrixGoal, free: Tensor | None, block: int, columns: int) -> list[Quota]:
    """The part of the goal for each block of columns.

    Args:
        free: [out, in], from :func:`costless`; None if every weight costs something.
    """
    ends = [*range(block, columns, block), columns]
    if isinstance(goal, NM):
        return [goal] * len(ends)
    if free is not None:
        return _uneven(goal, free, ends)
    before = [(2 * goal.zeros * end + columns) // (2 * columns) for end in (0, *ends)]
    return [type(goal)(b - a) for a, b in itertools.pairwise(before)]


def _uneven(goal: PerTensor | PerRow, free: Tensor, ends: list[int]) -> list[Quota]:
    """:func:`_quotas` with weights that cost nothing: these, and a share of the others."""
    costing = free >= 0
    # if more weights cost nothing than are to be pruned, only these are pruned
    first = ~choose(torch.where(costing, math.inf, free), goal)
    everything = isinstance(goal, PerTensor)
    gone, left = (_up_to(flags, ends, everything) for flags in (first & ~costing, costing))
    rest, total = goal.zeros - gone[:, -1:], left[:, -1:].clamp(min=1)
    before = gone + (2 * rest * left + total) // (2 * total)
    parts = before.diff(dim=1, prepend=torch.zeros_like(rest)).T
    return [PerTensor(int(part)) if everything else part for part in parts]


def _up_to(flags: Tensor, ends: list[int], everything: bool) -> Tensor:
    """The number of True in the columns before each end: int64 [out, ends], or [1, ends]."""
    counts = flags.cumsum(1)[:, [end - 1 for end in ends]]
    return counts.sum(0, keepdim=True) if everything else counts


METHOD = MethodSpec(
    name="sparsegpt",
    prune=sparsegpt,
    needs=Needs.MOMENTS,
    updates=True,
    scope=Scope.TENSOR,
    memory=Memory(squares=4, matrices=9),
    help="chooses by second moments of the inputs; updates the kept weights",
    card="one-shot pruning by SparseGPT (arXiv 2301.00774)",
)
