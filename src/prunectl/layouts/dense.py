"""The dense layout: the tensor itself, in one part.

Parts: ``dense``, of the tensor's dtype and shape. No parameters.
"""

from __future__ import annotations

import math

from prunectl.layouts.parts import (
    Codes,
    Encoded,
    Extra,
    Part,
    Parts,
    Run,
    code_count,
    code_type,
    flat_codes,
    output,
    row_range,
    shaped,
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
    """See :mod:`prunectl.layouts.choice`. The part shares the memory of ``bits``."""
    codes = flat_codes(bits, dtype, shape)
    part = Part(dtype.name, shape, Part.of(dtype.name, codes).data)
    return Encoded("dense", {"dense": part}, {})


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
    codes = take(parts, "dense", dtype.name, shape)
    result = output(dtype, codes.size, out)
    result[:] = codes
    return shaped(result, dtype, shape)


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
    whole_codes(dtype, "rows")
    first, last = row_range(shape, start, stop)
    codes = take(parts, "dense", dtype.name, shape)[first:last].copy()
    return codes.reshape(stop - start, *shape[1:])


def nbytes(
    dtype: DType,
    shape: tuple[int, ...],
    counts: Survey,
    *,
    pattern: NM | None = None,
    axis: int = -1,
) -> int:
    """Bytes of the part, exactly."""
    if dtype.bits < 8:
        return code_count(dtype, shape)
    return math.prod(shape) * code_type(dtype).itemsize
