"""What becomes of one weight matrix: which weights go, and what the others are then."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunectl.methods.admm import admm
from prunectl.methods.loss import output_error, row_errors
from prunectl.methods.magnitude import magnitude
from prunectl.methods.pruned import Pruned
from prunectl.methods.refine import gains, refine
from prunectl.methods.sparsegpt import sparsegpt
from prunectl.methods.statistics import Gram
from prunectl.methods.wanda import wanda
from prunectl.pruning.row_blocks import Ranges, choose_rows
from prunectl.pruning.stored_form import Form, unit_of
from prunectl.pruning.targets import ByRowBlocks, Goal, Masked
from prunectl.settings import Method


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A pruned matrix.

    Attributes:
        pruned: what the method gave.
        weight: [out, in], what it is in the end, as it is stored.
        mask: bool [out, in], True = kept.
        survivors: ``kept`` bit for bit, or ``updated``.
        error, error_before_refine: see :class:`prunectl.pruning.calibrated.CalibratedFacts`.
        by_magnitude: whether there was no input to go by.
        rows: those that follow the pattern; None where all do.
        overflowed: rows whose new weights the dtype does not hold, so that they are as they were.
    """

    pruned: Pruned
    weight: torch.Tensor
    mask: torch.Tensor
    survivors: str
    error: float | None
    error_before_refine: float | None
    by_magnitude: bool
    rows: Ranges | None
    overflowed: int = 0


def stored(done: Done, source: torch.Tensor) -> torch.Tensor:
    """New values in the dtype of the ``source`` [out, in]; what stays as it was keeps its bits."""
    if done.survivors == "kept":
        return torch.where(done.mask.cpu(), source, torch.zeros_like(source))
    new = done.weight.cpu()
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
    gone = (~mask & (weight != 0)).sum(1)
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
            dtype: that it is stored in: all that is told of it is of what is stored.
        """
        gram = gram if gram is not None and gram.tokens else None
        hessian = gram.hessian().to(weight.device) if gram is not None and self.full else None
        form = Form(dtype, unit_of(weight))
        weight = weight if form.unit == 1 else weight / form.unit
        pruned = self._chosen(weight, gram, hessian, goal)
        updates = gram is not None and self.method in _UPDATING
        # A weight that is zero stays so, even where there are more of them than were asked for.
        kept = pruned.mask & (weight != 0)
        plain = form.rounded(weight, kept)
        final = form.rounded(pruned.weight, kept)
        held = final.isfinite().all(1)
        final, before = torch.where(held[:, None], final, plain), None
        if self.refine and hessian is not None:
            fitted = refine(weight, pruned.weight, kept, hessian, damping=self.damping)
            fitted, before, updates = form.rounded(fitted, kept), final, True
            # By what is stored: rounding may take more than fitting has won.
            better = gains(weight, form.value(before), form.value(fitted), hessian) > 0
            final, held = torch.where(better[:, None], fitted, before), fitted.isfinite().all(1)
        new, mask, rows = form.value(final), pruned.mask, None
        old = None if before is None else form.value(before)
        if isinstance(goal, ByRowBlocks):
            rows = _rows(weight, new, mask, gram, hessian, goal.zeros)
            inside = _inside(rows, len(weight), weight.device)
            mask, new = mask | ~inside, torch.where(inside, new, weight)
            old = None if old is None else torch.where(inside, old, weight)
        error = error_before = None
        if hessian is not None:
            error = output_error(weight, new, hessian)
            error_before = None if old is None else output_error(weight, old, hessian)
        return Done(
            pruned, final, mask, "updated" if updates else "kept", error, error_before,
            gram is None, rows, int((~held).sum()),
        )  # fmt: skip

    def _chosen(
        self, weight: torch.Tensor, gram: Gram | None, hessian: torch.Tensor | None, goal: Goal
    ) -> Pruned:
        """The weights that go, and what the method makes of the others."""
        if isinstance(goal, Masked):
            mask = goal.mask.to(weight.device)
            return Pruned(torch.where(mask, weight, torch.zeros_like(weight)), mask)
        target = goal.pattern if isinstance(goal, ByRowBlocks) else goal
        if gram is None or self.method is Method.MAGNITUDE:
            return magnitude(weight, target)
        if self.method is Method.WANDA:
            return wanda(weight, gram.norms().to(weight.device), target)
        assert hessian is not None
        method = sparsegpt if self.method is Method.SPARSEGPT else admm
        return method(weight, hessian, target, damping=self.damping)
