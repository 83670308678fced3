"""The packed layout: the smallest. Chunks of planes, each entropy coded where that pays.

Weights are taken in chunks of ``chunk`` groups (the last one may have fewer), each decoded on its
own. With ``mask`` = ``nm`` groups are the N:M groups of :mod:`prunectl.layouts.groups`, ``n``,
``m`` and ``axis`` say which; otherwise each weight, in row-major order, is a group.

Parts:

- ``chunks``: U32 [chunks, planes]: the stored bytes of each plane of each chunk.
- ``data``: U8 [sum of ``chunks``]: chunk by chunk, plane by plane.

A plane of S bytes (S follows from what is read before it) is stored either as these S bytes, or, if
fewer than S are stored, as one zstd frame that declares S as its content size.

Planes of a chunk of G groups, which keeps V values:

1. The mask, and with it V.
   ``none``: no plane; V = G, and every weight is a value.
   ``bits``: ceil(G / 8) bytes; bit i % 8 of byte i // 8 is 1 if weight i is not +0.0. Bits after
   the last are 0. V is the number of ones.
   ``nm``: V = G * N. Each group has a set number below B = binom(M, N). If B <= 256, ceil(G / D)
   bytes of D numbers each, where D is the largest with B**D <= 256: byte = first + B * second +
   B**2 * third .. (2:4: B = 6, D = 3). Otherwise two planes of G bytes: low bytes, high bytes.
2. The digits of the values' symbols. The *symbol* of a value of w > 8 bits is the 8 bits below its
   sign; of 8 bits, all of it.
   ``per_byte`` = 1: V bytes, the symbols themselves.
   ``per_byte`` = k > 1: ceil(V / k) bytes of k digits each, in base b = len(``symbols``) + 1, the
   first digit lowest, zeros after the last. Digit d < b - 1 is the symbol ``symbols[d]``; digit
   b - 1 is the escape.
3. Escapes: the symbols of escaped values, in order, a byte each.
4. The other w - 8 bits of the values, the sign moved on top of them (u = v >> (w - 1) << (w - 9) |
   v & ((1 << (w - 9)) - 1)): a plane of V bytes for each byte of u, lowest first.

Any dtype of whole bytes, any shape. A group with fewer than N nonzeros keeps zeros too.
"""

from __future__ import annotations

import itertools

import numpy as np

from prunectl.layouts.chunks import decode_chunk, encode_chunk
from prunectl.layouts.parts import (
    ALIGNMENT,
    Bytes,
    Codes,
    Damaged,
    Encoded,
    Extra,
    Misfit,
    Part,
    Parts,
    Run,
    code_count,
    flat_codes,
    length,
    output,
    row_range,
    take,
    whole_codes,
)
from prunectl.layouts.scheme import Scheme, best_scheme, read_scheme
from prunectl.layouts.survey import Survey, survey
from prunectl.pattern import NM
from prunectl.tensorspec import DType


def encode(
    bits: Codes,
    dtype: DType,
    shape: tuple[int, ...],
    *,
    pattern: NM | None = None,
    axis: int = -1,
    counts: Survey | None = None,
    run: Run = map,
) -> Encoded:
    """See :mod:`prunectl.layouts.choice`. A pattern that the tensor does not follow is no error.

    Args:
        bits, dtype, shape, pattern, axis, run: as there.
        counts: of the tensor, if they are known.
    """
    whole_codes(dtype, "packed")
    codes = flat_codes(bits, dtype, shape)
    counts = counts or survey(codes, run)
    scheme, _ = best_scheme(dtype, shape, counts, pattern, axis)
    try:
        return _encode(codes, scheme, run)
    except Misfit:  # some group has more nonzeros, and others fewer
        return _encode(codes, best_scheme(dtype, shape, counts, None, axis)[0], run)


