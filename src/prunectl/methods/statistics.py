"""Statistics of a layer's inputs: second moments, accumulated sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunectl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Gram:
    """Second moments of the inputs of one matrix.

    Sums ``x x^T`` over all inputs x in fp32. Memory is one [inputs, inputs] matrix, or one vector
    if only the diagonal is kept, for any number of tokens. The order of samples changes the result
    only by rounding.

    Args:
        inputs: columns of the matrix.
        full: False keeps only the diagonal, which suffices for Wanda.
        device: of the sum and its computation.

    Attributes:
        inputs: columns.
        tokens: rows counted, except rows of zeros: an expert receives these in place of tokens that
            are routed elsewhere.
        skipped: rows left out because they hold NaN or Inf, or are so large that sums of their
            squares could overflow fp32.
    """

    def __init__(
        self, inputs: int, *, full: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        if inputs < 1:
            raise ValueError(f"a matrix needs at least one input, not {inputs}")
        shape = (inputs, inputs) if full else (inputs,)
        self._sum = torch.zeros(shape, dtype=torch.float32, device=device)
        self._full, self.inputs = full, inputs
        self._closed: Tensor | None = None  # the sum's diagonal, once the sum has become H
        self.tokens = 0
        self.skipped = 0

    def add(self, x: Tensor) -> None:
        """Add the inputs ``x`` [..., inputs], of any float dtype, on any device.

        Raises:
            ValueError: another last axis, not floats, or the sum has become H.
        """
        if self._closed is not None:
            raise ValueError("the second moments were already computed: nothing can be added")
        if x.ndim == 0 or x.shape[-1] != self.inputs:
            raise ValueError(f"inputs are [..., {self.inputs}], not {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"inputs are floats, not {x.dtype}")
        rows = x.detach().reshape(-1, self.inputs).to(self._sum.device, torch.float32)
        # One comparison finds NaN, Inf and values that are too large: none holds for NaN.
        squares = torch.linalg.vecdot(rows, rows)
        sound = squares < _TOO_LARGE
        counted, sounds = torch.stack([(sound & (squares > 0)).sum(), sound.sum()]).tolist()
        self.skipped += len(rows) - sounds
        if sounds < len(rows):
            rows = rows[sound]
        self.tokens += counted
        if self._full:
            self._sum.addmm_(rows.T, rows)
        else:
            self._sum += rows.square().sum(0)

    def unite(self, all_reduce: Callable[[Tensor], object], *, tokens: int, skipped: int) -> None:
        """Replace these moments by the sum over several processes.

        Args:
            all_reduce: replaces a tensor by the sum over all processes, in place; fp32, contiguous,
                on any device.
            tokens, skipped: of all processes.

        Raises:
            ValueError: the sum has been made H.
        """
        if self._closed is not None:
            raise ValueError("the second moments were already computed: nothing can be added")
        all_reduce(self._sum)
        self.tokens, self.skipped = tokens, skipped

    def move(self, device: torch.device) -> None:
        """Move the sum to another device."""
        self._sum = self._sum.to(device)
        if self._closed is not None:
            self._closed = self._closed.to(device)

    def hessian(self) -> Tensor:
        """``H = 2/n * sum x x^T``, fp32 [inputs, inputs], symmetric; zeros if n = 0.

        This is the second derivative of the mean squared output error with respect to one row of
        the weight (SparseGPT, arXiv 2301.00774). It reuses the memory of the sum, since another
        matrix of that size might not fit: do not change it. Nothing can be added afterwards.

        Raises:
            ValueError: only the diagonal was kept.
        """
        if not self._full:
            raise ValueError("only the diagonal was gathered, not the full second moments")
        if self._closed is None:
            self._closed = self._sum.diagonal().clone()
            _symmetrize(self._sum)
            self._sum /= max(self.tokens, 1)
        return self._sum

    def diagonal(self) -> Tensor:
        """The diagonal of :meth:`hessian`, fp32 [inputs]."""
        return 2 * self._squares() / max(self.tokens, 1)

    def norms(self) -> Tensor:
        """``||x_j||_2`` of every input over all tokens, fp32 [inputs] (Wanda, arXiv 2306.11695)."""
        return self._squares().sqrt()

    @property
    def nbytes(self) -> int:
        """Memory of the sums, in bytes."""
        return self._sum.nbytes

    def _squares(self) -> Tensor:
        if not self._full:
            return self._sum
        return self._sum.diagonal() if self._closed is None else self._closed


_TOO_LARGE = 2.0**80
"""Largest sum of squares of a row; 10^12 such rows still sum within fp32."""


def _symmetrize(matrix: Tensor) -> None:
    """Add its transpose to a matrix, in place; a product may round the two halves differently."""
    size = len(matrix)
    for i in range(0, size, _TILE):
        for j in range(i, size, _TILE):
            one, other = matrix[i : i + _TILE, j : j + _TILE], matrix[j : j + _TILE, i : i + _TILE]
            total = one + other.T
            one.copy_(total)
            other.copy_(total.T)


_TILE = 1024
