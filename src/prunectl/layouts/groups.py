"""N:M groups of a tensor in order, and numbers for the sets of positions that they keep.

Groups run along one axis of the tensor and are counted in row-major order of the other axes: group
t of a tensor of shape [.., axis, ..] is row t of
``w.reshape(-1, m, inner).swapaxes(1, 2).reshape(-1, m)``, where ``inner`` is the product of the
dimensions after the axis (1 if it is the last one). Rows of the tensor are thus whole ranges of
groups, and for axis 0, M rows are.

A set of positions c_0 < c_1 < .. < c_(N-1) has the number binom(c_0, 1) + binom(c_1, 2) + .. +
binom(c_(N-1), N), its place among all sets in the order of their bit masks (the combinatorial
number system).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.layouts.errors import Misfit
from prunectl.layouts.kernels import grouping
from prunectl.layouts.parts import Bytes, Codes, fixed
from prunectl.pattern import MAX_GROUP, NM

MAX_SETS = 1 << 16
"""Limit on the number of sets of positions, so that set numbers fit 16 bits."""

WIDE_BAND = 1 << 22
"""Larger bands are not decoded whole: if groups run along the first axis of a matrix, a band of a
few very long rows may be the whole matrix.
"""


@dataclass(frozen=True, slots=True)
class Grid:
    """The division of a tensor into groups.

    Attributes:
        n: weights kept of each group, at most.
        m: weights of a group.
        inner: elements from one member of a group to the next.
        groups: number of groups.
    """

    n: int
    m: int
    inner: int
    groups: int

    @classmethod
    def of(cls, shape: tuple[int, ...], pattern: NM, axis: int) -> Grid:
        """The groups of a tensor of this shape along ``axis`` (negative: counted from the end).

        Raises:
            Misfit: there is no such axis, M is too large, or the axis is not a multiple of M.
        """
        if not -len(shape) <= axis < len(shape):
            raise Misfit(f"a tensor of {len(shape)} dimensions has no axis {axis}")
        if not 0 < pattern.n < pattern.m <= MAX_GROUP:
            raise Misfit(f"{pattern} is not a pattern of at most {MAX_GROUP}")
        axis %= len(shape)
        if shape[axis] % pattern.m:
            raise Misfit(f"axis {axis} has {shape[axis]} weights, no multiple of {pattern.m}")
        inner = math.prod(shape[axis + 1 :])
        return cls(pattern.n, pattern.m, inner, math.prod(shape) // pattern.m)

    def read(self, codes: Codes, start: int, stop: int) -> Codes:
        """Groups ``start`` to ``stop`` of a flat tensor, as [groups, m], read-only."""
        if self.inner == 1:
            return fixed(codes[start * self.m : stop * self.m].reshape(-1, self.m))
        groups = np.empty((stop - start, self.m), codes.dtype)
        grouping.gather(codes.reshape(-1, self.m, self.inner), start, groups)
        return fixed(groups)

    def write(self, groups: Codes, start: int, out: Codes) -> None:
        """Write [groups, m] to the places of the groups from ``start`` on in flat codes ``out``."""
        if self.inner == 1:
            out[start * self.m :][: groups.size] = groups.reshape(-1)
        else:
            grouping.spread(fixed(groups), start, out.reshape(-1, self.m, self.inner))

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """The elements of the whole bands of M rows that hold groups ``start`` to ``stop``."""
        band = self.m * self.inner
        return start // self.inner * band, -(-stop // self.inner) * band

    def read_covering(self, codes: Codes, start: int, stop: int) -> Codes:
        """Groups ``start`` to ``stop``, from the elements of :meth:`covering`."""
        skipped = start // self.inner * self.inner
        return self.read(codes, start - skipped, stop - skipped)

    @property
    def _is_wide(self) -> bool:
        return self.inner > 1 and self.m * self.inner > WIDE_BAND

    def unit(self, step: int) -> int:
        """Weights of a unit of about ``step`` groups: a range of groups, or whole bands of M rows.

        For a wide band, a unit is ``step`` consecutive weights, each a member of another group.
        """
        if self._is_wide:
            return step
        bands = max(1, step // max(1, self.inner))
        return step * self.m if self.inner == 1 else bands * self.inner * self.m

    def decode(self, start: int, out: Codes, fill: Callable[[int, Codes], None]) -> None:
        """Decode the unit of weights that begins at ``start``.

        Args:
            start: element of the tensor.
            out: receives the unit's codes.
            fill: ``fill(first, groups)`` decodes groups from ``first`` on into [groups, m].
        """
        if self._is_wide:
            self._decode_rows(start, out, fill)
        elif self.inner == 1:
            fill(start // self.m, out.reshape(-1, self.m))
        else:
            groups = np.empty((out.size // self.m, self.m), out.dtype)
            fill(start // self.m, groups)
            self.write(groups, 0, out)

    def _decode_rows(self, start: int, out: Codes, fill: Callable[[int, Codes], None]) -> None:
        """Decode a unit of a wide band: of each group, the member in the rows of ``out``."""
        done = 0
        while done < out.size:
            row, column = divmod(start + done, self.inner)
            band, member = divmod(row, self.m)
            length = min(out.size - done, self.inner - column)
            groups = np.empty((length, self.m), out.dtype)
            fill(band * self.inner + column, groups)
            out[done : done + length] = groups[:, member]
            done += length


def kept(grid: Grid, groups: Codes) -> tuple[Codes, Bytes]:
    """Values and positions of groups [g, m]: two flat arrays of g * n.

    A group with fewer nonzeros than n keeps zeros too: the first ones among its last n members.

    Raises:
        Misfit: a group has more than n nonzeros.
    """
    if (bad := int(grouping.overfull(groups, grid.n))) >= 0:
        found = np.count_nonzero(groups[bad])
        raise Misfit(f"a group of {grid.m} has {found} nonzeros, more than {grid.n}")
    size = groups.shape[0] * grid.n
    values, positions = np.empty(size + 1, groups.dtype), np.empty(size + 1, np.uint8)
    if (grid.n, grid.m) == (2, 4):
        grouping.select_2_4(groups, _selections(2, 4), values, positions)
    elif grid.m <= 8:
        grouping.select_small(groups, _selections(grid.n, grid.m), values, positions)
    else:
        grouping.select(groups, grid.n, values, positions)
    return fixed(values[:size]), fixed(positions[:size])


@functools.lru_cache(16)
def _selections(n: int, m: int) -> NDArray[Any]:
    """u8 [2**m, n]: the kept positions of each set of nonzeros; 0 for sets of more than n."""
    table = np.zeros((1 << m, n), np.uint8)
    for nonzeros in range(1 << m):
        missing = n - nonzeros.bit_count()
        free = [j for j in range(m - n, m) if not nonzeros >> j & 1]
        if missing >= 0:
            held = [j for j in range(m) if nonzeros >> j & 1]
            table[nonzeros] = sorted(held + free[:missing])
    return fixed(table)


def sets(grid: Grid) -> int:
    """The number of sets of N positions in a group."""
    return math.comb(grid.m, grid.n)


@functools.lru_cache(16)
def binomials(n: int, m: int) -> NDArray[Any]:
    """u16 [m, n]: the term of position c, as the i-th of a set, in the set's number."""
    table = [[math.comb(c, i + 1) for i in range(n)] for c in range(m)]
    return fixed(np.array(table, np.int64).astype(np.uint16))


@functools.lru_cache(16)
def positions_of_sets(n: int, m: int) -> NDArray[Any]:
    """u8 [sets, n]: the positions of each set number."""
    rows = sorted(itertools.combinations(range(m), n), key=lambda c: c[::-1])
    return fixed(np.array(rows, np.uint8))
