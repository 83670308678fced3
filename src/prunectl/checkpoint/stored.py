"""Where a tensor's bytes lie: the common language of the safetensors and pickle readers."""

from __future__ import annotations

from dataclasses import dataclass

from prunectl.tensorspec import TensorSpec


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
    """A weights file as it was when its header was read."""

    name: str
    size: int
    mtime_ns: int


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
