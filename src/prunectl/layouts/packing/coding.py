"""Encoder and decoder of a packed tensor, chunk by chunk."""

from __future__ import annotations

import itertools

import numpy as np

from prunectl.layouts.layout import Extra, Pieces, StoredPart, cut
from prunectl.layouts.packing.chunks import decode_chunk, encode_chunk
from prunectl.layouts.packing.scheme import read_scheme
from prunectl.layouts.parts import Bytes, Codes, Parts
from prunectl.tensorspec import TensorSpec


class ChunkEncoder:
    """Encodes a chunk as a range; the large part is ``data``."""

    def __init__(self, spec: TensorSpec, extra: Extra) -> None:
        self._scheme = scheme = read_scheme(spec.dtype, spec.shape, extra)
        self._groups = cut(scheme.grid.groups, scheme.chunk)
        self.ranges = [scheme.grid.covering(*some) for some in self._groups]
        # a stored plane is never longer than the plane: mask, symbols, escapes, low bytes
        self.most = spec.numel * (scheme.planes + 1)
        self.lead: int | None = 4 * scheme.chunks * scheme.planes

    def encode(self, number: int, codes: Codes) -> Pieces:
        groups = self._scheme.grid.read_covering(codes, *self._groups[number])
        planes = encode_chunk(self._scheme, groups)
        sizes = np.array([plane.size for plane in planes], np.uint32)
        return Pieces(planes, sizes.view(np.uint8))

    def finish(self, small: Bytes) -> Bytes:
        return small

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        table = (self._scheme.chunks, self._scheme.planes)
        return StoredPart("data", "U8", (large + padding,)), StoredPart("chunks", "U32", table)


class ChunkDecoder:
    """Decodes the groups of a chunk, or the rows that hold them, as a unit."""

    def __init__(self, spec: TensorSpec, extra: Extra, parts: Parts) -> None:
        self._parts = parts
        self._scheme = scheme = read_scheme(spec.dtype, spec.shape, extra)
        self.unit = scheme.grid.unit(scheme.chunk)
        parts.expect("chunks", "U32", (scheme.chunks, scheme.planes))
        sizes = parts.read("chunks", 0, parts.specs["chunks"].nbytes).view(np.uint32)
        self._ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        parts.expect_bytes("data", int(self._ends[-1]))

    def decode(self, number: int, out: Codes) -> None:
        self._scheme.grid.decode(number * self.unit, out, self._fill)

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
        data = self._parts.read("data", places[0], places[-1])
        return [data[a - places[0] : b - places[0]] for a, b in itertools.pairwise(places)]
