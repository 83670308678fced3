"""The bitmask layout: a bit for each weight, and the weights that are not zero.

Parts:

- ``mask``: U8 [ceil(weights / 8)]. Bit i % 8 of byte i // 8 is 1 if weight i, in row-major order,
  is not +0.0. Bits after the last weight are 0.
- ``values``: the tensor's dtype, [ones in the mask]: these weights, in order.

No parameters. Any dtype of whole bytes, any shape.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from prunectl.layouts.errors import Damaged
from prunectl.layouts.layout import (
    BLOCK,
    Coding,
    Extra,
    Layout,
    Pieces,
    Statistics,
    StoredPart,
    Survey,
    code_bytes,
    code_count,
    cut,
)
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    from prunectl.layouts.parts import Bytes, Codes, Parts


def nbytes(survey: Survey) -> int:
    """The exact bytes of both parts."""
    width = code_bytes(survey.dtype, "bitmask")
    return _size(code_count(survey.dtype, survey.shape), survey.kept, width)


def _predicted(statistics: Statistics) -> int:
    return _size(statistics.numel, round(statistics.kept), statistics.dtype.bits // 8)


def _size(numel: int, kept: int, width: int) -> int:
    return -(-numel // 8) + kept * width


class _Encoder:
    lead: int | None = None

    def __init__(self, spec: TensorSpec, extra: Extra) -> None:
        self._spec = spec
        self.ranges, self.most = cut(spec.numel), spec.nbytes

    def encode(self, number: int, codes: Codes) -> Pieces:
        import numpy as np

        from prunectl.layouts.kernels import masking

        mask = np.empty(-(-codes.size // 8), np.uint8)
        values = np.empty(codes.size, codes.dtype)
        count = int(masking.compact(codes, mask, values))
        return Pieces([values[:count].view(np.uint8)], mask)

    def finish(self, small: Bytes) -> Bytes:
        return small

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        dtype, size = self._spec.dtype, -(-self._spec.numel // 8)
        return (
            StoredPart("values", dtype.name, (large * 8 // dtype.bits,)),
            StoredPart("mask", "U8", (size + padding,)),
        )


class _Decoder:
    unit = BLOCK

    def __init__(self, spec: TensorSpec, extra: Extra, parts: Parts) -> None:
        self._numel, self._size, self._parts = spec.numel, spec.dtype.bits // 8, parts
        parts.expect_bytes("mask", -(-spec.numel // 8))
        counts = [_ones(self._mask(number)) for number in range(-(-spec.numel // BLOCK))]
        self._ends = list(itertools.accumulate(counts, initial=0))
        parts.expect("values", spec.dtype.name, (self._ends[-1],))

    def _mask(self, number: int) -> Bytes:
        """The mask bytes of a unit; checks that bits after the last weight are zero."""
        start, stop = number * BLOCK, min((number + 1) * BLOCK, self._numel)
        mask = self._parts.read("mask", start // 8, -(-stop // 8))
        if stop % 8 and mask[-1] >> stop % 8:
            raise Damaged("the mask has ones after the last weight")
        return mask

    def decode(self, number: int, out: Codes) -> None:
        from prunectl.layouts.kernels import masking
        from prunectl.layouts.parts import fixed

        mask = self._mask(number)
        start, stop = self._ends[number], self._ends[number + 1]
        if _ones(mask) != stop - start:
            raise Damaged("the mask changed while it was read")
        data = self._parts.read("values", start * self._size, stop * self._size)
        masking.scatter(fixed(mask), fixed(data.view(out.dtype)), out)


def _ones(mask: Bytes) -> int:
    import numpy as np

    return int(np.bitwise_count(mask).sum(dtype=np.int64))


LAYOUT = Layout(
    summary="a bit for each weight, and the kept values",
    nbytes=nbytes,
    predicted=_predicted,
    coding=Coding(("mask", "values"), _Encoder, _Decoder),
    pruned="{}, as a bitmask and values",
    takes_unstructured=True,
    is_mapped=True,
)
