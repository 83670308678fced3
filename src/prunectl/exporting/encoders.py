"""Tensors on their way into parts, a block at a time.

An encoder cuts its tensor into ranges of elements. Each range is read and encoded on its own, by
any thread; what comes out is put together in order: bytes that are stored at once (the large part),
and bytes that are kept until the tensor is complete (the small part).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from prunectl.exporting.survey import Choice
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    from prunectl.layouts.groups import Grid

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[Any]


SUFFIXES = ("chunks", "data", "mask", "meta", "positions", "values")
"""Of all parts of all layouts: the part ``mask`` of tensor NAME is stored as ``NAME.mask``."""


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
    """How one tensor is encoded.

    Attributes:
        small_first: whether the small part, whose size is known beforehand, comes first in the
            file; what comes last may be padded.
        extra: the parameters of the layout.
    """

    small_first: bool
    extra: dict[str, Any]

    @property
    def ranges(self) -> int:
        """How many ranges there are."""

    def elements(self, number: int) -> tuple[int, int]:
        """First and last element, not including it, that a range must have read."""

    def encode(self, number: int, codes: Codes) -> Pieces:
        """Encode one range; ``codes`` are the elements that it asked for."""

    def small_bytes(self) -> int:
        """The size of the whole small part."""

    def most(self) -> int:
        """The largest size that the large part may come to have."""

    def finish(self, small: Bytes) -> Bytes:
        """The bytes of the small part as they are stored."""

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        """Large and small part, given the bytes of the large one; the last has the padding too."""


def encoder_of(choice: Choice) -> Encoder:
    """The encoder of a tensor that is not stored densely."""
    if choice.layout == "packed":
        return _Packed(choice)
    return _Groups(choice) if choice.layout == "nm" else _Bitmask(choice.spec)


def _covering(grid: Grid, start: int, stop: int) -> tuple[int, int]:
    """The elements of whole bands of M rows that hold groups ``start`` to ``stop``."""
    band = grid.m * grid.inner
    return start // grid.inner * band, -(-stop // grid.inner) * band


def _read(grid: Grid, codes: Codes, start: int, stop: int) -> Codes:
    """Groups out of the elements that :func:`_covering` says."""
    skipped = start // grid.inner * grid.inner
    return grid.read(codes, start - skipped, stop - skipped)


class _Packed:
    small_first = True

    def __init__(self, choice: Choice) -> None:
        assert choice.scheme is not None
        self._scheme = choice.scheme
        self.extra = choice.scheme.extra()

    @property
    def ranges(self) -> int:
        return self._scheme.chunks

    def _groups(self, number: int) -> tuple[int, int]:
        start = number * self._scheme.chunk
        return start, min(start + self._scheme.chunk, self._scheme.grid.groups)

    def elements(self, number: int) -> tuple[int, int]:
        return _covering(self._scheme.grid, *self._groups(number))

    def encode(self, number: int, codes: Codes) -> Pieces:
        from prunectl.layouts.chunks import encode_chunk

        groups = _read(self._scheme.grid, codes, *self._groups(number))
        planes = encode_chunk(self._scheme, groups)
        sizes = np.array([plane.size for plane in planes], np.uint32)
        return Pieces(planes, sizes.view(np.uint8))

    def small_bytes(self) -> int:
        return 4 * self._scheme.chunks * self._scheme.planes

    def most(self) -> int:
        # No plane is stored longer than it is: mask, symbols, escapes and low bytes of all weights.
        return self._scheme.grid.groups * self._scheme.grid.m * (self._scheme.planes + 1)

    def finish(self, small: Bytes) -> Bytes:
        return small

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        table = (self._scheme.chunks, self._scheme.planes)
        return StoredPart("data", "U8", (large + padding,)), StoredPart("chunks", "U32", table)


class _Bitmask:
    small_first = False

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self.extra: dict[str, Any] = {}

    @property
    def ranges(self) -> int:
        from prunectl.layouts.parts import BLOCK

        return -(-self._spec.numel // BLOCK)

    def elements(self, number: int) -> tuple[int, int]:
        from prunectl.layouts.parts import BLOCK

        return number * BLOCK, min((number + 1) * BLOCK, self._spec.numel)

    def encode(self, number: int, codes: Codes) -> Pieces:
        from prunectl.layouts.kernels import masking

        mask = np.empty(-(-codes.size // 8), np.uint8)
        values = np.empty(codes.size, codes.dtype)
        count = int(masking.compact(codes, mask, values))
        return Pieces([values[:count].view(np.uint8)], mask)

    def small_bytes(self) -> int:
        return -(-self._spec.numel // 8)

    def most(self) -> int:
        return self._spec.nbytes

    def finish(self, small: Bytes) -> Bytes:
        return small

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        values = large * 8 // self._spec.dtype.bits
        return (
            StoredPart("values", self._spec.dtype.name, (values,)),
            StoredPart("mask", "U8", (self.small_bytes() + padding,)),
        )


class _Groups:
    small_first = False

    def __init__(self, choice: Choice) -> None:
        from prunectl.layouts.groups import Grid
        from prunectl.layouts.nm import for_cutlass
        from prunectl.layouts.parts import BLOCK

        assert choice.pattern is not None
        self._spec = choice.spec
        self._grid = Grid.of(choice.spec.shape, choice.pattern, choice.axis)
        self._step = max(BLOCK // self._grid.m // 8, 1) * 8  # positions start at whole bytes
        self._width = (self._grid.m - 1).bit_length()
        self._cutlass = for_cutlass(choice.spec.dtype, choice.spec.shape, self._grid)
        self.extra: dict[str, Any] = {
            "n": self._grid.n,
            "m": self._grid.m,
            "axis": choice.axis,
            "order": "cutlass" if self._cutlass else "plain",
        }

    @property
    def ranges(self) -> int:
        return -(-self._grid.groups // self._step)

    def _range(self, number: int) -> tuple[int, int]:
        start = number * self._step
        return start, min(start + self._step, self._grid.groups)

    def elements(self, number: int) -> tuple[int, int]:
        return _covering(self._grid, *self._range(number))

    def encode(self, number: int, codes: Codes) -> Pieces:
        from prunectl.layouts.groups import kept
        from prunectl.layouts.kernels import grouping

        values, positions = kept(self._grid, _read(self._grid, codes, *self._range(number)))
        packed = np.zeros(-(-positions.size * self._width // 8), np.uint8)
        grouping.pack_bits(positions, self._width, packed)
        return Pieces([values.view(np.uint8)], packed)

    def small_bytes(self) -> int:
        return -(-self._grid.groups * self._grid.n * self._width // 8)

    def most(self) -> int:
        return self._grid.groups * self._grid.n * self._spec.dtype.bits // 8

    def finish(self, small: Bytes) -> Bytes:
        from prunectl.layouts.nm import to_cutlass

        if not self._cutlass:
            return small
        return to_cutlass(small.view(np.uint16), self._spec.shape[0]).reshape(-1).view(np.uint8)

    def parts(self, large: int, padding: int) -> tuple[StoredPart, StoredPart]:
        name = self._spec.dtype.name
        if self._cutlass:
            rows, columns = self._spec.shape
            assert not padding, "its meta is a multiple of 64 bytes"
            return (
                StoredPart("values", name, (rows, columns // 2)),
                StoredPart("meta", "I16", (rows, columns // 16)),
            )
        assert large == self._grid.groups * self._grid.n * self._spec.dtype.bits // 8
        size = math.ceil(self._grid.groups * self._grid.n * self._width / 8)
        return (
            StoredPart("values", name, (self._grid.groups, self._grid.n)),
            StoredPart("positions", "U8", (size + padding,)),
        )
