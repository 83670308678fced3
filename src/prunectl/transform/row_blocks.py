"""Blocks of rows that take an N:M pattern while the other rows of a matrix stay dense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from prunectl.geometry import Ranges
from prunectl.magnitude.codes import Codes
from prunectl.pattern import nearest_prefix
from prunectl.plan.settings import ROW_BLOCK


class RowShares:
    """Distributes the zeros of a pool over its matrices, one after another.

    Every matrix gets the same share of its weights. Whole blocks of rows only come near that share;
    the difference goes to the next matrix, so that the pool is off by at most one block.

    Args:
        wanted: zeros of all matrices, present ones included. weights: of all matrices.
    """

    def __init__(self, wanted: int, weights: int) -> None:
        self._wanted, self._weights = wanted, weights
        self._seen = self._reached = 0

    def of_next(self, weights: int) -> int:
        """How many zeros the next matrix, of so many weights, should come to have."""
        self._seen += weights
        share = (2 * self._wanted * self._seen + self._weights) // (2 * self._weights)
        return share - self._reached

    def reached(self, zeros: int) -> None:
        """Report how many zeros that matrix has now."""
        self._reached += zeros


def choose_rows(losses: ArrayLike, zeros: ArrayLike, wanted: int) -> Ranges:
    """The rows of a matrix that take a pattern: the blocks of ``ROW_BLOCK`` rows that lose least.

    Args:
        losses: [out], at least 0, in any unit: the loss of each row under the pattern.
        zeros: [out], whole numbers: nonzero weights of each row that the pattern prunes.
        wanted: how many weights of the matrix are to be pruned. Below 0 means none.

    Returns:
        Rows of the blocks whose pruned weights together are nearest to ``wanted`` (of two equally
        near, the fewer); see :func:`choose_blocks` for their order.

    Raises:
        ValueError: a loss is NaN, or the two are not vectors of one length.
    """
    lost, pruned = np.asarray(losses, np.float64), np.asarray(zeros).astype(np.int64)
    if lost.ndim != 1 or lost.shape != pruned.shape:
        raise ValueError(f"losses {lost.shape} and zeros {pruned.shape} are not of the same rows")
    out = len(lost)
    if not out:
        return ()
    starts = np.arange(0, out, ROW_BLOCK)
    chosen = choose_blocks(np.add.reduceat(lost, starts), np.add.reduceat(pruned, starts), wanted)
    return merged(block_rows(block, out) for block in chosen)


def choose_blocks(losses: Sequence[float] | Codes, zeros: Codes, wanted: int) -> list[int]:
    """The numbers of the blocks of a matrix that take a pattern, ascending.

    Blocks are taken by loss per pruned weight, so that a last block of fewer rows has no advantage.
    Losses are rounded to nine digits, because the last bits of float sums differ between machines.
    Of equal losses the lower block comes first.

    Args:
        losses: of each block, at least 0; zeros: weights that the pattern prunes in each.
        wanted: the sum of zeros to come near to.

    Raises:
        ValueError: a loss is NaN.
    """
    if np.isnan(losses).any():
        raise ValueError("a loss is NaN")
    rates = [
        float(f"{loss / count:.9g}") if count else 0.0
        for loss, count in zip(np.asarray(losses).tolist(), zeros.tolist(), strict=True)
    ]
    ranked = sorted(range(len(rates)), key=rates.__getitem__)
    taken = nearest_prefix((int(zeros[block]) for block in ranked), wanted)
    return sorted(ranked[:taken])


def block_rows(block: int, out: int, matrix: int = 0) -> tuple[int, int]:
    """The rows of a block of a matrix with ``out`` rows, numbered as in the tensor."""
    start = block * ROW_BLOCK
    return matrix * out + start, matrix * out + min(start + ROW_BLOCK, out)


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted ranges, adjacent ones merged."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
