"""Codes, limits and parameters that layouts share, and the two ways in which one can go wrong."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.tensorspec import DType

Codes = NDArray[Any]
"""Raw bits of weights: an array of u8, u16, u32 or u64."""

Bytes = NDArray[np.uint8]
Extra = Mapping[str, Any]
"""Parameters of a layout that decoding needs, as JSON has them."""

BLOCK = 1 << 18
"""Weights worked on at a time, by one thread: they stay in a core's L2 cache."""

ALIGNMENT = 8
"""Tensors of a file begin at multiples of so many bytes."""


class Misfit(ValueError):
    """The tensor cannot be stored in this layout; says why."""


class Damaged(ValueError):
    """Parts or parameters that no tensor of this dtype and shape is stored as; says why."""


def code_type(dtype: DType) -> np.dtype[Any]:
    """The numpy type of a dtype's codes; bytes for types of less than 8 bits."""
    return np.dtype(f"u{max(1, dtype.bits // 8)}")


def code_count(dtype: DType, shape: tuple[int, ...]) -> int:
    """How many codes a tensor has: its elements, or its bytes for types of less than 8 bits.

    Raises:
        ValueError: a negative dimension, or a part of a byte at the end.
    """
    if any(n < 0 for n in shape):
        raise ValueError(f"the shape {list(shape)} has a negative dimension")
    count = math.prod(shape)
    if dtype.bits >= 8:
        return count
    if count * dtype.bits % 8:
        raise ValueError(f"{count} elements of {dtype.bits} bits are no whole number of bytes")
    return count * dtype.bits // 8


def whole_codes(dtype: DType, layout: str) -> None:
    """Refuse types of less than a byte.

    Raises:
        Misfit: for such a type.
    """
    if dtype.bits < 8:
        raise Misfit(
            f"{dtype.label} elements are less than a byte; they are not stored as {layout}"
        )


def fixed(array: Codes) -> Codes:
    """The same memory, contiguous, aligned and read-only, so that kernels compile once a type."""
    view = np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


def integer(extra: Extra, key: str, low: int, high: int) -> int:
    """A whole number among the parameters.

    Raises:
        Damaged: missing, of another type, or not in ``low..high``.
    """
    value = extra.get(key)
    if type(value) is not int or not low <= value <= high:
        found = reprlib.repr(value)
        raise Damaged(f"the parameter '{key}' is {found}, not a number from {low} to {high}")
    return value
