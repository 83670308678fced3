"""Rows and groups of a tensor, against numpy's own axes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunectl.geometry import Rows

SHAPES = [
    ((6, 8), 1, (8, 1, 6)),
    ((8, 6), 0, (8, 6, 6)),
    ((3, 5, 8), 2, (8, 1, 5)),
    ((3, 8, 5), 1, (8, 5, 5)),
    ((12,), 0, (12, 1, 1)),
    ((12,), None, (12, 1, 1)),
    ((4, 3, 2, 2), None, (12, 1, 4)),
    ((), None, (1, 1, 1)),
    ((0, 8), 1, (8, 1, 0)),
]


@pytest.mark.parametrize(("shape", "axis", "expected"), SHAPES)
def test_rows_of_shapes(
    shape: tuple[int, ...], axis: int | None, expected: tuple[int, int, int]
) -> None:
    rows = Rows.of(shape, axis)
    assert (rows.length, rows.stride, rows.per_matrix) == expected
    assert rows.band == rows.length * rows.stride
    assert not math.prod(shape) or math.prod(shape) % rows.band == 0


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_groups_lie_along_the_input_axis(shape: list[int], data: st.DataObject) -> None:
    axis, m = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.sampled_from([2, 4]))
    shape[axis] *= m
    tensor = np.arange(math.prod(shape)).reshape(shape)
    rows = Rows.of(shape, axis)
    tiles = rows.groups(tensor.reshape(-1), m)
    found = tiles.reshape(tiles.shape[0], -1, m, tiles.shape[2]).swapaxes(2, 3).reshape(-1, m)
    wanted = np.moveaxis(tensor, axis, -1).reshape(-1, m)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, wanted.tolist()))
    assert tiles.size % rows.tile(m) == 0


@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize("tiles", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("ranges", [((0, 1),), ((1, 3), (4, 7), (14, 15)), ((2, 12),), ((0, 15),)])
def test_parts_of_runs_are_those_rows(
    stride: int, tiles: int, ranges: tuple[tuple[int, int], ...]
) -> None:
    """Three matrices with 5 rows of 8 inputs, in runs of some tiles of 4 inputs."""
    shape, axis, m = ((3, 5, 8), 2, 4) if stride == 1 else ((3, 8, 5), 1, 4)
    rows = Rows.of(shape, axis)
    codes = np.zeros(math.prod(shape), np.uint16)
    step = tiles * rows.tile(m)
    for first in range(0, codes.size, step):
        for part in rows.parts(codes[first : first + step], first, ranges):
            assert part.shape[0] == 1
            assert part.shape[1] % m == 0
            part += np.uint16(1)
    found = np.moveaxis(codes.reshape(shape), axis, -1).reshape(15, 8)
    wanted = np.zeros_like(found)
    wanted[[row for start, stop in ranges for row in range(start, stop)]] = 1
    assert (found == wanted).all()
