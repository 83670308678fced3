"""What becomes of one weight matrix: which weights go, and what the others are then."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunectl.methods.admm import admm
from prunectl.methods.loss import output_error, row_errors
from prunectl.methods.magnitude import magnitude
from prunectl.methods.pruned import Pruned
from prunectl.methods.refine import refine
from prunectl.methods.sparsegpt import sparsegpt
from prunectl.methods.statistics import Gram
from prunectl.methods.target import Target
from prunectl.methods.wanda import wanda
from prunectl.pruning.row_blocks import Ranges, choose_rows
from prunectl.pruning.targets import ByRowBlocks, Goal, Masked
from prunectl.settings import Method


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A pruned matrix.

    Attributes:
        pruned: what the method gave. weight: fp32 [out, in], what it is in the end.
        mask: bool [out, in], True = kept.
        survivors: ``kept`` bit for bit, or ``updated``.
        error, error_before_refine: see :class:`prunectl.pruning.calibrated.CalibratedFacts`.
        by_magnitude: whether there was no input to go by.
        rows: those that follow the pattern; None where all do.
    """

    pruned: Pruned
    weight: torch.Tensor
    mask: torch.Tensor
    survivors: str
    error: float | None
    error_before_refine: float | None
    by_magnitude: bool
    rows: Ranges | None


def stored(done: Done, source: torch.Tensor) -> torch.Tensor:
    """New values in the dtype of the ``source`` [out, in]; what stays as it was keeps its bits."""
    if done.survivors == "kept":
        return torch.where(done.mask.cpu(), source, torch.zeros_like(source))
    # + 0.0: what is rounded to zero is a plain zero, whatever its sign was.
    new = done.weight.cpu().to(source.dtype) + 0.0
    if done.rows is not None:
        new = torch.where(_inside(done.rows, len(source), source.device), new, source)
    return new


def _rows(
    weight: torch.Tensor,
    final: torch.Tensor,
    mask: torch.Tensor,
    gram: Gram | None,
    hessian: torch.Tensor | None,
    zeros: int,
) -> Ranges:
    """The rows that take the pattern, those whose outputs change least, for ``zeros`` zeros."""
    if hessian is not None:
        losses = row_errors(weight, final, hessian)
    else:
        lost = (final - weight).square()
        losses = (lost if gram is None else lost * gram.diagonal().to(lost.device)).sum(1)
    present = (weight == 0).sum(1)
    gone = ((~mask).sum(1) - present).clamp(min=0)
    return choose_rows(losses.cpu().numpy(), gone.cpu().numpy(), zeros - int(present.sum()))


def _inside(rows: Ranges, out: int, device: torch.device) -> torch.Tensor:
    """bool [out, 1]: whether a row is among ``rows``."""
    inside = torch.zeros(out, 1, dtype=torch.bool, device=device)
    for start, stop in rows:
        inside[start:stop] = True
    return inside


_UPDATING = (Method.SPARSEGPT, Method.ADMM)
"""Methods that change the weights that stay."""


def needs_full(method: Method, refine: bool) -> bool:
    """Whether a method needs whole second moments of the inputs, and not their norms only."""
    return refine or method in _UPDATING


@dataclass(frozen=True, slots=True)
class MatrixPruner:
    """Prunes single matrices.

    Attributes:
        method, refine, damping: what is asked for.
        full: whether whole second moments were gathered, so that output errors can be told.
    """

    method: Method
    refine: bool
    damping: float
    full: bool

    def prune(
        self, weight: torch.Tensor, gram: Gram | None, goal: Goal, dtype: torch.dtype
    ) -> Done:
        """Prune one matrix.

        Args:
            weight: fp32 [out, in].
            gram: of its inputs; without one, or with no tokens in it, magnitudes decide.
            goal: which weights go.
            dtype: that it is stored in: the error is told of what is stored.
        """
        gram = gram if gram is not None and gram.tokens else None
        hessian = gram.hessian().to(weight.device) if gram is not None and self.full else None
        pruned = self._chosen(weight, gram, goal)
        final, updates = pruned.weight, gram is not None and self.method in _UPDATING
        before = None
        if self.refine and hessian is not None:
            before = final
            final, updates = refine(weight, final, pruned.mask, hessian, damping=self.damping), True
        rows: Ranges | None = None
        mask = pruned.mask
        if isinstance(goal, ByRowBlocks):
            rows = _rows(weight, final, mask, gram, hessian, goal.zeros)
            inside = _inside(rows, len(weight), weight.device)
            mask, final = mask | ~inside, torch.where(inside, final, weight)
            before = None if before is None else torch.where(inside, before, weight)
        error = error_before = None
        if hessian is not None:
            error = output_error(weight, final.to(dtype).float(), hessian)
            error_before = None if before is None else output_error(weight, before, hessian)
        survivors = "updated" if updates else "kept"
        return Done(pruned, final, mask, survivors, error, error_before, gram is None, rows)

    def _chosen(self, weight: torch.Tensor, gram: Gram | None, goal: Goal) -> Pruned:
        """The weights that go, and what the method makes of the others."""
        if isinstance(goal, Masked):
            mask = goal.mask.to(weight.device)
            return Pruned(torch.where(mask, weight, torch.zeros_like(weight)), mask)
        target = goal.pattern if isinstance(goal, ByRowBlocks) else goal
        return magnitude(weight, target) if gram is None else self._by_method(weight, gram, target)

    def _by_method(self, weight: torch.Tensor, gram: Gram, goal: Target) -> Pruned:
        if self.method is Method.MAGNITUDE:
            return magnitude(weight, goal)
        if self.method is Method.WANDA:
            return wanda(weight, gram.norms().to(weight.device), goal)
        hessian = gram.hessian().to(weight.device)
        if self.method is Method.SPARSEGPT:
            return sparsegpt(weight, hessian, goal, damping=self.damping)
        return admm(weight, hessian, goal, damping=self.damping)
