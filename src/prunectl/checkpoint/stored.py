"""Where a tensor's bytes lie: the common language of the safetensors and pickle readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunectl.errors import BadCheckpoint
from prunectl.tensorspec import TensorSpec

MAX_NAME_BYTES = 1024
MAX_NAME_PARTS = 64
"""Far above any real model's names; without a limit, one name's prefixes could fill the memory."""


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
    """A weights file as it was when its header was read.

    Attributes:
        name: relative to the checkpoint's folder.
        size: in bytes.
        mtime_ns: time of the last change.
        sha256: in hexadecimal, where the Hub states it (files kept in LFS or Xet); else None.
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None


def check_name(path: Path, name: str) -> None:
    """Refuse a tensor name that no model has.

    Raises:
        BadCheckpoint: over 1,024 bytes of UTF-8, or over 64 dotted parts.
    """
    # The first test keeps a name of megabytes from being encoded.
    if len(name) > MAX_NAME_BYTES or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise BadCheckpoint(path, f"tensor name {name[:40]!a}... is over {MAX_NAME_BYTES:,} bytes")
    if name.count(".") >= MAX_NAME_PARTS:
        raise BadCheckpoint(
            path, f"tensor name {name[:40]!a}... has over {MAX_NAME_PARTS} dotted parts"
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
