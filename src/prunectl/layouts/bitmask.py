"""The bitmask layout: a bit for each weight, and the weights that are not zero.

Parts:

- ``mask``: U8 [ceil(weights / 8)]. Bit i % 8 of byte i // 8 is 1 if weight i, in row-major order,
  is not +0.0. Bits after the last weight are 0.
- ``values``: the tensor's dtype, [ones in the mask]: these weights, in order.

No parameters. Any dtype of whole bytes, any shape.
"""

from __future__ import annotations

from prunectl.layouts.parts import code_count, code_type, whole_codes
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
    """Bytes of both parts, exactly."""
    whole_codes(dtype, "bitmask")
    return -(-code_count(dtype, shape) // 8) + counts.kept * code_type(dtype).itemsize
