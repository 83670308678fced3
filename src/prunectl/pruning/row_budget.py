"""``--budget rows``: the blocks of rows that take an N:M pattern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.geometry import Ranges, Rows
from prunectl.magnitude.codes import Codes, code_format
from prunectl.magnitude.masks import count_zeros
from prunectl.magnitude.measure import PatternMeasure
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import Scratch
from prunectl.pattern import NM
from prunectl.plan.plan import Plan
from prunectl.plan.settings import ROW_BLOCK
from prunectl.transform.row_blocks import (
    RowShares,
    block_rows,
    choose_blocks,
    merged,
)


@dataclass(frozen=True, slots=True)
class BlockLosses:
    """The effect of a pattern on the blocks of rows of one matrix.

    Attributes:
        lost: float64 [blocks], squared norm lost.
        pruned: int64 [blocks], nonzero weights that become zero.
        present: zeros of the matrix before, of both signs.
    """

    lost: NDArray[np.float64]
    pruned: NDArray[np.int64]
    present: int


@dataclass(frozen=True, slots=True)
class TakenRows:
    """The part of one tensor in a budget.

    Attributes:
        rows: ranges that take the pattern.
        everything: whether these are all rows.
        zeros: of the tensor afterwards. lost: squared norm lost.
    """

    rows: Ranges
    everything: bool
    zeros: int
    lost: float


def take_rows(
    checkpoint: Checkpoint,
    plan: Plan,
    index: int,
    present: Mapping[str, int],
    run: Run,
) -> dict[str, TakenRows]:
    """Choose the rows of a pool's tensors that take its pattern, in one pass over the tensors.

    The zeros of the pool, less those of tensors that cannot take the pattern, are distributed over
    the other matrices by their weights. In each matrix the blocks of ``ROW_BLOCK`` rows that lose
    least take the pattern, until the zeros are nearest to its share. The difference goes to the
    next matrix.

    Args:
        index: of a pool with a budget.
        present: zeros of its members, by name. None of them holds NaN.
    """
    pool = plan.pools[index]
    assert isinstance(pool.pattern, NM)
    pattern = pool.pattern
    axes = {entry.spec.name: entry.input_axis for entry in plan.tensors if entry.pool == index}
    tensors = [tensor for tensor in checkpoint.tensors if tensor.name in axes]
    unfit = sum(present[name] for name in pool.members if name not in axes)
    weights = sum(tensor.spec.numel for tensor in tensors)
    shares = RowShares(max(0, pool.target_zeros - unfit), weights)
    phase = f"measuring blocks of {ROW_BLOCK} rows"
    found = {}
    with checkpoint.open() as reader:

        def work(tensor: StoredTensor, scratch: Scratch) -> list[BlockLosses]:
            axis = axes[tensor.name]
            assert axis is not None  # or it would not fit the pattern
            return list(block_losses(tensor, axis, pattern, reader, scratch))

        for tensor, matrices in run.shared_tensors(phase, tensors, work):
            axis = axes[tensor.name]
            assert axis is not None
            found[tensor.name] = _take(tensor, axis, matrices, shares)
    return found


def _take(
    tensor: StoredTensor, axis: int, matrices: list[BlockLosses], shares: RowShares
) -> TakenRows:
    """Choose the blocks of the next tensor."""
    spec, out = tensor.spec, Rows.of(tensor.spec.shape, axis).per_matrix
    rows, zeros, lost = [], 0, 0.0
    for number, matrix in enumerate(matrices):
        more = shares.of_next(out * spec.shape[axis]) - matrix.present
        blocks = choose_blocks(matrix.lost, matrix.pruned, more)
        rows += [block_rows(block, out, number) for block in blocks]
        given = matrix.present + int(matrix.pruned[blocks].sum())
        shares.reached(given)
        zeros += given
        lost += float(matrix.lost[blocks].sum())
    ranges = merged(rows)
    everything = ranges == ((0, spec.numel // spec.shape[axis]),)
    return TakenRows(ranges, everything, zeros, lost)


def block_losses(
    tensor: StoredTensor, axis: int, pattern: NM, reader: TensorReader, scratch: Scratch
) -> Iterator[BlockLosses]:
    """The effect of ``pattern`` along ``axis`` on every block of rows, matrix by matrix.

    Inf has no squared norm, here as in :class:`PatternMeasure`; the caller rules out NaN.
    """
    spec = tensor.spec
    geometry = Rows.of(spec.shape, axis)
    length, width, out = geometry.length, geometry.stride, geometry.per_matrix
    uint = code_format(spec.dtype).uint
    # Whole blocks of rows if rows are stored together; else lines across all rows.
    unit = ROW_BLOCK * length if width == 1 else geometry.tile(pattern.m)
    for first in range(0, spec.numel, out * length):
        part = (first, out * length)
        blocks = (b.view(uint) for _, b in scratch.blocks(reader, tensor, unit, part=part))
        if width == 1:
            rows = (block.reshape(-1, length) for block in blocks)
            done = [_measured(rows_, tensor, pattern) for block in rows for rows_ in _cut(block)]
        else:
            done = _across(blocks, width, tensor, pattern)
        lost, pruned, present = zip(*done, strict=True)
        yield BlockLosses(np.array(lost), np.array(pruned, np.int64), sum(present))


def _cut(rows: Codes) -> Iterator[Codes]:
    """Blocks of rows, from [rows, inputs]."""
    return (rows[start : start + ROW_BLOCK] for start in range(0, len(rows), ROW_BLOCK))


def _measured(rows: Codes, tensor: StoredTensor, pattern: NM) -> tuple[float, int, int]:
    """(squared norm lost, weights pruned, zeros before) of a block of rows, contiguous."""
    measure = PatternMeasure(tensor.spec.dtype, pattern)
    measure.update(rows.reshape(1, -1, 1))
    stats, present = measure.finish(), count_zeros(rows.reshape(-1))
    return stats.lost_energy, stats.zeros_after - present, present


def _across(
    blocks: Iterator[Codes], width: int, tensor: StoredTensor, pattern: NM
) -> list[tuple[float, int, int]]:
    """As :func:`_measured` for all blocks of a matrix whose rows run across the stored lines."""
    measures = [PatternMeasure(tensor.spec.dtype, pattern) for _ in range(0, width, ROW_BLOCK)]
    present = [0] * len(measures)
    for block in blocks:
        turned = np.ascontiguousarray(block.reshape(-1, width).T)
        for number, rows in enumerate(_cut(turned)):
            measures[number].update(rows.reshape(1, -1, 1))
            present[number] += count_zeros(rows.reshape(-1))
    stats = [measure.finish() for measure in measures]
    return [
        (one.lost_energy, one.zeros_after - before, before)
        for one, before in zip(stats, present, strict=True)
    ]
