"""Edits: what happens to the weights of one tensor, with all numbers known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunectl.checkpoint.mask_file import Mask
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.geometry import Ranges, Rows, mask_unit
from prunectl.magnitude.masks import AnyCodes, kernels_for
from prunectl.pattern import NM


@dataclass(frozen=True, slots=True)
class Copy:
    """Keep every byte."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Prune magnitudes below ``code``, and the first ``quota`` of those equal to it.

    Attributes:
        code: magnitude code in the tensor's own format.
        quota: ties to prune, in row-major order.
        threshold: the largest pruned magnitude; None if nothing is pruned.
    """

    code: int
    quota: int
    threshold: float | None


@dataclass(frozen=True, slots=True)
class CutRows:
    """Prune each row along the input axis to ``sparsity``."""

    sparsity: float


@dataclass(frozen=True, slots=True)
class Groups:
    """Keep at most N of every M weights along the input axis."""

    pattern: NM


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Keep at most N of every M weights along the input axis in some rows; other rows keep every
    bit.

    Attributes:
        rows: sorted ranges, numbered as in :mod:`prunectl.geometry`.
    """

    pattern: NM
    rows: Ranges


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the weights that a mask has a 1 for; ``reader`` reads its bits."""

    mask: Mask
    reader: TensorReader


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace the weights by those of ``tensor``, of the same dtype and shape, which ``reader``
    reads.

    ``blake3`` is the digest of their bytes.
    """

    tensor: StoredTensor
    reader: TensorReader
    blake3: str


Edit = Copy | Cut | CutRows | Groups | RowGroups | Keep | Replace


def block_unit(edit: Edit, rows: Rows) -> int:
    """Elements that must come in one block: whole groups, whole rows, or single weights."""
    if isinstance(edit, Groups | RowGroups):
        return rows.tile(edit.pattern.m)
    if isinstance(edit, CutRows):
        return rows.band
    if isinstance(edit, Keep):
        pattern = edit.mask.pattern
        return mask_unit(1 if pattern is None else rows.tile(pattern.m))
    return 1


class Editor:
    """Applies one edit to a tensor's blocks, in order, in place."""

    def __init__(self, edit: Edit, rows: Rows) -> None:
        self.edit, self._rows = edit, rows
        self._quota = edit.quota if isinstance(edit, Cut) else 0
        self._first = 0

    def apply(self, codes: AnyCodes) -> int:
        """Edit one block [n] of whole units in place; returns its zeros of both signs.

        The edit's state changes last, so that a failed block can be given again.
        """
        edit, kernels = self.edit, kernels_for(codes)
        if isinstance(edit, Cut):
            zeros, used = kernels.cut(codes, edit.code, self._quota)
            self._quota -= used
        elif isinstance(edit, CutRows):
            rows = codes.reshape(-1, self._rows.length, self._rows.stride)
            zeros = kernels.cut_rows(rows, edit.sparsity)
        elif isinstance(edit, Groups):
            m = edit.pattern.m
            zeros = kernels.nm(self._rows.groups(codes, m), edit.pattern.n, m)
        elif isinstance(edit, RowGroups):
            zeros = self._group_rows(codes, edit)
        else:
            raise TypeError("a copied tensor is not edited")
        return zeros

    def _group_rows(self, codes: AnyCodes, edit: RowGroups) -> int:
        """Prune the rows of ``edit`` that are in ``codes`` to its pattern; returns zeros."""
        n, m = edit.pattern.n, edit.pattern.m
        kernels = kernels_for(codes)
        parts = self._rows.parts(codes, self._first, edit.rows)
        if self._rows.stride == 1 or not isinstance(codes, np.ndarray):
            for part in parts:
                kernels.nm(part, n, m)
        else:
            # Kernels are slow on a few columns: they run on all, and only the wanted ones are
            # copied.
            whole = codes.copy()
            kernels.nm(self._rows.groups(whole, m), n, m)
            done = self._rows.parts(whole, self._first, edit.rows)
            for part, new in zip(parts, done, strict=True):
                part[...] = new
        zeros = kernels.count_zeros(codes)
        self._first += len(codes)
        return zeros


# --- the resolution of a plan ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forecast:
    """The predicted result of an edit: zeros afterwards, and the share of the squared norm lost."""

    zeros: int
    norm_lost: float


@dataclass(frozen=True)
class Resolution:
    """The numbers of a plan that depend on the weights.

    Attributes:
        edits: by tensor name; other tensors are copied.
        reasons: by tensor name, why a prunable tensor stays dense.
        thresholds: by pool; None where a pool has no single threshold.
        forecasts: by tensor name, where measurements give them before the weights are written.
        calibrated: by tensor name, facts about its calibration, JSON-ready.
        pattern_rows: by tensor name, the rows that take its N:M pattern, if not all.
    """

    edits: dict[str, Edit]
    reasons: dict[str, str]
    thresholds: tuple[float | None, ...]
    forecasts: dict[str, Forecast]
    calibrated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pattern_rows: Mapping[str, Ranges] = field(default_factory=dict)
