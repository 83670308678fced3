"""The dense layout: the tensor itself, under its own name, as every loader reads it.

No parts, no parameters. Any dtype, any shape.
"""

from __future__ import annotations

from prunectl.layouts.layout import Layout, Survey, code_count


def nbytes(survey: Survey) -> int:
    """Bytes of the tensor."""
    return code_count(survey.dtype, survey.shape) * max(1, survey.dtype.bits // 8)


LAYOUT = Layout(
    summary="zeros like any weight: every loader reads it",
    nbytes=nbytes,
    predicted=lambda statistics: statistics.dense_bytes,
    unpruned="dense (zeros stored like any weight)",
)
