"""Pruning of one weight matrix: its mask, and its new weights as they are stored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from prunectl.calibration.targets import ByRowBlocks, Goal, Masked
from prunectl.geometry import Ranges
from prunectl.methods.loss import output_error, row_errors
from prunectl.methods.refine import gains, refine
from prunectl.methods.spec import Needs, Pruned
from prunectl.methods.statistics import Gram
from prunectl.methods.table import DEFAULT, Method
from prunectl.plan.settings import PruneSettings
from prunectl.transform.row_blocks import choose_rows


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """Facts about a pruned matrix.

    Attributes:
        survivors: ``kept`` bit for bit, or ``updated``.
        damping: used by the method, or to refine. raised, dead: see
            :class:`prunectl.methods.spec.Pruned`.
        error, error_before_refine: see :class:`prunectl.calibration.calibrator.CalibratedFacts`.
        by_magnitude: whether no input reached the matrix.
        rows: that follow the pattern; None for all.
        overflowed: rows that keep their old weights because the dtype cannot hold the new ones.
    """

    survivors: str
    damping: float
    raised: int
    dead: int
    error: float | None
    error_before_refine: float | None
    by_magnitude: bool
    rows: Ranges | None
    overflowed: int


def _rows(
    weight: torch.Tensor,
    aimed: torch.Tensor,
    final: torch.Tensor,
    mask: torch.Tensor,
    gram: Gram | None,
    hessian: torch.Tensor | None,
    zeros: int,
) -> Ranges:
    """The rows that take the pattern: those whose outputs suffer least, for ``zeros`` zeros."""
    if hessian is not None:
        losses = row_errors(aimed, final, hessian)
        if aimed is not weight:
            losses = (losses - row_errors(aimed, weight, hessian)).clamp(min=0)
    else:
        lost = (final - weight).square()
        losses = (lost if gram is None else lost * gram.diagonal().to(lost.device)).sum(1)
    present = (weight == 0).sum(1)
    gone = (~mask & (weight != 0)).sum(1)
    return choose_rows(losses.cpu().numpy(), gone.cpu().numpy(), zeros - int(present.sum()))


def _kept(weight: torch.Tensor, pruned: Pruned) -> torch.Tensor:
    """The mask without weights that are zero already: they stay zero."""
    return pruned.mask & (weight != 0)


def inside(rows: Iterable[tuple[int, int]], out: int, device: torch.device) -> torch.Tensor:
    """bool [out, 1]: whether each row is among ``rows``."""
    inside = torch.zeros(out, 1, dtype=torch.bool, device=device)
    for start, stop in rows:
        inside[start:stop] = True
    return inside


def needs_full(method: Method, refine: bool) -> bool:
    """Whether a method needs whole second moments of the inputs, not only their norms."""
    return refine or method.spec.needs is Needs.MOMENTS


def runs_dense(settings: PruneSettings) -> bool:
    """Whether the samples run through the dense model too, because weights are fitted to it."""
    return settings.method.spec.updates or settings.refine or settings.reconstruct


LEAST_DAMPING, MOST_DAMPING = 0.01, 0.2
"""The value of the papers, and the largest that has been measured to help --reconstruct."""


def damping_for(gram: Gram) -> float:
    """The damping before a block is fitted: 2 inputs / tokens, between the least and the most.

    Second moments of few tokens say little about other texts. Damping keeps the new weights nearer
    to the dense ones, and what that loses on the samples, the fit of the block makes good.
    """
    return min(MOST_DAMPING, max(LEAST_DAMPING, 2 * gram.inputs / gram.tokens))


@dataclass(frozen=True, slots=True)
class MatrixPruner:
    """Prunes single matrices.

    Attributes:
        method, refine: as in the settings.
        damping: None for that of :func:`damping_for`.
        full: whether whole second moments were gathered, so that output errors are known.
    """

    method: Method
    refine: bool
    damping: float | None
    full: bool

    def prune(
        self, source: torch.Tensor, gram: Gram | None, goal: Goal
    ) -> tuple[Done, torch.Tensor]:
        """Prune one matrix.

        Args:
            source: [out, in], as it is stored, on the device that computes.
            gram: of its inputs; without one, or without tokens, the default method decides.
            goal: which weights go.

        Returns:
            Facts about the pruned matrix, computed from the values as they will be stored, and
            these values in the dtype of the source. A weight that does not change keeps its bits.
        """
        gram = gram if gram is not None and gram.tokens else None
        hessian = gram.hessian().to(source.device) if gram is not None and self.full else None
        weight = source.float()
        form = DtypeRounding(source.dtype, unit_of(weight))
        weight = weight if form.unit == 1 else weight / form.unit
        damping = self.damping or (damping_for(gram) if gram is not None else 0.0)
        aimed = weight
        if hessian is not None and (self.refine or self.method.spec.updates):
            assert gram is not None
            aimed = self._aimed(weight, gram, damping)
        fitted_to = aimed if self.method.spec.updates else weight
        pruned = self._chosen(fitted_to, gram, hessian, goal, damping)
        final, before, overflowed = source, None, 0
        if gram is not None and self.method.spec.updates:
            final, overflowed = self._updated(weight, pruned, form)
        if self.refine and hessian is not None:
            before = torch.where(_kept(weight, pruned), final, torch.zeros_like(final))
            final, overflowed = self._fitted(aimed, pruned, before, hessian, form, damping)
        survivors = "kept" if final is source else "updated"
        new = torch.where(pruned.mask, final, torch.zeros_like(final))
        del final
        rows = None
        if isinstance(goal, ByRowBlocks):
            value = form.value(new)
            rows = _rows(weight, aimed, value, pruned.mask, gram, hessian, goal.zeros)
            chosen = inside(rows, len(weight), weight.device)
            new = torch.where(chosen, new, source)
            before = None if before is None else torch.where(chosen, before, source)
        error = error_before = None
        if hessian is not None:
            error = output_error(aimed, form.value(new), hessian)
            if before is not None:
                error_before = output_error(aimed, form.value(before), hessian)
        used = pruned.damping if before is None else max(pruned.damping, damping)
        done = Done(
            survivors, used, pruned.raised, pruned.dead, error, error_before,
            gram is None, rows, overflowed,
        )  # fmt: skip
        return done, new

    def _aimed(self, weight: torch.Tensor, gram: Gram, damping: float) -> torch.Tensor:
        """The weight to fit to, fp32 [out, in]; see :meth:`Gram.aim`.

        Zeros stay zero, and weights of inputs that never fired stay as they are.
        """
        aim = gram.aim(damping)
        if aim is None:
            return weight
        as_it_was = (weight == 0) | (gram.diagonal() == 0).to(weight.device)
        return torch.where(as_it_was, weight, weight @ aim.to(weight.device))

    def _updated(
        self, weight: torch.Tensor, pruned: Pruned, form: DtypeRounding
    ) -> tuple[torch.Tensor, int]:
        """A method's new weights as they are stored, and the number of rows that the dtype cannot
        hold.

        Those rows keep their old weights under the mask.
        """
        kept = _kept(weight, pruned)
        new = form.rounded(pruned.weight, kept)
        held = new.isfinite().all(1)
        if not bool(held.all()):
            new = torch.where(held[:, None], new, form.rounded(weight, kept))
        return new, int((~held).sum())

    def _fitted(
        self,
        weight: torch.Tensor,
        pruned: Pruned,
        before: torch.Tensor,
        hessian: torch.Tensor,
        form: DtypeRounding,
        damping: float,
    ) -> tuple[torch.Tensor, int]:
        """As :meth:`_updated`, for weights fitted to the mask.

        A row stays as ``before`` unless its stored values have less error: rounding may cost more
        than fitting gains.
        """
        kept = _kept(weight, pruned)
        new = refine(weight, pruned.weight, kept, hessian, damping=damping)
        new = form.rounded(new, kept)
        better = gains(weight, form.value(before), form.value(new), hessian) > 0
        return torch.where(better[:, None], new, before), int((~new.isfinite().all(1)).sum())

    def _chosen(
        self,
        weight: torch.Tensor,
        gram: Gram | None,
        hessian: torch.Tensor | None,
        goal: Goal,
        damping: float,
    ) -> Pruned:
        """Apply the method to a goal."""
        if isinstance(goal, Masked):
            mask = goal.mask.to(weight.device)
            return Pruned(torch.where(mask, weight, torch.zeros_like(weight)), mask)
        target = goal.pattern if isinstance(goal, ByRowBlocks) else goal
        if gram is None:
            return DEFAULT.spec.prune(weight, None, target, damping=damping)
        spec, inputs = self.method.spec, None
        if spec.needs is Needs.NORMS:
            inputs = gram.norms().to(weight.device)
        elif spec.needs is Needs.MOMENTS:
            assert hessian is not None
            inputs = hessian
        return spec.prune(weight, inputs, target, damping=damping)


# --- rounding to the checkpoint's dtype -----------------------------------------------------------


def unit_of(weight: torch.Tensor) -> float:
    """A power of 2 by which to divide a matrix, so that squares of its weights stay in fp32.

    It is 1 for usual matrices. Dividing by it and multiplying again changes no bit, as long as
    nothing is rounded to zero.

    Args:
        weight: fp32 [out, in], finite.
    """
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if largest == 0 or 2**-24 <= largest <= 2**8:
        return 1.0
    return 2.0 ** max(math.frexp(largest)[1] - 1, -126)


@dataclass(frozen=True, slots=True)
class DtypeRounding:
    """Conversion between stored weights and fp32 weights in memory.

    Attributes:
        dtype: of its weights in the checkpoint.
        unit: a power of 2 that its weights are divided by in memory.
    """

    dtype: torch.dtype
    unit: float

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored weights in memory: fp32, divided by the unit."""
        return stored.float() if self.unit == 1 else stored.float() / self.unit

    def rounded(self, weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Weights as they are stored: +0.0 outside ``kept`` [out, in], never zero inside.

        A survivor that would be rounded to zero becomes the smallest number of the dtype, so that
        the number of zeros is exact.

        Args:
            weight: fp32 [out, in], as it is in memory.

        Returns:
            [out, in] of the dtype; Inf or NaN where the dtype cannot hold a weight.
        """
        new = (weight if self.unit == 1 else weight * self.unit).to(self.dtype)
        lost = kept & (new == 0)
        if bool(lost.any()):
            new = torch.where(lost, self._smallest(weight), new)
        return torch.where(kept, new, torch.zeros_like(new))

    def _smallest(self, weight: torch.Tensor) -> torch.Tensor:
        """The smallest numbers of the dtype, with the signs of the weights."""
        bits = _BITS[self.dtype.itemsize]
        small = torch.ones((), dtype=bits, device=weight.device).view(self.dtype)
        return torch.where(weight < 0, -small, small)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
