"""What exactly happens to one tensor's weights, with all numbers known."""

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
    """Every byte stays."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Magnitudes below ``code`` go, and the first ``quota`` of those equal to it.

    Attributes:
        code: magnitude code in the tensor's own format.
        quota: ties that go, in row-major order.
        threshold: the magnitude of the largest weight that goes; None if none does.
    """

    code: int
    quota: int
    threshold: float | None


@dataclass(frozen=True, slots=True)
class CutRows:
    """Each row along the input axis is cut to ``sparsity`` on its own."""

    sparsity: float


@dataclass(frozen=True, slots=True)
class Groups:
    """At most N of every M along the input axis stay."""

    pattern: NM


@dataclass(frozen=True, slots=True)
class RowGroups:
    """At most N of every M along the input axis stay in some rows; the others keep every bit.

    Attributes:
        rows: sorted ranges, numbered as in :mod:`prunectl.geometry`.
    """

    pattern: NM
    rows: Ranges


@dataclass(frozen=True, slots=True)
class Keep:
    """What a mask has a 1 for stays; ``reader`` reads its bits."""

    mask: Mask
    reader: TensorReader


@dataclass(frozen=True, slots=True)
class Replace:
    """The weights are those of ``tensor``, of the same dtype and shape, which ``reader`` reads.

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

        What is left of the edit changes last: a block that failed can be given again.
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
        """Bring the rows of ``edit`` that are in ``codes`` into its pattern; returns zeros."""
        n, m = edit.pattern.n, edit.pattern.m
        kernels = kernels_for(codes)
        parts = self._rows.parts(codes, self._first, edit.rows)
        if self._rows.stride == 1 or not isinstance(codes, np.ndarray):
            for part in parts:
                kernels.nm(part, n, m)
        else:
            # Kernels are slow on a few columns: they get all of them, and what is theirs is taken.
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
    """What an edit must give: zeros afterwards, and the share of the squared norm that goes."""

    zeros: int
    norm_lost: float


@dataclass(frozen=True)
class Resolution:
    """The numbers of a plan.

    Attributes:
        edits: by tensor name; tensors that are not in it are copied.
        reasons: why prunable tensors stay dense after all.
        thresholds: by pool; None where a pool has no one threshold.
        forecasts: by tensor name, where the measurements tell before the weights are written.
        calibrated: by tensor name, what calibration did, JSON-ready.
        pattern_rows: by tensor name, the rows that take its N:M pattern, where not all of them do.
    """

    edits: dict[str, Edit]
    reasons: dict[str, str]
    thresholds: tuple[float | None, ...]
    forecasts: dict[str, Forecast]
    calibrated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pattern_rows: Mapping[str, Ranges] = field(default_factory=dict)
