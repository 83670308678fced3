"""The layouts by name, and the choice of the smallest.

The docstring of each layout's module specifies its bytes. To add a layout: CONTRIBUTING.md.
"""

from __future__ import annotations

from prunectl.layouts import bitmask, dense, nm, packed
from prunectl.layouts.errors import Misfit
from prunectl.layouts.layout import Coding, Layout, Survey

LAYOUTS: dict[str, Layout] = {
    "dense": dense.LAYOUT,
    "bitmask": bitmask.LAYOUT,
    "nm": nm.LAYOUT,
    "packed": packed.LAYOUT,
}
"""The simplest first, the order of the help."""

DENSE = next(name for name, layout in LAYOUTS.items() if layout.coding is None)
"""The layout of a tensor that is stored unchanged."""

CODINGS: dict[str, Coding] = {
    name: layout.coding for name, layout in LAYOUTS.items() if layout.coding is not None
}
"""Codings of tensors in the other layouts."""

AUTO = "auto"
"""An option in place of a layout: the smallest layout of each tensor."""

SUFFIXES = tuple(suffix for coding in CODINGS.values() for suffix in coding.suffixes)
"""Suffixes of the parts of all layouts."""

PART_COST = 400
"""Approximate bytes that a tensor in parts takes in the file header, more than a dense one."""


def sizes(survey: Survey) -> dict[str, int]:
    """Bytes in each layout that can store the tensor, by its ``nbytes``."""
    found = {}
    for name, layout in LAYOUTS.items():
        try:
            found[name] = layout.nbytes(survey)
        except Misfit:
            continue
    return found


def by_size(sizes: dict[str, int]) -> list[str]:
    """Layouts, smallest first, headers included; of equally small ones, the simpler one first."""
    names = [name for name in LAYOUTS if name in sizes]
    return sorted(names, key=lambda name: sizes[name] + (name != DENSE) * PART_COST)
