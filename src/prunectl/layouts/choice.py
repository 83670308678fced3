"""The layouts by name, and which is smallest.

The docstring of each layout's module specifies its bytes. What encodes and decodes them a range at
a time is in :mod:`prunectl.exporting.encoders` and :mod:`prunectl.loading.decoders`. Here is how
much they take: ``nbytes(dtype, shape, counts, *, pattern=None, axis=-1) -> int``, the bytes of all
parts, from counts alone; ``pattern`` is the N:M that the tensor follows along ``axis``, if it
follows one. Exact, but for ``packed``, where it is a close estimate. Raises Misfit if the tensor
cannot be stored so.

Types of less than 8 bits are only stored as ``dense``.
"""

from __future__ import annotations

from types import ModuleType

from prunectl.layouts import bitmask, dense, nm, packed
from prunectl.layouts.parts import Misfit
from prunectl.layouts.survey import Survey
from prunectl.pattern import NM
from prunectl.tensorspec import DType

LAYOUTS: dict[str, ModuleType] = {"dense": dense, "bitmask": bitmask, "nm": nm, "packed": packed}

PART_COST = 400
"""About the bytes that a tensor in parts takes in the header of its file, more than a dense one."""


def sizes(
    dtype: DType,
    shape: tuple[int, ...],
    counts: Survey,
    *,
    pattern: NM | None = None,
    axis: int = -1,
) -> dict[str, int]:
    """Bytes in each layout that can store the tensor, as its ``nbytes`` says."""
    found = {}
    for name, layout in LAYOUTS.items():
        try:
            found[name] = layout.nbytes(dtype, shape, counts, pattern=pattern, axis=axis)
        except Misfit:
            continue
    return found


def by_size(sizes: dict[str, int]) -> list[str]:
    """Layouts, smallest first, headers included; of equals the simpler one."""
    names = [name for name in LAYOUTS if name in sizes]
    return sorted(names, key=lambda name: sizes[name] + (name != "dense") * PART_COST)
