"""Where a tensor's bytes lie: the common records of the safetensors and pickle readers."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from prunectl.errors import BadCheckpoint, shortened
from prunectl.tensorspec import DType, TensorSpec, name_fault

MAX_DIMENSIONS = 64
"""The limit of torch; a longer shape would allow a header to demand endless multiplications."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and the place of its bytes.

    Attributes:
        spec: name, dtype and shape.
        file: name of the weights file, relative to the checkpoint's folder.
        offset: of the first element, in bytes from the start of the file.
        strides: in elements, or None where the tensor is contiguous in row-major order.
    """

    spec: TensorSpec
    file: str
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weights file at the time its header was read.

    Attributes:
        name: relative to the checkpoint's folder.
        size: in bytes.
        mtime_ns: time of the last change, in nanoseconds.
        sha256: in hexadecimal, if the Hub states it (files in LFS or Xet); else None.
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None


def declared_spec(path: Path, name: object, dtype: DType, shape: object) -> TensorSpec:
    """A tensor as declared in a file.

    All readers use this, so that each accepts only names and shapes that a safetensors file can
    hold: an output repeats them.

    Args:
        shape: should be a list or tuple of sizes.

    Raises:
        BadCheckpoint: the name is not a string, or :func:`check_name` refuses it; the shape is not
            a list of sizes, or a partial product of them does not fit 64 bits.
    """
    if not isinstance(name, str):
        raise BadCheckpoint(
            path,
            f"the name of a tensor is {name}, not a string",
            hint="save model.state_dict(), whose keys are strings",
        )
    check_name(path, name)
    if not is_sizes(shape):
        raise BadCheckpoint(
            path, f"tensor '{name}': shape {reprlib.repr(shape)} is not a list of sizes"
        )
    product = 1  # the library multiplies in this order, so a later zero does not help
    for size in shape:
        product *= size
        if product >= 2**64:
            raise BadCheckpoint(
                path, f"tensor '{name}': shape {reprlib.repr(shape)} has too many elements"
            )
    return TensorSpec(name, dtype, tuple(shape))


def check_name(path: Path, name: str) -> None:
    """Refuse a name that a tensor of a safetensors file, or of a model, cannot have.

    Raises:
        BadCheckpoint: not valid Unicode, reserved by the format, over 1,024 bytes of UTF-8, or over
            64 dotted parts.
    """
    if fault := name_fault(name):
        raise BadCheckpoint(path, f"tensor name {shortened(name, 80)!r} {fault}")


def is_sizes(value: object) -> TypeGuard[list[int] | tuple[int, ...]]:
    """Whether ``value`` is a list or tuple of at most 64 sizes within torch's limits."""
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a contiguous tensor of ``shape``."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether ``strides`` address ``shape`` in row-major order without gaps."""
    expected = row_major_strides(shape)
    return 0 in shape or all(
        length == 1 or stride == want
        for length, stride, want in zip(shape, strides, expected, strict=True)
    )
