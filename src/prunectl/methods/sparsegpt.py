"""SparseGPT: prune column by column and let the columns that follow make up (arXiv 2301.00774).

For a row w of the weight, second moments H of its inputs, and ``U^T U = H^-1`` upper triangular,
pruning w_j and moving the weights after it optimally is, in order of j (equation 3 of the paper,
with ``U_jj^2 = [H_(j:)^-1]_11``, the inverse of H without the inputs that are already fixed)

    error      e_j     = (w_j - pruned(w_j)) / U_jj
    update     w_(j:) -= e_j * U_j,(j:)
    saliency   s_j     = w_j^2 / U_jj^2

The mask is chosen a block of columns at a time, or a group of N:M at a time, on weights that the
columns before have updated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunectl.methods import checks
from prunectl.methods.factor import inverse_factor, wake_dead
from prunectl.methods.pruned import Pruned
from prunectl.methods.target import PerRow, PerTensor, Target, check_target, choose
from prunectl.pattern import NM


def sparsegpt(
    weight: Tensor, hessian: Tensor, target: Target, *, block: int = 128, damping: float = 0.01
) -> Pruned:
    """Prune with one pass of optimal updates.

    Args:
        weight: float [out, in], finite.
        hessian: float [in, in], ``2/n * sum x x^T``. Inputs that never fired (0 on its diagonal)
            get weight 0, and are pruned first.
        target: how many go. Counts are spread over the blocks of columns by cumulative rounding,
            so that their sum is exact; inside a block, the whole block is compared (PerTensor), or
            each of its rows (PerRow).
        block: columns that are chosen together; made a multiple of M for N:M.
        damping: what is added to the diagonal, as a share of its mean; raised tenfold, again and
            again, while H has no factor.

    Returns:
        the updated weight in fp32, its mask, and what damping it took.

    Raises:
        ValueError: shapes that do not fit, NaN or Inf, or a block of no columns.
        SingularHessian: no damping helps.
    """
    weight = checks.matrix("weight", weight)
    hessian = checks.second_moments(hessian, weight).clone()
    check_target(target, *weight.shape)
    checks.share(damping)
    if block < 1:
        raise ValueError(f"a block has at least one column, not {block}")
    if isinstance(target, NM):
        block = max(block // target.m, 1) * target.m
    dead = wake_dead(hessian)
    factor = inverse_factor(hessian, damping)
    # Columns are what is worked on, so they lie in a row of memory each.
    columns = weight.masked_fill(dead, 0.0).T.contiguous()
    mask = torch.empty_like(columns, dtype=torch.bool)
    for start in range(0, len(columns), block):
        end = min(start + block, len(columns))
        own = columns[start:end]
        upper = factor.upper[start:end, start:end]
        part = _part(target, start, end, *weight.shape)
        errors = _prune_block(own, mask[start:end], upper, part)
        columns[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1)
    result = torch.where(mask, columns, 0.0).T.contiguous()
    kept = mask.T.contiguous()
    return Pruned(result, kept, factor.damping, factor.raised, int(dead.sum()))


def _prune_block(columns: Tensor, mask: Tensor, upper: Tensor, target: Target) -> Tensor:
    """Prune one block [columns, out], in place, and fill its mask.

    Returns:
        the errors e_j [columns, out], by which later blocks are updated.
    """
    spread = upper.diagonal()
    step = target.m if isinstance(target, NM) else len(columns)
    errors = torch.empty_like(columns)
    for j in range(len(columns)):
        if j % step == 0:
            scores = (columns[j : j + step] / spread[j : j + step, None]).abs()
            mask[j : j + step] = choose(scores.T, target).T
        errors[j] = torch.where(mask[j], 0.0, columns[j]) / spread[j]
        columns[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
    return errors


def _part(target: Target, start: int, end: int, rows: int, columns: int) -> Target:
    """What of the target falls to the columns from ``start`` to ``end``."""
    if isinstance(target, NM):
        return target

    def before(column: int) -> int:
        return (2 * target.zeros * column + columns) // (2 * columns)

    zeros = before(end) - before(start)
    return PerTensor(zeros) if isinstance(target, PerTensor) else PerRow(zeros)
