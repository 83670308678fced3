"""The dense layout: the tensor itself, in one part.

Parts: ``dense``, of the tensor's dtype and shape. No parameters.
"""

from __future__ import annotations

import math

from prunectl.layouts.parts import code_count, code_type
from prunectl.layouts.survey import Survey
from prunectl.pattern import NM
from prunectl.tensorspec import DType


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
