"""A tensor along its input axis: rows, N:M groups, and where they lie in row-major order.

A *row* is the weights of one output: a run along the input axis. Where inputs are the last axis
(``Linear``), a row is contiguous. Otherwise (GPT-2's ``Conv1D``, some stacked experts), the rows of
a matrix are interleaved, with ``stride`` elements from one weight of a row to the next.

Rows of a stack of matrices are numbered through the stack, ``matrix * per_matrix + row``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Codes = TypeVar("Codes", bound=Any)
"""A flat array or tensor; results are views of it."""

Ranges = tuple[tuple[int, int], ...]
"""Rows as sorted ranges [start, stop) that neither overlap nor touch."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a tensor.

    Attributes:
        length: weights in a row.
        stride: elements from one weight of a row to the next; 1 if rows are contiguous.
        per_matrix: rows in each matrix of the stack.
    """

    length: int
    stride: int
    per_matrix: int

    @classmethod
    def of(cls, shape: Sequence[int], axis: int | None) -> Rows:
        """The rows of a tensor of this shape.

        Args:
            axis: the input axis, not negative. None: a convolution, where everything after the
                first axis makes one output, or a vector, which is one row.
        """
        if axis is None or not shape:
            rows = shape[0] if len(shape) > 1 else 1
            return cls(math.prod(shape[1:] or shape), 1, rows)
        stride = math.prod(shape[axis + 1 :])
        if axis == len(shape) - 1:
            return cls(shape[axis], 1, shape[axis - 1] if axis else 1)
        return cls(shape[axis], stride, stride)

    @property
    def band(self) -> int:
        """Elements of the shortest run that holds whole rows."""
        return self.length * self.stride

    def tile(self, m: int) -> int:
        """Elements of the shortest run that holds whole groups of ``m``."""
        return m * self.stride

    def groups(self, codes: Codes, m: int) -> Codes:
        """A run of whole tiles [n] as [outer, axis, inner], the shape for N:M kernels.

        If ``m`` divides the length of a row, a tensor in row-major order is a sequence of tiles [m,
        stride].
        """
        if self.stride == 1:
            return codes.reshape(1, -1, 1)  # type: ignore[no-any-return]
        return codes.reshape(-1, m, self.stride)  # type: ignore[no-any-return]

    def parts(self, codes: Codes, first: int, ranges: Ranges) -> Iterator[Codes]:
        """The parts of a run of whole tiles that lie in some of the rows, shaped for N:M kernels.

        Args:
            codes: [n], contiguous.
            first: position of its first element in the tensor.
            ranges: the rows.

        Yields:
            Views [1, inputs, rows of a range] of ``codes``; where rows are contiguous, [1, inputs
            of all rows of a range, 1].
        """
        length, stride = self.length, self.stride
        if stride == 1:
            for start, stop in _within(ranges, first // length, -(-(first + len(codes)) // length)):
                part = codes[max(0, start * length - first) : stop * length - first]
                yield part.reshape(1, -1, 1)
            return
        lines = codes.reshape(-1, stride)
        line, end = first // stride, first // stride + len(lines)
        for matrix in range(line // length, -(-end // length)):
            begin = max(line, matrix * length) - line
            part = lines[begin : min(end, (matrix + 1) * length) - line]
            for start, stop in _within(ranges, matrix * stride, (matrix + 1) * stride):
                yield part[None, :, start - matrix * stride : stop - matrix * stride]


def _within(ranges: Ranges, first: int, last: int) -> Iterator[tuple[int, int]]:
    """The parts of the ranges in the rows [first, last)."""
    for i in range(max(0, bisect_right(ranges, (first, 0)) - 1), len(ranges)):
        start, stop = ranges[i]
        if start >= last:
            return
        if stop > first:
            yield max(start, first), min(stop, last)


def mask_unit(unit: int) -> int:
    """The smallest multiple of ``unit`` weights whose mask is whole bytes."""
    return math.lcm(8, unit)
