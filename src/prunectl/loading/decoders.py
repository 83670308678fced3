"""Decoding a tensor's parts a range at a time, out of the file.

Each decoder cuts its tensor into units of elements that lie together in row-major order, and
decodes a unit on its own: what it reads, and what it holds, is about as large as the unit. Parts
are what a file says they are; all sizes are compared with the tensor's before anything is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.layouts.chunks import decode_chunk
from prunectl.layouts.groups import Grid
from prunectl.layouts.kernels import grouping, masking
from prunectl.layouts.nm import from_cutlass, read_grid
from prunectl.layouts.parts import ALIGNMENT, BLOCK, Damaged, fixed, whole_codes
from prunectl.layouts.scheme import read_scheme
from prunectl.loading.packed import Packed

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[Any]

WIDE_BAND = 1 << 22
"""Bands of more weights are not decoded whole: of a matrix whose groups are along its first axis, a
band of a few very long rows may be all of it."""


class Decoder(Protocol):
    """Decodes units of one tensor; ``unit`` is their length in elements, the last may be shorter.

    Raises:
        Damaged: from everything, if the parts are not those of the tensor.
    """

    unit: int

    def decode(self, number: int, out: Codes) -> None:
        """Decode a unit into ``out``, which has its length; several threads may do so at once."""


def decoder_of(packed: Packed, reader: WeightReader) -> Decoder:
    """The decoder of a tensor.

    Raises:
        Damaged: the parts or the parameters are not those of such a tensor.
    """
    whole_codes(packed.spec.dtype, packed.layout)
    if packed.layout == "packed":
        return _Chunks(packed, reader)
    return _Groups(packed, reader) if packed.layout == "nm" else _Mask(packed, reader)


def _part(packed: Packed, suffix: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    """A part of known dtype and shape."""
    part = packed.parts.get(suffix)
    if part is None:
        raise Damaged(f"the part '{suffix}' is missing")
    if part.spec.dtype.name != dtype or part.spec.shape != shape:
        raise Damaged(
            f"the part '{suffix}' is {part.spec.dtype.name} {list(part.spec.shape)}, where {dtype} "
            f"{list(shape)} is expected"
        )
    return part


def _bytes_part(packed: Packed, reader: WeightReader, suffix: str, size: int) -> StoredTensor:
    """A part of so many bytes, after which up to seven zeros may align what follows in the file."""
    part = packed.parts.get(suffix)
    found = part.spec.shape if part is not None else ()
    is_padded = len(found) == 1 and size < found[0] < size + ALIGNMENT
    part = _part(packed, suffix, "U8", found if is_padded else (size,))
    if _read(reader, part, size, part.spec.numel).any():
        raise Damaged(f"the part '{suffix}' has bytes other than zero after its end")
    return part


def _read(reader: WeightReader, part: StoredTensor, start: int, stop: int) -> Bytes:
    """Bytes of a part."""
    data = np.empty(stop - start, np.uint8)
    reader.read(part, start, data)
    return data


def _is_wide(grid: Grid) -> bool:
    return grid.inner > 1 and grid.m * grid.inner > WIDE_BAND


def _unit(grid: Grid, step: int) -> int:
    """Weights of a unit of about ``step`` groups: a range of them, or whole bands of M rows.

    Of a wide band, it is as many neighbours in a row: one member of each of ``step`` groups.
    """
    if _is_wide(grid):
        return step
    bands = max(1, step // max(1, grid.inner))
    return step * grid.m if grid.inner == 1 else bands * grid.inner * grid.m


def _by_rows(grid: Grid, start: int, out: Codes, decode: Callable[[int, int], Codes]) -> None:
    """Decode weights from ``start`` on of wide bands: of each group, the member in that row.

    Args:
        decode: gives a range of groups, [groups, m].
    """
    done = 0
    while done < out.size:
        row, column = divmod(start + done, grid.inner)
        band, member = divmod(row, grid.m)
        length = min(out.size - done, grid.inner - column)
        first = band * grid.inner + column
        out[done : done + length] = decode(first, first + length)[:, member]
        done += length


class _Chunks:
    """The layout ``packed``."""

    def __init__(self, packed: Packed, reader: WeightReader) -> None:
        spec = packed.spec
        self._reader = reader
        self._scheme = scheme = read_scheme(spec.dtype, spec.shape, packed.extra)
        self.unit = _unit(scheme.grid, scheme.chunk)
        table = _part(packed, "chunks", "U32", (scheme.chunks, scheme.planes))
        sizes = _read(reader, table, 0, table.spec.nbytes).view(np.uint32).astype(np.int64)
        self._ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self._data = _bytes_part(packed, reader, "data", int(self._ends[-1]))

    def decode(self, number: int, out: Codes) -> None:
        grid = self._scheme.grid
        start = number * self.unit
        if _is_wide(grid):
            _by_rows(grid, start, out, lambda first, last: self._some(first, last, out.dtype))
        elif grid.inner == 1:
            self._fill(start // grid.m, out.reshape(-1, grid.m))
        else:
            first = start // grid.m
            grid.write(self._some(first, first + out.size // grid.m, out.dtype), 0, out)

    def _some(self, first: int, last: int, dtype: np.dtype[Any]) -> Codes:
        groups = np.empty((last - first, self._scheme.grid.m), dtype)
        self._fill(first, groups)
        return groups

    def _fill(self, first: int, groups: Codes) -> None:
        """Decode groups from ``first`` on into [groups, m]."""
        scheme, last = self._scheme, first + len(groups)
        for chunk in range(first // scheme.chunk, -(-last // scheme.chunk)):
            start = chunk * scheme.chunk
            stop = min(start + scheme.chunk, scheme.grid.groups)
            low, high = max(start, first), min(stop, last)
            if (low, high) == (start, stop):
                decode_chunk(scheme, self._planes(chunk), groups[low - first : high - first])
            else:
                whole = np.empty((stop - start, scheme.grid.m), groups.dtype)
                decode_chunk(scheme, self._planes(chunk), whole)
                groups[low - first : high - first] = whole[low - start : high - start]

    def _planes(self, chunk: int) -> list[Bytes]:
        planes = self._scheme.planes
        places = self._ends[chunk * planes : (chunk + 1) * planes + 1].tolist()
        data = _read(self._reader, self._data, places[0], places[-1])
        return [data[a - places[0] : b - places[0]] for a, b in itertools.pairwise(places)]


class _Groups:
    """The layout ``nm``."""

    def __init__(self, packed: Packed, reader: WeightReader) -> None:
        spec = packed.spec
        self._reader = reader
        self._grid, is_cutlass = read_grid(spec.dtype, spec.shape, packed.extra)
        grid = self._grid
        self._bits = (grid.m - 1).bit_length()
        self._size = spec.dtype.bits // 8
        self.unit = _unit(grid, max(BLOCK // grid.m // 8, 1) * 8)
        self._held: Bytes | None = None
        if is_cutlass:
            rows, columns = spec.shape
            self._values = _part(packed, "values", spec.dtype.name, (rows, columns // 2))
            meta = _part(packed, "meta", "I16", (rows, columns // 16))
            data = _read(reader, meta, 0, meta.spec.nbytes).view(np.uint16)
            self._held = from_cutlass(data, rows).view(np.uint8)
        else:
            self._values = _part(packed, "values", spec.dtype.name, (grid.groups, grid.n))
            bits = grid.groups * grid.n * self._bits
            size = math.ceil(bits / 8)
            self._positions = _bytes_part(packed, reader, "positions", size)
            if bits % 8 and int(_read(reader, self._positions, size - 1, size)[0]) >> bits % 8:
                raise Damaged("the positions have ones after the last")

    def decode(self, number: int, out: Codes) -> None:
        grid, start = self._grid, number * self.unit
        if _is_wide(grid):
            _by_rows(grid, start, out, lambda first, last: self._some(first, last, out.dtype))
        else:
            first = start // grid.m
            grid.write(self._some(first, first + out.size // grid.m, out.dtype), 0, out)

    def _some(self, first: int, last: int, dtype: np.dtype[Any]) -> Codes:
        """Groups ``first`` to ``last``, [groups, m]."""
        grid = self._grid
        whole = first // 8 * 8  # where positions start at a whole byte
        begin, end = (at * grid.n * self._bits for at in (whole, last))
        packed = self._positions_of(begin // 8, -(-end // 8))
        positions = np.empty((last - whole) * grid.n, np.uint8)
        grouping.unpack_bits(fixed(packed), self._bits, positions)
        positions = fixed(positions[(first - whole) * grid.n :])
        width = grid.n * self._size
        data = _read(self._reader, self._values, first * width, last * width)
        decoded = np.empty((last - first, grid.m), dtype)
        bad = int(grouping.place(positions, fixed(data.view(dtype)), grid.n, decoded))
        if bad >= 0:
            raise Damaged(f"the positions of group {first + bad} do not ascend below {grid.m}")
        return decoded

    def _positions_of(self, start: int, stop: int) -> Bytes:
        if self._held is not None:
            return self._held[start:stop]
        return _read(self._reader, self._positions, start, stop)


class _Mask:
    """The layout ``bitmask``."""

    def __init__(self, packed: Packed, reader: WeightReader) -> None:
        spec = packed.spec
        self._reader = reader
        self._size = spec.dtype.bits // 8
        self.unit = BLOCK
        size = -(-spec.numel // 8)
        self._mask = _bytes_part(packed, reader, "mask", size)
        counts = [int(_ones(self._mask_of(n, spec.numel))) for n in range(-(-spec.numel // BLOCK))]
        self._ends = np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).tolist()
        self._values = _part(packed, "values", spec.dtype.name, (self._ends[-1],))
        self._numel = spec.numel

    def _mask_of(self, number: int, numel: int) -> Bytes:
        """The mask bytes of a unit; bits after the last weight must be zero."""
        start, stop = number * BLOCK, min((number + 1) * BLOCK, numel)
        mask = _read(self._reader, self._mask, start // 8, -(-stop // 8))
        if stop % 8 and mask[-1] >> stop % 8:
            raise Damaged("the mask has ones after the last weight")
        return mask

    def decode(self, number: int, out: Codes) -> None:
        mask = self._mask_of(number, self._numel)
        start, stop = self._ends[number], self._ends[number + 1]
        if int(_ones(mask)) != stop - start:
            raise Damaged("the mask changed while it was read")
        data = _read(self._reader, self._values, start * self._size, stop * self._size)
        masking.scatter(fixed(mask), fixed(data.view(out.dtype)), out)


def _ones(mask: Bytes) -> int:
    return int(np.bitwise_count(mask).sum(dtype=np.int64))
