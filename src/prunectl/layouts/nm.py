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
from typing import Any

import numpy as np

from prunectl.layouts.groups import Grid, kept
from prunectl.layouts.kernels import grouping
from prunectl.layouts.parts import (
    BLOCK,
    Bytes,
    Codes,
    Damaged,
    Encoded,
    Extra,
    Misfit,
    Part,
    Parts,
    Run,
    blocks,
    code_count,
    code_type,
    fixed,
    flat_codes,
    integer,
    output,
    row_range,
    take,
    whole_codes,
)
from prunectl.layouts.survey import Survey
from prunectl.pattern import MAX_GROUP, NM
from prunectl.tensorspec import DType


def encode(
    bits: Codes,
    dtype: DType,
    shape: tuple[int, ...],
    *,
    pattern: NM | None = None,
    axis: int = -1,
    run: Run = map,
) -> Encoded:
    """See :mod:`prunectl.layouts.choice`.

    Raises:
        Misfit: no pattern; the axis is no multiple of M; a group has more than N nonzeros.
    """
    grid = _grid(dtype, shape, pattern, axis)
    codes = flat_codes(bits, dtype, shape)
    width = _width(grid)
    values = np.empty((grid.groups, grid.n), codes.dtype)
    packed = np.zeros(_packed_bytes(grid), np.uint8)

    def work(block: tuple[int, int]) -> None:
        start, stop = block
        some, positions = kept(grid, grid.read(codes, start, stop))
        values[start:stop] = some.reshape(-1, grid.n)
        # A block starts at a multiple of 8 groups, and so its positions at a whole byte.
        grouping.pack_bits(positions, width, packed[start * grid.n * width // 8 :])

    for _ in run(work, _blocks(grid)):
        pass
    assert pattern is not None
    extra: dict[str, Any] = {"n": grid.n, "m": grid.m, "axis": axis % len(shape)}
    if not for_cutlass(dtype, shape, grid):
        parts = {"values": Part.of(dtype.name, values), "positions": Part.of("U8", packed)}
        return Encoded("nm", parts, extra | {"order": "plain"})
    rows, columns = shape
    meta = to_cutlass(packed.view(np.uint16), rows).reshape(rows, columns // 16)
    parts = {
        "values": Part.of(dtype.name, values.reshape(rows, columns // 2)),
        "meta": Part.of("I16", meta),
    }
    return Encoded("nm", parts, extra | {"order": "cutlass"})


def decode(
    parts: Parts,
    dtype: DType,
    shape: tuple[int, ...],
    extra: Extra,
    *,
    out: Codes | None = None,
    run: Run = map,
) -> Codes:
    """See :mod:`prunectl.layouts.choice`."""
    grid, values, packed = _read(parts, dtype, shape, extra)
    result = output(dtype, code_count(dtype, shape), out)
    _fill(grid, (0, grid.groups), values, packed, result, run)
    return result.reshape(shape)


def decode_rows(
    parts: Parts,
    dtype: DType,
    shape: tuple[int, ...],
    extra: Extra,
    start: int,
    stop: int,
    *,
    run: Run = map,
) -> Codes:
    """See :mod:`prunectl.layouts.choice`."""
    first, last = row_range(shape, start, stop)
    grid, values, packed = _read(parts, dtype, shape, extra)
    groups = grid.covering(first, last)
    result = output(dtype, (groups[1] - groups[0]) * grid.m, None)
    _fill(grid, groups, values, packed, result, run)
    skipped = first - groups[0] * grid.m
    return result[skipped : skipped + last - first].reshape(stop - start, *shape[1:])


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
        Misfit: as :func:`encode`, but for groups with too many nonzeros, which counts do not show.
    """
    grid = _grid(dtype, shape, pattern, axis)
    return grid.groups * grid.n * code_type(dtype).itemsize + _packed_bytes(grid)


def _grid(dtype: DType, shape: tuple[int, ...], pattern: NM | None, axis: int) -> Grid:
    whole_codes(dtype, "nm")
    if pattern is None:
        raise Misfit("the tensor has no N:M pattern")
    return Grid.of(shape, pattern, axis)


def _width(grid: Grid) -> int:
    return (grid.m - 1).bit_length()


def _packed_bytes(grid: Grid) -> int:
    return -(-grid.groups * grid.n * _width(grid) // 8)


def _blocks(grid: Grid, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """Blocks of groups that start at multiples of 8, where positions start at whole bytes."""
    low = start // 8 * 8
    places = blocks((grid.groups if stop is None else stop) - low, 8, BLOCK // grid.m)
    return [(max(low + a, start), low + b) for a, b in places]


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


def _read(
    parts: Parts, dtype: DType, shape: tuple[int, ...], extra: Extra
) -> tuple[Grid, Codes, Bytes]:
    """Groups, values and plain packed positions.

    Raises:
        Damaged: parameters or parts that do not fit the tensor.
    """
    grid, is_cutlass = read_grid(dtype, shape, extra)
    if not is_cutlass:
        values = take(parts, "values", dtype.name, (grid.groups, grid.n))
        return grid, values, take(parts, "positions", "U8", (_packed_bytes(grid),))
    rows, columns = shape
    values = take(parts, "values", dtype.name, (rows, columns // 2))
    meta = take(parts, "meta", "I16", (rows, columns // 16))
    return grid, values, fixed(from_cutlass(meta, rows).view(np.uint8))


def _fill(
    grid: Grid, groups: tuple[int, int], values: Codes, packed: Bytes, out: Codes, run: Run
) -> None:
    """Decode a range of groups into ``out``, the elements from the first of them on."""
    width, first = _width(grid), groups[0]

    def work(block: tuple[int, int]) -> None:
        start, stop = block
        whole = start // 8 * 8
        positions = np.empty((stop - whole) * grid.n, np.uint8)
        grouping.unpack_bits(packed[whole * grid.n * width // 8 :], width, positions)
        positions = fixed(positions[(start - whole) * grid.n :])
        decoded = np.empty((stop - start, grid.m), out.dtype)
        some = values[start * grid.n : stop * grid.n]
        if (bad := int(grouping.place(positions, some, grid.n, decoded))) >= 0:
            raise Damaged(f"the positions of group {start + bad} are not ascending below {grid.m}")
        grid.write(decoded, start - first, out)

    for _ in run(work, _blocks(grid, *groups)):
        pass
