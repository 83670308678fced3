"""The layouts by name, and which is smallest.

All layouts have the same four functions:

- ``encode(bits, dtype, shape, *, pattern=None, axis=-1, run=map) -> Encoded``. ``bits`` are the
  codes of the tensor (``parts.code_type``), of any shape in row-major order; ``pattern`` is the N:M
  that it follows along ``axis``, if it follows one; ``run`` is ``map`` or an executor's ``map``,
  by which blocks are shared among threads. Raises Misfit if the tensor cannot be stored so.
- ``decode(parts, dtype, shape, extra, *, out=None, run=map) -> codes`` of that shape: the same
  bits. ``out`` is a contiguous array to decode into. Raises Damaged if no tensor of that dtype and
  shape is stored so; damage that leaves such a tensor, but another one, goes unseen.
- ``decode_rows(parts, dtype, shape, extra, start, stop, *, run=map) -> codes`` of rows ``start`` to
  ``stop``, [stop - start, ..]; only what they need is read, and so checked.
- ``nbytes(dtype, shape, counts, *, pattern=None, axis=-1) -> int``: bytes of all parts, from counts
  alone. Exact, but for ``packed``, where it is a close estimate.

Types of less than 8 bits are only stored as ``dense``, and their codes are bytes [n].
"""

from __future__ import annotations

from types import ModuleType

from prunectl.layouts import bitmask, dense, nm, packed
from prunectl.layouts.parts import Codes, Encoded, Misfit, Run, flat_codes
from prunectl.layouts.survey import Survey, survey
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


def encode_smallest(
    bits: Codes,
    dtype: DType,
    shape: tuple[int, ...],
    *,
    pattern: NM | None = None,
    axis: int = -1,
    run: Run = map,
) -> Encoded:
    """The tensor in the layout that takes fewest bytes: ``--layout auto``.

    Layouts are tried in the order of their (estimated) sizes until one comes out no larger than the
    next is said to be.
    """
    flat = flat_codes(bits, dtype, shape)
    said = sizes(dtype, shape, survey(flat, run), pattern=pattern, axis=axis)
    best: Encoded | None = None
    for name in by_size(said):
        if best is not None and by_size({best.layout: best.nbytes, name: said[name]})[0] != name:
            break
        try:
            found = LAYOUTS[name].encode(flat, dtype, shape, pattern=pattern, axis=axis, run=run)
        except Misfit:
            continue
        if best is None or by_size({best.layout: best.nbytes, name: found.nbytes})[0] == name:
            best = found
    assert best is not None, "dense takes any tensor"
    return best
