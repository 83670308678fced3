"""The dense layout: the tensor itself, under its own name. What everything loads.

No parts, no parameters. Any dtype, any shape.
"""

from __future__ import annotations

from prunectl.layouts.layout import Layout, Survey, code_count
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
    """Bytes of the tensor."""
    return code_count(dtype, shape) * max(1, dtype.bits // 8)


LAYOUT = Layout(
    summary="zeros like any weight: what everything loads",
    nbytes=nbytes,
    predicted=lambda statistics: statistics.dense_bytes,
    unpruned="dense (zeros stored like any weight)",
)
