"""Codes, and the parts of a tensor in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.layouts.errors import Damaged
from prunectl.tensorspec import DType, TensorSpec

ALIGNMENT = 8
"""Alignment in bytes of tensors in a file; parts may be padded to it."""

Codes = NDArray[Any]
"""Raw bits of weights: an array of u8, u16, u32 or u64."""

Bytes = NDArray[np.uint8]


def code_type(dtype: DType) -> np.dtype[Any]:
    """The numpy type of a dtype's codes; bytes for types of less than 8 bits."""
    return np.dtype(f"u{max(1, dtype.bits // 8)}")


def fixed(array: Codes) -> Codes:
    """The same memory as a contiguous, aligned, read-only array: kernels compile once per type."""
    view = np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a tensor as headers list them, unchecked.

    Attributes:
        specs: by suffix.
        fill: ``fill(suffix, start, out)`` fills ``out`` with the part's bytes from ``start`` on.
    """

    specs: Mapping[str, TensorSpec]
    fill: Callable[[str, int, Bytes], None]

    def expect(self, suffix: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Check that a part exists, with this dtype and shape.

        Raises:
            Damaged: the part is missing, or of another dtype or shape.
        """
        found = self.specs.get(suffix)
        if found is None:
            raise Damaged(f"the part '{suffix}' is missing")
        if found.dtype.name != dtype or found.shape != shape:
            raise Damaged(
                f"the part '{suffix}' is {found.dtype.name} {list(found.shape)}, where {dtype} "
                f"{list(shape)} is expected"
            )

    def expect_bytes(self, suffix: str, size: int) -> None:
        """Check that there is a part U8 [size], with at most seven zeros of padding.

        The padding aligns the tensor after the part.

        Raises:
            Damaged: there is no such part.
        """
        found = self.specs[suffix].shape if suffix in self.specs else ()
        is_padded = len(found) == 1 and size < found[0] < size + ALIGNMENT
        self.expect(suffix, "U8", found if is_padded else (size,))
        if is_padded and self.read(suffix, size, found[0]).any():
            raise Damaged(f"the part '{suffix}' has bytes other than zero after its end")

    def read(self, suffix: str, start: int, stop: int) -> Bytes:
        """Bytes of a part."""
        data = np.empty(stop - start, np.uint8)
        self.fill(suffix, start, data)
        return data