def _encode(codes: Codes, scheme: Scheme, run: Run) -> Encoded:
    def work(number: int) -> list[Bytes]:
        return encode_chunk(scheme, scheme.grid.read(codes, *_groups_of(scheme, number)))

    planes = list(run(work, range(scheme.chunks)))
    table = np.array([[p.size for p in row] for row in planes], np.uint32)
    data = np.concatenate([np.empty(0, np.uint8), *itertools.chain.from_iterable(planes)])
    parts = {
        "chunks": Part.of("U32", table.reshape(scheme.chunks, scheme.planes)),
        "data": Part.of("U8", data),
    }
    return Encoded("packed", parts, scheme.extra())


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
    scheme, table, data = _open(parts, dtype, shape, extra)
    result = output(dtype, code_count(dtype, shape), out)
    _fill(scheme, (0, scheme.grid.groups), table, data, result, run)
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
    """See :mod:`prunectl.layouts.choice`. Decodes the chunks that the rows are in."""
    first, last = row_range(shape, start, stop)
    scheme, table, data = _open(parts, dtype, shape, extra)
    groups = scheme.grid.covering(first, last)
    result = output(dtype, (groups[1] - groups[0]) * scheme.grid.m, None)
    _fill(scheme, groups, table, data, result, run)
    skipped = first - groups[0] * scheme.grid.m
    return result[skipped : skipped + last - first].reshape(stop - start, *shape[1:])


def nbytes(
    dtype: DType,
    shape: tuple[int, ...],
    counts: Survey,
    *,
    pattern: NM | None = None,
    axis: int = -1,
) -> int:
    """Bytes of both parts, about: from counts of the whole tensor, as if it were well mixed.

    Raises:
        Misfit: the elements are less than a byte.
    """
    return best_scheme(dtype, shape, counts, pattern, axis)[1]


def _groups_of(scheme: Scheme, number: int) -> tuple[int, int]:
    """The groups of a chunk, as (start, stop)."""
    start = number * scheme.chunk
    return start, min(start + scheme.chunk, scheme.grid.groups)


def _open(
    parts: Parts, dtype: DType, shape: tuple[int, ...], extra: Extra
) -> tuple[Scheme, list[list[int]], Bytes]:
    """The scheme, where each plane of each chunk begins and ends in the data, and the data.

    Raises:
        Damaged: parameters or parts that do not fit the tensor or each other.
    """
    scheme = read_scheme(dtype, shape, extra)
    sizes = take(parts, "chunks", "U32", (scheme.chunks, scheme.planes))
    total, there = int(sizes.sum(dtype=np.uint64)), length(parts, "data")
    if not total <= there < total + ALIGNMENT:
        raise Damaged(f"the chunks take {total} bytes of {there}")
    data = take(parts, "data", "U8", (total,))
    ends = np.cumsum(sizes, dtype=np.int64).reshape(scheme.chunks, scheme.planes)
    starts = ends[:, :1] - sizes.reshape(ends.shape)[:, :1].astype(np.int64)
    return scheme, np.hstack([starts, ends]).tolist(), data


def _fill(
    scheme: Scheme,
    groups: tuple[int, int],
    table: list[list[int]],
    data: Bytes,
    out: Codes,
    run: Run,
) -> None:
    """Decode a range of groups into ``out``, the elements from the first of them on."""
    first, last = groups
    grid = scheme.grid

    def work(number: int) -> None:
        start, stop = _groups_of(scheme, number)
        planes = [data[a:b] for a, b in itertools.pairwise(table[number])]
        inside = first <= start and stop <= last
        place = out[(start - first) * grid.m :][: (stop - start) * grid.m]
        if inside and grid.inner == 1:
            decode_chunk(scheme, planes, place.reshape(-1, grid.m))
            return
        decoded = np.empty((stop - start, grid.m), out.dtype)
        decode_chunk(scheme, planes, decoded)
        low, high = max(start, first), min(stop, last)
        grid.write(decoded[low - start : high - start], low - first, out)

    chunks = range(first // scheme.chunk, -(-last // scheme.chunk) if last > first else 0)
    for _ in run(work, chunks):
        pass
