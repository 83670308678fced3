"""The place of each tensor in a parameter when loading stacks, fuses or transposes, found by marks.

Loading is transformers' own code. Given tensors of zeros with a few marks, its result shows the
places of the marks, and so how each tensor lies in the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

_TAGS = 250
"""Small integers that every float type distinguishes, including bfloat16 (up to 256)."""


@dataclass(frozen=True, slots=True)
class WeightView:
    """The place of a tensor of the files in a parameter of the model.

    Attributes:
        origin, strides: of its elements, relative to the parameter's first.
        within: the parameter's strides; None if the tensor is the whole parameter.
    """

    origin: int = 0
    strides: tuple[int, ...] = ()
    within: tuple[int, ...] | None = None

    def view(self, parameter: torch.Tensor, shape: Shape) -> torch.Tensor:
        """The tensor, sharing memory with the parameter."""
        if self.within is None:
            return parameter
        return parameter.as_strided(shape, self.strides, parameter.storage_offset() + self.origin)


def find_weight_views(
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    convert: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
) -> dict[str, WeightView | None]:
    """The places of all tensors that make up one parameter.

    Args:
        shapes: in the files, by name.
        dtype: of the parameter.
        convert: makes the parameter from values of all these tensors.

    Returns:
        Places by name; None for a tensor that is split or reordered.
    """
    names = list(shapes)
    step = _TAGS // (2 + max(map(len, shapes.values())))
    found: dict[str, WeightView | None] = {}
    for start in range(0, len(names), step):
        found |= _find_some(shapes, names[start : start + step], dtype, convert)
    return found


def _find_some(
    shapes: Mapping[str, Shape],
    marked: list[str],
    dtype: torch.dtype,
    convert: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
) -> dict[str, WeightView | None]:
    import torch

    state = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    tags: dict[str, dict[Shape, int]] = {}
    count = 0
    for name in marked:
        tags[name] = {}
        for at in _corners(shapes[name]):
            count += 1
            state[name][at] = count
            tags[name][at] = count
    probe = convert(state)
    places = {
        int(probe[tuple(at)]): sum(int(i) * s for i, s in zip(at, probe.stride(), strict=True))
        for at in probe.nonzero()
    }
    return {
        name: _place(shapes[name], {at: places.get(tag) for at, tag in own.items()}, probe.stride())
        for name, own in tags.items()
    }


def _place(
    shape: Shape, offsets: Mapping[Shape, int | None], within: tuple[int, ...]
) -> WeightView | None:
    """The place of a tensor with corners at ``offsets``."""
    origin = offsets[(0,) * len(shape)]
    if origin is None or any(offset is None for offset in offsets.values()):
        return None
    strides = []
    for axis in range(len(shape)):
        at = offsets.get(_unit(axis, len(shape)))
        strides.append(0 if at is None else at - origin)
    last = tuple(n - 1 for n in shape)
    expected = origin + sum(i * s for i, s in zip(last, strides, strict=True))
    return WeightView(origin, tuple(strides), within) if offsets[last] == expected else None


def _unit(axis: int, ndim: int) -> Shape:
    return tuple(int(i == axis) for i in range(ndim))


def _corners(shape: Shape) -> list[Shape]:
    """The origin, its neighbor along each axis, and the last element, without duplicates."""
    units = [_unit(axis, len(shape)) for axis, length in enumerate(shape) if length > 1]
    return list(dict.fromkeys([(0,) * len(shape), *units, tuple(n - 1 for n in shape)]))
