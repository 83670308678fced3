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
from typing import TYPE_CHECKING, Any

from prunectl.layouts.errors import Damaged, Misfit
from prunectl.layouts.layout import (
    BLOCK,
    Coding,
    Extra,
    Layout,
    Pieces,
    Statistics,
    StoredPart,
    Survey,
    code_bytes,
    cut,
    integer,
)
from prunectl.pattern import MAX_GROUP, NM
from prunectl.tensorspec import DType, TensorSpec

if TYPE_CHECKING:
    from prunectl.layouts.groups import Grid
    from prunectl.layouts.parts import Bytes, Codes, Parts


def nbytes(survey: Survey) -> int:
    """The exact bytes of both parts.

    Raises:
        Misfit: no pattern; the axis is not a multiple of M. Groups are not checked for surplus
            nonzeros.
    """
    grid = _grid(survey.dtype, survey.shape, survey.pattern, survey.axis)
    return _size(grid.groups, grid.n, grid.m, survey.dtype)


def _predicted(statistics: Statistics) -> int:
    pattern = statistics.pattern
    if pattern is None:
        return statistics.dense_bytes
    return _size(statistics.numel // pattern.m, pattern.n, pattern.m, statistics.dtype)


def _size(groups: int, n: int, m: int, dtype: DType) -> int:
    """N values of each group, and N positions of ceil(log2 M) bits."""
    return groups * n * dtype.bits // 8 + -(-groups * n * (m - 1).bit_length() // 8)


def _grid(dtype: DType, shape: tuple[int, ...], pattern: NM | None, axis: int) -> Grid:
    from prunectl.layouts.groups import Grid

    code_bytes(dtype, "nm")
    if pattern is None:
        raise Misfit("the tensor has no N:M pattern")
    return Grid.of(shape, pattern, axis)


def _parameters(survey: Survey) -> dict[str, Any]:
    dtype, shape = survey.dtype, survey.shape
    grid = _grid(dtype, shape, survey.pattern, survey.axis)
    order = "cutlass" if for_cutlass(dtype, shape, grid) else "plain"
    return {"n": grid.n, "m": grid.m, "axis": survey.axis % len(shape), "order": order}


def for_cutlass(dtype: DType, shape: tuple[int, ...], grid: Grid) -> bool:
    """Whether torch's CUTLASS kernels support the matrix."""
    return (
        (grid.n, grid.m, grid.inner, len(shape)) == (2, 4, 1, 2)
        and dtype.name in ("BF16", "F16")
        and shape[0] % 32 == 0
        and shape[1] % 64 == 0
    )


def to_cutlass(meta: Codes, rows: int) -> Codes:
    """Row-major metadata u16 [n] in the order of CUTLASS, as torch stores it."""
    tiles = meta.reshape(rows // 32, 2, 2, 8, meta.size // rows // 2 if rows else 0, 2)
    return tiles.transpose(4, 0, 3, 1, 5, 2).copy()


def from_cutlass(meta: Codes, rows: int) -> Codes:
    """Invert :func:`to_cutlass`."""
    tiles = meta.reshape(meta.size // rows // 2 if rows else 0, rows // 32, 8, 2, 2, 2)
    return tiles.transpose(1, 3, 5, 2, 0, 4).reshape(-1)


def read_grid(dtype: DType, shape: tuple[int, ...], extra: Extra) -> tuple[Grid, bool]:
    """The groups in the parameters, and whether they are in the order ``cutlass``.

    Raises:
        Damaged: the parameters do not fit the tensor.
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
    raise Damaged(f"the parameter 'order' is {found}, which this tensor cannot have")


def _stored(spec: TensorSpec, grid: Grid, is_cutlass: bool) -> tuple[StoredPart, StoredPart]:
    """Values and positions, or values and meta."""
    name = spec.dtype.name
    if is_cutlass:
        rows, columns = spec.shape
        return (
            StoredPart("values", name, (rows, columns // 2)),
            StoredPart("meta", "I16", (rows, columns // 16)),
        )
    bits = grid.groups * grid.n * (grid.m - 1).bit_length()
    return (
        StoredPart("values", name, (grid.groups, grid.n)),
        StoredPart("positions", "U8", (-(-bits // 8),)),
    )


def _step(grid: Grid) -> int:
    """Groups to process at a time: their positions start at whole bytes."""
    return max(BLOCK // grid.m // 8, 1) * 8


class _Encoder:
    lead: int | None = None

    def __init__(self, spec: TensorSpec, extra: Extra) -> None:
        self._spec = spec
        self._grid, self._is_cutlass = read_grid(spec.dtype, spec.shape, extra)
        self._groups = cut(self._grid.groups, _step(self._grid))
        self.ranges = [self._grid.covering(*some) for some in self._groups]
        self.most = self._grid.groups * self._grid.n * spec.dtype.bits // 8

    def encode(self, number: int, codes: Codes) -> Pieces:
        import numpy as np

        from prunectl.layouts.groups import kept
        from prunectl.layouts.kernels import grouping

        groups = self._grid.read_covering(codes, *self._groups[number])
        values, positions = kept(self._grid, groups)
        width = (self._grid.m - 1).bit_length()
        packed = np.zeros(-(-positions.size * width // 8), np.uint8)
        grouping.pack_bits(positions, width, packed)
        return Pieces([values.view(np.uint8)], packed)

    def finish(self, small: Bytes) -> Bytes:
        if not self._is_cutlass:
            return small
        return to_cutlass(small.view("u2"), self._spec.shape[0]).reshape(-1).view("u1")

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        values, positions = _stored(self._spec, self._grid, self._is_cutlass)
        assert not (self._is_cutlass and padding), "its meta is a multiple of 64 bytes"
        if padding:
            size = positions.shape[0] + padding
            positions = StoredPart(positions.suffix, positions.dtype, (size,))
        return values, positions


class _Decoder:
    def __init__(self, spec: TensorSpec, extra: Extra, parts: Parts) -> None:
        self._parts = parts
        self._grid, is_cutlass = read_grid(spec.dtype, spec.shape, extra)
        self._value_bytes = self._grid.n * spec.dtype.bits // 8
        self._width = (self._grid.m - 1).bit_length()
        self.unit = self._grid.unit(_step(self._grid))
        self._meta: Bytes | None = None
        values, positions = _stored(spec, self._grid, is_cutlass)
        parts.expect(values.suffix, values.dtype, values.shape)
        if is_cutlass:
            parts.expect(positions.suffix, positions.dtype, positions.shape)
            meta = parts.read("meta", 0, parts.specs["meta"].nbytes).view("u2")
            self._meta = from_cutlass(meta, spec.shape[0]).view("u1")
            return
        (size,) = positions.shape
        parts.expect_bytes("positions", size)
        used = self._grid.groups * self._grid.n * self._width % 8
        if used and int(parts.read("positions", size - 1, size)[0]) >> used:
            raise Damaged("the positions have ones after the last")

    def decode(self, number: int, out: Codes) -> None:
        self._grid.decode(number * self.unit, out, self._fill)

    def _fill(self, first: int, groups: Codes) -> None:
        """Decode groups from ``first`` on into [groups, m]."""
        import numpy as np

        from prunectl.layouts.kernels import grouping
        from prunectl.layouts.parts import fixed

        n, last = self._grid.n, first + len(groups)
        whole = first // 8 * 8  # where positions start at a whole byte
        begin, end = (at * n * self._width for at in (whole, last))
        packed = self._positions(begin // 8, -(-end // 8))
        positions = np.empty((last - whole) * n, np.uint8)
        grouping.unpack_bits(fixed(packed), self._width, positions)
        positions = fixed(positions[(first - whole) * n :])
        data = self._parts.read("values", first * self._value_bytes, last * self._value_bytes)
        bad = int(grouping.place(positions, fixed(data.view(groups.dtype)), n, groups))
        if bad >= 0:
            raise Damaged(
                f"the positions of group {first + bad} do not ascend below {self._grid.m}"
            )

    def _positions(self, start: int, stop: int) -> Bytes:
        if self._meta is not None:
            return self._meta[start:stop]
        return self._parts.read("positions", start, stop)


LAYOUT = Layout(
    summary="the kept values of N:M and their positions",
    nbytes=nbytes,
    predicted=_predicted,
    coding=Coding(("meta", "positions", "values"), _Encoder, _Decoder, _parameters),
    pruned="{}, as values and positions",
    takes_groups=True,
)
