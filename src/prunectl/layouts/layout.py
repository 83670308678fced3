"""Layouts, and the interfaces of their encoders and decoders.

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
"""Parameters for decoding, as JSON values. ``n`` and ``m`` are those of an N:M pattern."""

BLOCK = 1 << 18
"""Weights that a thread processes at a time: they stay in a core's L2 cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Counts of a tensor before it is stored: zeros, and symbols of the other codes.

    The *symbol* of a code is the top 8 bits of its magnitude: the exponent of bf16 and fp32, the
    exponent and three more bits of fp16. (Of 8-bit types it is the whole code.)

    Attributes:
        dtype, shape: of the tensor.
        zeros: codes that are all zero bits.
        symbols: i64 [256], how often each symbol occurs among the others.
        pattern, axis: the N:M that the tensor follows, or None; and its axis.
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
    """Estimated counts of a tensor whose codes are not available, or that is not pruned yet.

    Attributes:
        dtype: of whole bytes.
        numel: weights.
        kept: weights that are not zero, approximately.
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
    """A part as listed in the header."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """The output for one range: bytes of the large part, in order, and of the small part."""

    large: Sequence[Bytes]
    small: Bytes


class Encoder(Protocol):
    """Encodes one tensor into a large and a small part, a range of elements at a time.

    Each range is read and encoded on its own, by any thread. The results are combined in order: the
    bytes of the large part are stored at once, those of the small part when the tensor is complete.

    Attributes:
        ranges: first element and end of each range to read.
        most: upper limit of the size of the large part.
        lead: the bytes of the small part, if it comes first in the file; None if it comes last. The
            last part may be padded.
    """

    ranges: list[tuple[int, int]]
    most: int
    lead: int | None

    def encode(self, number: int, codes: Codes) -> Pieces:
        """Encode one range; ``codes`` are its elements."""

    def finish(self, small: Bytes) -> Bytes:
        """The final bytes of the small part."""

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        """Both parts, given the bytes of the large one; the last part includes the padding."""


class Decoder(Protocol):
    """Decodes a tensor in units of elements that are consecutive in row-major order.

    Memory for a unit is about the size of the unit.

    Attributes:
        unit: elements of a unit; the last one may have fewer.

    Raises:
        Damaged: by every method, if the parts are not those of the tensor.
    """

    unit: int

    def decode(self, number: int, out: Codes) -> None:
        """Decode a unit into ``out``, which has its length; several threads may decode at once."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How tensors become parts, and parts become tensors.

    Attributes:
        suffixes: of all parts: the part ``mask`` of tensor NAME is stored as ``NAME.mask``.
        encoder: makes the encoder of a tensor that fits the layout, with the chosen parameters.
        decoder: makes the decoder of a tensor, with the parameters and parts in a file. Raises
            Damaged if they do not fit the tensor; all sizes are compared with the tensor's before
            anything is allocated.
        parameters: chooses those of a tensor that fits the layout; none by default.
    """

    suffixes: tuple[str, ...]
    encoder: Callable[[TensorSpec, Extra], Encoder]
    decoder: Callable[[TensorSpec, Extra, Parts], Decoder]
    parameters: Callable[[Survey], dict[str, Any]] = lambda survey: {}


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to store a tensor.

    Attributes:
        summary: a few words on the stored bytes.
        nbytes: the bytes of all parts, from counts alone. Raises Misfit if the tensor does not fit.
        predicted: the same from statistics; the dense size if the tensor does not fit.
        coding: how tensors are encoded and decoded; None if a tensor is stored as it is.
        is_exact: whether both sizes are exact, not close estimates.
        unpruned: label of a predicted size if nothing is pruned; '' if the layout has no benefit
            then.
        pruned: label after pruning, with ``{}`` for the pruning; '' if the layout has no benefit
            then.
        takes_unstructured: whether it benefits from zeros that follow no pattern.
        takes_groups: whether it benefits from an N:M pattern.
        is_mapped: whether its parts are a mask and values that compressed execution reads as they
            are: bits in row-major order, the lowest first, and the weights at ones.
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
    is_mapped: bool = False

    @property
    def needs_groups(self) -> bool:
        """Whether it stores only tensors that follow an N:M pattern."""
        return self.takes_groups and not self.takes_unstructured


def cut(count: int, step: int = BLOCK) -> list[tuple[int, int]]:
    """Ranges of ``step`` that cover 0 to ``count``; the last one may be shorter."""
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def pattern_of(extra: Extra) -> NM | None:
    """The N:M that chosen parameters use, or None."""
    return NM(extra["n"], extra["m"]) if "m" in extra else None


def code_count(dtype: DType, shape: tuple[int, ...]) -> int:
    """The number of codes of a tensor: its elements, or its bytes for types of less than 8 bits.

    Raises:
        ValueError: a negative dimension, or an incomplete last byte.
    """
    if any(n < 0 for n in shape):
        raise ValueError(f"the shape {list(shape)} has a negative dimension")
    count = math.prod(shape)
    if dtype.bits >= 8:
        return count
    if count * dtype.bits % 8:
        raise ValueError(f"{count} elements of {dtype.bits} bits are not a whole number of bytes")
    return count * dtype.bits // 8


def code_bytes(dtype: DType, layout: str) -> int:
    """Bytes of a code.

    Raises:
        Misfit: elements of less than a byte, which only ``dense`` stores.
    """
    if dtype.bits < 8:
        raise Misfit(
            f"{dtype.label} elements are less than a byte; they are not stored as {layout}"
        )
    return dtype.bits // 8


def integer(extra: Extra, key: str, low: int, high: int) -> int:
    """An integer among the parameters.

    Raises:
        Damaged: missing, of another type, or not in ``low..high``.
    """
    value = extra.get(key)
    if type(value) is not int or not low <= value <= high:
        found = reprlib.repr(value)
        raise Damaged(f"the parameter '{key}' is {found}, not a number from {low} to {high}")
    return value


def entropy(counts: Sequence[float]) -> float:
    """The entropy of symbols with these counts, in bits."""
    total = sum(counts)
    return -sum(n * math.log2(n / total) for n in counts if n > 0)
