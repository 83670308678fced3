"""The N:M layout: N values of each group of M, and their positions in the group.

Groups and their order are those of :mod:`prunectl.layouts.groups`. A group with fewer than N
nonzeros keeps zeros too, the first ones among its last N members, so that each has exactly N.

Parts, in the order ``plain``:

- ``values``: the tensor's dtype, [groups, N]: the kept weights of each group, by position.
- ``positions``: U8 [ceil(groups * N * w / 8)], where w = ceil(log2 M): all positions, in the order
  of the values, as one stream of w-bit numbers, lowest bits first. Bits after the last are 0.

In the order ``cutlass`` they are what torch's sparse semi-structured tensors hold (2:4 of bf16 or
fp16, R x C with R a multiple of 32 and C of 64, groups along the last axis), so that they can be
loaded onto a GPU with no dense detour (``SparseSemiStructuredTensorCUTLASS(shape, packed=values,
meta=meta, ...)``):

- ``values``: [R, C / 2], the same bytes as above.
- ``meta``: I16 [R, C / 16]. The bytes of ``positions``, read as i16 [R, C / 16] (each four groups),
  are reordered: ``p.reshape(R // 32, 2, 2, 8, C // 32, 2).transpose(4, 0, 3, 1, 5, 2)``.

Parameters: ``n``, ``m``, ``axis`` (not negative), ``order``.
"""

from __future__ import annotations

import reprlib

import numpy as np

from prunectl.layouts.groups import Grid
from prunectl.layouts.parts import Codes, Damaged, Extra, Misfit, code_type, integer, whole_codes
from prunectl.layouts.survey import Survey
from prunectl.pattern import MAX_GROUP, NM
from prunectl.tensorspec import DType


def nbytes(
    dtype: DType,
    shape: tuple[int, ...],
    counts: Survey,
    *,
    pattern: NM | None = None,
    axis: int = -1,
) -> int:
    """Bytes of both parts, exactly.

    Raises:
        Misfit: no pattern; the axis is no multiple of M. Groups with too many nonzeros go unseen.
    """
    grid = _grid(dtype, shape, pattern, axis)
    bits = grid.groups * grid.n * (grid.m - 1).bit_length()
    return grid.groups * grid.n * code_type(dtype).itemsize + -(-bits // 8)


def _grid(dtype: DType, shape: tuple[int, ...], pattern: NM | None, axis: int) -> Grid:
    whole_codes(dtype, "nm")
    if pattern is None:
        raise Misfit("the tensor has no N:M pattern")
    return Grid.of(shape, pattern, axis)


def for_cutlass(dtype: DType, shape: tuple[int, ...], grid: Grid) -> bool:
    """Whether torch's CUTLASS kernels take the matrix."""
    return (
        (grid.n, grid.m, grid.inner, len(shape)) == (2, 4, 1, 2)
        and dtype.name in ("BF16", "F16")
        and shape[0] % 32 == 0
        and shape[1] % 64 == 0
    )


def to_cutlass(meta: Codes, rows: int) -> Codes:
    """Row-major metadata u16 [n] in the order of CUTLASS, as torch stores it."""
    tiles = meta.reshape(rows // 32, 2, 2, 8, meta.size // rows // 2 if rows else 0, 2)
    return np.ascontiguousarray(tiles.transpose(4, 0, 3, 1, 5, 2))


def from_cutlass(meta: Codes, rows: int) -> Codes:
    """The inverse of :func:`to_cutlass`."""
    tiles = meta.reshape(meta.size // rows // 2 if rows else 0, rows // 32, 8, 2, 2, 2)
    return np.ascontiguousarray(tiles.transpose(1, 3, 5, 2, 0, 4)).reshape(-1)


def read_grid(dtype: DType, shape: tuple[int, ...], extra: Extra) -> tuple[Grid, bool]:
    """The groups that parameters describe, and whether they are in the order ``cutlass``.

    Raises:
        Damaged: they do not fit the tensor.
    """
    m = integer(extra, "m", 2, MAX_GROUP)
    pattern = NM(integer(extra, "n", 1, m - 1), m)
    try:
        grid = _grid(dtype, shape, pattern, integer(extra, "axis", 0, max(0, len(shape) - 1)))
    except Misfit as error:
        raise Damaged(str(error)) from None
    order = extra.get("order")
    if order == "plain" or (order == "cutlass" and for_cutlass(dtype, shape, grid)):
        return grid, order == "cutlass"
    found = reprlib.repr(order)
    raise Damaged(f"the parameter 'order' is {found}, which such a tensor does not have")
