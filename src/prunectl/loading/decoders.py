"""Decoding a tensor's parts a range at a time, out of the file.

Each decoder cuts its tensor into units of elements that lie together in row-major order, and
decodes a unit on its own: what it reads, and what it holds, is about as large as the unit. Parts
are what a file says they are; all sizes are compared with the tensor's before anything is made.
"""

from __future__ import annotations

import itertools
import math
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


def _part(
    packed: Packed, suffix: str, dtype: str, shape: tuple[int, ...], *, padded: bool = False
) -> StoredTensor:
    """A part of known dtype and shape; one of bytes may be padded."""
    part = packed.parts.get(suffix)
    if part is None:
        raise Damaged(f"the part '{suffix}' is missing")
    found = part.spec.shape
    if padded and len(found) == 1 and 0 <= found[0] - shape[0] < ALIGNMENT:
        shape = found
    if part.spec.dtype.name != dtype or found != shape:
        raise Damaged(
            f"the part '{suffix}' is {part.spec.dtype.name} {list(found)}, where {dtype} "
            f"{list(shape)} is expected"
        )
    return part


def _read(reader: WeightReader, part: StoredTensor, start: int, stop: int) -> Bytes:
    """Bytes of a part."""
    data = np.empty(stop - start, np.uint8)
    reader.read(part, start, data)
    return data


def _unit_groups(grid: Grid, step: int) -> int:
    """Groups of a unit: ``step`` of them, or those of whole bands of M rows."""
    return step if grid.inner == 1 else max(1, step // grid.inner) * grid.inner


class _Chunks:
    """The layout ``packed``."""

    def __init__(self, packed: Packed, reader: WeightReader) -> None:
        spec = packed.spec
        self._reader = reader
        self._scheme = scheme = read_scheme(spec.dtype, spec.shape, packed.extra)
        self._groups = _unit_groups(scheme.grid, scheme.chunk)
        self.unit = self._groups * scheme.grid.m
        table = _part(packed, "chunks", "U32", (scheme.chunks, scheme.planes))
        sizes = _read(reader, table, 0, table.spec.nbytes).view(np.uint32).astype(np.int64)
        self._ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self._data = _part(packed, "data", "U8", (int(self._ends[-1]),), padded=True)

    def decode(self, number: int, out: Codes) -> None:
        scheme, grid = self._scheme, self._scheme.grid
        first = number * self._groups
        last = first + out.size // grid.m
        for chunk in range(first // scheme.chunk, -(-last // scheme.chunk)):
            start = chunk * scheme.chunk
            stop = min(start + scheme.chunk, grid.groups)
            low, high = max(start, first), min(stop, last)
            if grid.inner == 1 and (low, high) == (start, stop):
                place = out[(start - first) * grid.m : (stop - first) * grid.m]
                decode_chunk(scheme, self._planes(chunk), place.reshape(-1, grid.m))
                continue
            decoded = np.empty((stop - start, grid.m), out.dtype)
            decode_chunk(scheme, self._planes(chunk), decoded)
            grid.write(decoded[low - start : high - start], low - first, out)

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
        self._groups = _unit_groups(grid, max(BLOCK // grid.m // 8, 1) * 8)
        self.unit = self._groups * grid.m
        self._held: Bytes | None = None
        if is_cutlass:
            rows, columns = spec.shape
            self._values = _part(packed, "values", spec.dtype.name, (rows, columns // 2))
            meta = _part(packed, "meta", "I16", (rows, columns // 16))
            data = _read(reader, meta, 0, meta.spec.nbytes).view(np.uint16)
            self._held = from_cutlass(data, rows).view(np.uint8)
        else:
            self._values = _part(packed, "values", spec.dtype.name, (grid.groups, grid.n))
            size = math.ceil(grid.groups * grid.n * self._bits / 8)
            self._positions = _part(packed, "positions", "U8", (size,), padded=True)

    def decode(self, number: int, out: Codes) -> None:
        grid = self._grid
        first = number * self._groups
        last = first + out.size // grid.m
        whole = first // 8 * 8  # where positions start at a whole byte
        begin, end = (at * grid.n * self._bits for at in (whole, last))
        packed = self._positions_of(begin // 8, -(-end // 8))
        positions = np.empty((last - whole) * grid.n, np.uint8)
        grouping.unpack_bits(fixed(packed), self._bits, positions)
        positions = fixed(positions[(first - whole) * grid.n :])
        width = grid.n * self._size
        data = _read(self._reader, self._values, first * width, last * width)
        decoded = np.empty((last - first, grid.m), out.dtype)
        bad = int(grouping.place(positions, fixed(data.view(out.dtype)), grid.n, decoded))
        if bad >= 0:
            raise Damaged(f"the positions of group {first + bad} do not ascend below {grid.m}")
        grid.write(decoded, 0, out)

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
        self._mask = _part(packed, "mask", "U8", (size,), padded=True)
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
