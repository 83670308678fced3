"""What layouts give and take: parts, small parameters, and the two ways it can go wrong."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from prunectl.tensorspec import DTYPES, DType

Codes = NDArray[Any]
"""Raw bits of weights: an array of u8, u16, u32 or u64."""

Bytes = NDArray[np.uint8]
Extra = Mapping[str, Any]
"""Parameters of a layout that decoding needs, as JSON has them."""

BLOCK = 1 << 18
"""Weights worked on at a time, by one thread: they stay in a core's L2 cache."""

ALIGNMENT = 8
"""Tensors of a file begin at multiples of so many bytes."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Run(Protocol):
    """``map``, or the ``map`` of an executor: calls on items, results in order."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterable[Result]: ...


class Misfit(ValueError):
    """The tensor cannot be stored in this layout; says why."""


class Damaged(ValueError):
    """Parts or parameters that no tensor of this dtype and shape is stored as; says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One stored tensor.

    Attributes:
        dtype: its safetensors name, for example ``U8``.
        shape: its shape.
        data: its bytes, u8 [n], row-major and little endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    @classmethod
    def of(cls, dtype: str, array: Codes) -> Part:
        """The part that holds a contiguous array."""
        return cls(dtype, array.shape, array.reshape(-1).view(np.uint8))


Parts = Mapping[str, Part]
"""Parts by suffix: the part ``mask`` of tensor NAME is stored as ``NAME.mask``."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A tensor in a layout."""

    layout: str
    parts: dict[str, Part]
    extra: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(part.data.size for part in self.parts.values())


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


def flat_codes(bits: Codes, dtype: DType, shape: tuple[int, ...]) -> Codes:
    """The codes of a whole tensor as a read-only [n].

    Raises:
        ValueError: ``bits`` are not the codes of such a tensor.
    """
    if bits.dtype != code_type(dtype) or bits.size != code_count(dtype, shape):
        raise ValueError(f"{bits.dtype} {list(bits.shape)} is no {dtype.label} {list(shape)}")
    return fixed(bits).reshape(-1)


def output(dtype: DType, count: int, out: Codes | None) -> Codes:
    """An array [count] to decode into: ``out``, or a new one.

    Raises:
        ValueError: ``out`` is not a contiguous array of so many codes.
        Damaged: so many codes do not fit the memory.
    """
    kind = code_type(dtype)
    if out is not None:
        if out.dtype != kind or out.size != count or not out.flags.carray:
            raise ValueError(f"out is not a contiguous {kind} array of {count} elements")
        return out.reshape(-1)
    try:
        return np.empty(count, kind)
    except (MemoryError, ValueError):
        raise Damaged(f"{count} elements of {kind} do not fit the memory") from None


def shaped(codes: Codes, dtype: DType, shape: tuple[int, ...]) -> Codes:
    """Decoded codes in the tensor's shape; bytes of types of less than 8 bits stay [n]."""
    return codes.reshape(shape) if dtype.bits >= 8 else codes


def row_range(shape: tuple[int, ...], start: int, stop: int) -> tuple[int, int]:
    """First and last element, not including it, of rows ``start`` to ``stop``.

    Raises:
        ValueError: there are no such rows.
    """
    if not shape or not 0 <= start <= stop <= shape[0]:
        raise ValueError(f"a tensor of shape {list(shape)} has no rows {start} to {stop}")
    width = math.prod(shape[1:])
    return start * width, stop * width


def take(parts: Parts, suffix: str, dtype: str, shape: tuple[int, ...]) -> Codes:
    """The array of a part, [n] of unsigned integers, read-only.

    A part of bytes may be longer by up to seven zeros: in a file they align what comes after it.

    Raises:
        Damaged: there is none of that dtype and shape.
    """
    part = parts.get(suffix)
    if part is None:
        raise Damaged(f"the part '{suffix}' is missing")
    if dtype == "U8" and len(shape) == 1 and len(part.shape) == 1:
        part = _without_padding(part, suffix, shape[0])
    if part.dtype != dtype or tuple(part.shape) != shape:
        raise Damaged(
            f"the part '{suffix}' is {part.dtype} {list(part.shape)}, "
            f"where {dtype} {list(shape)} is expected"
        )
    kind = code_type(DTYPES[dtype])
    if part.data.dtype != np.uint8 or part.data.size != code_count(DTYPES[dtype], shape) * (
        kind.itemsize
    ):
        raise Damaged(f"the part '{suffix}' holds {part.data.size} bytes, which its shape does not")
    return fixed(fixed(part.data).reshape(-1).view(kind))


def _without_padding(part: Part, suffix: str, size: int) -> Part:
    extra = part.data[size:]
    if not 0 < extra.size < ALIGNMENT or part.shape != (size + extra.size,):
        return part
    if extra.any():
        raise Damaged(f"the part '{suffix}' has bytes other than zero after its end")
    return Part(part.dtype, (size,), part.data[:size])


def length(parts: Parts, suffix: str) -> int:
    """How many elements a part of one dimension has.

    Raises:
        Damaged: there is no such part.
    """
    part = parts.get(suffix)
    if part is None or len(part.shape) != 1 or part.shape[0] < 0:
        raise Damaged(f"there is no part '{suffix}' of one dimension")
    return part.shape[0]


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


def blocks(count: int, unit: int = 8, size: int = BLOCK) -> list[tuple[int, int]]:
    """``range(count)`` in (start, stop) of about ``size``, each start a multiple of ``unit``."""
    step = max(size // unit, 1) * unit
    return [(start, min(start + step, count)) for start in range(0, count, step)]
