"""What a layout is, and what its encoder and its decoder do.

Nothing here needs numpy: the command line reads the table of layouts for its help.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prunectl.layouts.errors import Damaged, Misfit
from prunectl.pattern import NM
from prunectl.tensorspec import DType, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prunectl.layouts.parts import Bytes, Codes, Parts

Extra = Mapping[str, Any]
"""Parameters that decoding needs, as JSON has them. ``n`` and ``m`` are those of an N:M pattern."""

BLOCK = 1 << 18
"""Weights worked on at a time, by one thread: they stay in a core's L2 cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What is counted of a tensor before it is stored: zeros, and symbols of the other codes.

    The *symbol* of a code is the top 8 bits of its magnitude: the exponent of bf16 and fp32, the
    exponent and three more bits of fp16. (Of 8-bit types it is the whole code.)

    Attributes:
        dtype, shape: of the tensor.
        zeros: codes that are all zero bits.
        symbols: i64 [256], how often each symbol occurs among the others.
        pattern, axis: the N:M that the tensor follows, or None; and along which axis.
    """

    dtype: DType
    shape: tuple[int, ...]
    zeros: int
    symbols: NDArray[np.int64]
    pattern: NM | None = None
    axis: int = -1

    @property
    def kept(self) -> int:
        return int(self.symbols.sum())


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of a tensor whose codes are not at hand, or that is not pruned yet.

    Attributes:
        dtype: of whole bytes.
        numel: weights.
        kept: weights that are not zero, about.
        exponent_bits: the entropy of the exponents of all kept weights together, in bits.
        pattern: the N:M that the whole tensor follows, or None.
    """

    dtype: DType
    numel: int
    kept: float
    exponent_bits: float
    pattern: NM | None = None

    @property
    def dense_bytes(self) -> int:
        return self.numel * self.dtype.bits // 8


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part as the header lists it."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """What one range gives: bytes of the large part, in order, and of the small part."""

    large: Sequence[Bytes]
    small: Bytes


class Encoder(Protocol):
    """Encodes one tensor into a large and a small part, a range of elements at a time.

    Each range is read and encoded on its own, by any thread. The results are put together in order:
    the bytes of the large part are stored at once, those of the small part when the tensor is
    complete.

    Attributes:
        ranges: first and last element, not including it, that each range must have read.
        most: the largest size that the large part may come to have.
        lead: the bytes of the small part, where it comes first in the file; None where it comes
            last. The last part may be padded.
    """

    ranges: list[tuple[int, int]]
    most: int
    lead: int | None

    def encode(self, number: int, codes: Codes) -> Pieces:
        """Encode one range; ``codes`` are its elements."""

    def finish(self, small: Bytes) -> Bytes:
        """The bytes of the small part as they are stored."""

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        """Large and small part, given the bytes of the large one; the last has the padding too."""


class Decoder(Protocol):
    """Decodes a tensor in units of elements that lie together in row-major order.

    What is read and held for a unit is about as large as the unit.

    Attributes:
        unit: elements of a unit; the last one may have fewer.

    Raises:
        Damaged: from everything, if the parts are not those of the tensor.
    """

    unit: int

    def decode(self, number: int, out: Codes) -> None:
        """Decode a unit into ``out``, which has its length; several threads may do so at once."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How tensors become parts, and parts tensors.

    Attributes:
        suffixes: of all parts: the part ``mask`` of tensor NAME is stored as ``NAME.mask``.
        encoder: of a tensor that its layout can store, with the parameters chosen for it.
        decoder: of a tensor, with the parameters and parts that a file says it has. Raises Damaged
            if they are not those of such a tensor; all sizes are compared with the tensor's before
            anything is allocated.
        parameters: chosen for a tensor that its layout can store; none by default.
    """

    suffixes: tuple[str, ...]
    encoder: Callable[[TensorSpec, Extra], Encoder]
    decoder: Callable[[TensorSpec, Extra, Parts], Decoder]
    parameters: Callable[[Survey], dict[str, Any]] = lambda survey: {}


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to store a tensor.

    Attributes:
        summary: what is stored, in a few words.
        nbytes: the bytes of all parts, from counts alone. Raises Misfit if the tensor cannot be
            stored so.
        predicted: the same from statistics; the dense size where the tensor cannot be stored so.
        coding: how tensors are encoded and decoded; None if a tensor is stored as it is.
        is_exact: whether both sizes are exact, and not close estimates.
        unpruned: what a predicted size is of, in words, if nothing is pruned; '' if the layout is
            not of use then.
        pruned: the same after pruning, which ``{}`` stands for; '' if it is not of use then.
        takes_unstructured: whether it is of use for zeros that follow no pattern.
        takes_groups: whether it makes use of an N:M pattern.
    """

    summary: str
    nbytes: Callable[[Survey], int]
    predicted: Callable[[Statistics], int]
    coding: Coding | None = None
    is_exact: bool = True
    unpruned: str = ""
    pruned: str = ""
    takes_unstructured: bool = False
    takes_groups: bool = False

    @property
    def needs_groups(self) -> bool:
        """Whether it only stores tensors that follow an N:M pattern."""
        return self.takes_groups and not self.takes_unstructured


def cut(count: int, step: int = BLOCK) -> list[tuple[int, int]]:
    """Ranges of ``step`` that cover 0 to ``count``; the last one may be shorter."""
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def pattern_of(extra: Extra) -> NM | None:
    """The N:M that chosen parameters make use of, or None."""
    return NM(extra["n"], extra["m"]) if "m" in extra else None


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


def code_bytes(dtype: DType, layout: str) -> int:
    """Bytes of a code.

    Raises:
        Misfit: the elements are less than a byte: only ``dense`` stores these.
    """
    if dtype.bits < 8:
        raise Misfit(
            f"{dtype.label} elements are less than a byte; they are not stored as {layout}"
        )
    return dtype.bits // 8


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


def entropy(counts: Sequence[float]) -> float:
    """Bits that as many symbols take, coded one by one."""
    total = sum(counts)
    return -sum(n * math.log2(n / total) for n in counts if n > 0)
