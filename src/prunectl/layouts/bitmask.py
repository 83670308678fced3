"""The bitmask layout: a bit for each weight, and the weights that are not zero.

Parts:

- ``mask``: U8 [ceil(weights / 8)]. Bit i % 8 of byte i // 8 is 1 if weight i, in row-major order,
  is not +0.0. Bits after the last weight are 0.
- ``values``: the tensor's dtype, [ones in the mask]: these weights, in order.

No parameters. Any dtype of whole bytes, any shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunectl.layouts.kernels import masking
from prunectl.layouts.parts import (
    BLOCK,
    Bytes,
    Codes,
    Damaged,
    Encoded,
    Extra,
    Part,
    Parts,
    Run,
    blocks,
    code_count,
    code_type,
    flat_codes,
    length,
    output,
    row_range,
    take,
    whole_codes,
)
from prunectl.layouts.survey import Survey
from prunectl.pattern import NM
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
    """See :mod:`prunectl.layouts.choice`."""
    whole_codes(dtype, "bitmask")
    codes = flat_codes(bits, dtype, shape)
    places = blocks(codes.size)
    counts = list(run(lambda block: int(masking.count_kept(codes[slice(*block)])), places))
    ends = np.cumsum([0, *counts]).tolist()
    mask = np.zeros(-(-codes.size // 8), np.uint8)
    values = np.empty(ends[-1], codes.dtype)

    def work(number: int) -> None:
        start, stop = places[number]
        kept, scratch = counts[number], np.empty(stop - start, codes.dtype)
        masking.compact(codes[start:stop], mask[start // 8 : -(-stop // 8)], scratch)
        values[ends[number] : ends[number] + kept] = scratch[:kept]

    for _ in run(work, range(len(places))):
        pass
    parts = {"mask": Part.of("U8", mask), "values": Part.of(dtype.name, values)}
    return Encoded("bitmask", parts, {})


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
    mask, values = _parts(parts, dtype, shape)
    count = code_count(dtype, shape)
    result = output(dtype, count, out)
    if (found := _fill(mask, values, result, run)) != values.size:
        raise Damaged(f"the mask has {found} ones, and there are {values.size} values")
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
    """See :mod:`prunectl.layouts.choice`. Reads the mask up to the last row."""
    first, last = row_range(shape, start, stop)
    mask, values = _parts(parts, dtype, shape)
    head = first // 8
    skipped = ones(mask[:head])
    result = output(dtype, last - 8 * head, None)
    found = _fill(mask[head : -(-last // 8)], values[skipped:], result, run)
    if skipped + found > values.size:
        raise Damaged(f"the mask has {skipped + found} ones, and there are {values.size} values")
    return result[first - 8 * head :].reshape(stop - start, *shape[1:])


def nbytes(
    dtype: DType,
    shape: tuple[int, ...],
    counts: Survey,
    *,
    pattern: NM | None = None,
    axis: int = -1,
) -> int:
    """Bytes of both parts, exactly."""
    whole_codes(dtype, "bitmask")
    return -(-code_count(dtype, shape) // 8) + counts.kept * code_type(dtype).itemsize


def ones(mask: Bytes) -> int:
    """How many bits of ``mask`` are set."""
    whole = mask.size // 8 * 8
    counts: Any = np.bitwise_count(mask[whole:]).sum(dtype=np.int64)
    for start in range(0, whole, BLOCK):
        words = np.require(mask[start : min(start + BLOCK, whole)], requirements=["A"])
        counts += np.bitwise_count(words.view(np.uint64)).sum(dtype=np.int64)
    return int(counts)


def _parts(parts: Parts, dtype: DType, shape: tuple[int, ...]) -> tuple[Bytes, Codes]:
    """Mask and values, each of the size that its own header says.

    Raises:
        Damaged: a part is missing or has another dtype or shape; or bits after the last weight.
    """
    whole_codes(dtype, "bitmask")
    count = code_count(dtype, shape)
    mask = take(parts, "mask", "U8", (-(-count // 8),))
    if count % 8 and mask[-1] >> count % 8:
        raise Damaged("the mask has ones after the last weight")
    return mask, take(parts, "values", dtype.name, (length(parts, "values"),))


def _fill(mask: Bytes, values: Codes, out: Codes, run: Run) -> int:
    """Decode into ``out``, unless there are too few values; returns how many there should be."""
    places = blocks(out.size)
    pieces = [mask[start // 8 : -(-stop // 8)] for start, stop in places]
    counts = list(run(ones, pieces))
    if out.size % 8 and places:  # bits after the last element are those of a later row
        counts[-1] -= int(pieces[-1][-1] >> out.size % 8).bit_count()
    ends = np.cumsum([0, *counts]).tolist()
    if ends[-1] > values.size:
        return int(ends[-1])

    def work(number: int) -> None:
        start, stop = places[number]
        masking.scatter(pieces[number], values[ends[number] : ends[number + 1]], out[start:stop])

    for _ in run(work, range(len(places))):
        pass
    return int(ends[-1])
