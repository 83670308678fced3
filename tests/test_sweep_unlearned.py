"""A classifier that has learned nothing tells nothing of sparsity."""

from __future__ import annotations

import numpy as np
import pytest

from prunectl.study.curves import Redraws, Requested, read_curve
from prunectl.study.points import Point
from prunectl.study.tolerance import Tolerance
from prunectl.study.turning import Status

THERE = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1])


def requested(sparsity: float, told: np.ndarray) -> Requested:
    values = np.stack([THERE, told], axis=1).astype(np.float64)
    score = float((told == THERE).mean())
    return Requested(
        sparsity, {0: Point(sparsity, sparsity, score, values, {"majority": 0.7}, 1.0)}
    )


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (np.zeros(10, int), Status.UNLEARNED),
        (np.ones(10, int), Status.UNLEARNED),
        (THERE, Status.NOT_REACHED),
    ],
)
def test_a_curve_that_begins_at_chance_has_no_turning_point(
    told: np.ndarray, status: Status
) -> None:
    redraws = Redraws(lambda values: float((values[:, 0] == values[:, 1]).mean()), 0)
    points = [requested(0.0, told), requested(0.5, told)]
    found = read_curve(points, redraws, Tolerance(), higher_is_better=True)
    assert found.essential.status is status
    assert (found.essential.sparsity is None) == (status is Status.UNLEARNED)
