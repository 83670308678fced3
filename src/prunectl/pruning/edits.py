"""What exactly happens to one tensor's weights, with all numbers known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prunectl.checkpoint.mask_file import Mask
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.magnitude.masks import AnyCodes, as_groups, kernels_for
from prunectl.pattern import NM
from prunectl.pruning.row_blocks import Ranges, row_parts
from prunectl.tensorspec import TensorSpec


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
        rows: sorted ranges, numbered as in :mod:`prunectl.pruning.row_blocks`.
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


def axis_view(spec: TensorSpec, axis: int | None) -> tuple[int, int]:
    """(length of a row, elements from one of its weights to the next) in row-major order.

    A row is the weights of one output: along the input axis, or, of a convolution, which has none,
    all behind the first axis. A vector is one row.
    """
    if not spec.shape:
        return 1, 1
    if axis is None:
        return math.prod(spec.shape[1:] or spec.shape), 1
    return spec.shape[axis], math.prod(spec.shape[axis + 1 :])


def block_unit(edit: Edit, spec: TensorSpec, axis: int | None) -> int:
    """Elements that must come in one block: whole groups, whole rows, or single weights."""
    if isinstance(edit, Groups | RowGroups):
        return edit.pattern.m * axis_view(spec, axis)[1]
    if isinstance(edit, CutRows):
        return math.prod(axis_view(spec, axis))
    if isinstance(edit, Keep):
        pattern = edit.mask.pattern
        return mask_unit(1 if pattern is None else pattern.m * axis_view(spec, axis)[1])
    return 1


def mask_unit(unit: int) -> int:
    """The smallest multiple of ``unit`` weights whose mask is whole bytes."""
    return math.lcm(8, unit)


class Editor:
    """Applies one edit to a tensor's blocks, in order, in place."""

    def __init__(self, edit: Edit, spec: TensorSpec, axis: int | None) -> None:
        self.edit = edit
        self._length, self._width = axis_view(spec, axis)
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
            zeros = kernels.cut_rows(codes.reshape(-1, self._length, self._width), edit.sparsity)
        elif isinstance(edit, Groups):
            m = edit.pattern.m
            zeros = kernels.nm(as_groups(codes, m, self._width), edit.pattern.n, m)
        elif isinstance(edit, RowGroups):
            zeros = self._group_rows(codes, edit)
        else:
            raise TypeError("a copied tensor is not edited")
        return zeros

    def _group_rows(self, codes: AnyCodes, edit: RowGroups) -> int:
        """Bring the rows of ``edit`` that are in ``codes`` into its pattern; returns zeros."""
        n, m, place = edit.pattern.n, edit.pattern.m, (self._length, self._width)
        kernels = kernels_for(codes)
        parts = row_parts(codes, self._first, *place, edit.rows)
        if self._width == 1 or not isinstance(codes, np.ndarray):
            for part in parts:
                kernels.nm(part, n, m)
        else:
            # Kernels are slow on a few columns: they get all of them, and what is theirs is taken.
            whole = codes.copy()
            kernels.nm(as_groups(whole, m, self._width), n, m)
            done = row_parts(whole, self._first, *place, edit.rows)
            for part, new in zip(parts, done, strict=True):
                part[...] = new
        zeros = kernels.count_zeros(codes)
        self._first += len(codes)
        return zeros
