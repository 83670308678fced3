"""Statistics of a layer's inputs: second moments, accumulated sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunectl.lazy import torch
from prunectl.methods.factor import RAISES
from prunectl.methods.products import add_moments

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
        paired: also sum ``s (d - x) x^T`` for the inputs d that the dense model has in place of
            each x. s is 1, or less for a token whose square exceeds the median of its batch: a few
            tokens with huge activations would decide everything.

    Attributes:
        inputs: columns.
        tokens: rows counted, except rows of zeros: an expert receives these in place of tokens that
            are routed elsewhere.
        skipped: rows left out because they hold NaN or Inf, or are so large that sums of their
            squares could overflow fp32.
    """

    def __init__(
        self,
        inputs: int,
        *,
        full: bool = True,
        device: torch.device | str = "cpu",
        paired: bool = False,
    ) -> None:
        if inputs < 1:
            raise ValueError(f"a matrix needs at least one input, not {inputs}")
        shape = (inputs, inputs) if full else (inputs,)
        self._sum = torch.zeros(shape, dtype=torch.float32, device=device)
        self._full, self.inputs = full, inputs
        self._closed: Tensor | None = None  # the sum's diagonal, once the sum has become H
        self._cross = torch.zeros_like(self._sum) if paired else None
        self._aim: Tensor | None = None
        self.tokens = 0
        self.skipped = 0

    @property
    def is_paired(self) -> bool:
        """Whether the dense model's inputs are known too."""
        return self._cross is not None

    def unpair(self) -> None:
        """Drop the sums over pairs: the dense model's inputs are not known for every token."""
        self._cross = None

    def add(self, x: Tensor, dense: Tensor | None = None) -> None:
        """Add the inputs ``x`` [..., inputs], of any float dtype, on any device.

        Args:
            dense: the dense model's inputs, of the same shape. A row of zeros stands for none, as
                for a token that goes to other experts there: x counts in its place.

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
        moved = None
        if self._cross is not None and dense is not None:
            pairs = dense.detach().reshape(-1, self.inputs).to(self._sum.device, torch.float32)
            known = torch.linalg.vecdot(pairs, pairs)
            sound &= known < _TOO_LARGE
            moved = torch.where((known == 0)[:, None], 0.0, pairs - rows)
        counted, sounds = torch.stack([(sound & (squares > 0)).sum(), sound.sum()]).tolist()
        self.skipped += len(rows) - sounds
        if sounds < len(rows):
            rows, squares = rows[sound], squares[sound]
            moved = None if moved is None else moved[sound]
        if moved is None:
            self.unpair()
        elif sounds:
            largest = torch.maximum(squares, torch.linalg.vecdot(moved, moved))
            usual = squares[squares > 0]
            share = (usual.median() / largest).clamp(max=1).nan_to_num(0.0)
            add_moments(self._cross, moved * share[:, None], rows)  # type: ignore[arg-type]
        self.tokens += counted
        if self._full:
            add_moments(self._sum, rows, rows)
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
        if self._cross is not None:
            all_reduce(self._cross)
        self.tokens, self.skipped = tokens, skipped

    def move(self, device: torch.device) -> None:
        """Move the sum to another device."""
        self._sum = self._sum.to(device)
        if self._closed is not None:
            self._closed = self._closed.to(device)
        if self._cross is not None:
            self._cross = self._cross.to(device)
        if self._aim is not None:
            self._aim = self._aim.to(device)

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
            diagonal = self._sum.diagonal().clone()
            _symmetrize(self._sum)
            self._sum /= max(self.tokens, 1)
            self._closed = diagonal
        return self._sum

    def aim(self, damping: float) -> Tensor | None:
        """A, fp32 [inputs, inputs]: ``W A`` gives on inputs x nearly what W gives on the dense d.

        ``A = I + SHARE * (sum s (d - x) x^T) (sum x x^T + p I)^-1``, with p of ``damping`` times
        the mean of the diagonal. With s = SHARE = 1, ``W A`` minimizes the sum over inputs of
        ``|W' x - W d|^2``, plus ``p |W' - W|^2``, over W' (GPTAQ, arXiv 2504.02692). Half of the
        way is better than either end: x determines d only in part, and the rest of what the samples
        show is noise.

        Returns:
            None where the dense model's inputs are not known, or no damping, raised tenfold
            repeatedly, lets the sums be inverted.

        Raises:
            ValueError: only the diagonal was kept.
        """
        hessian = self.hessian()
        if self._cross is not None:
            mean = hessian.diagonal().mean()
            for _ in range(RAISES + 1):
                damped = hessian.clone()
                damped.diagonal().add_(damping * mean)
                factor, failed = torch.linalg.cholesky_ex(damped)
                if not int(failed):
                    aim = torch.cholesky_solve(self._cross.T, factor).T
                    aim.mul_(2 * SHARE / max(self.tokens, 1)).diagonal().add_(1)
                    self._aim = aim
                    break
                damping = 10 * damping or 0.001
            self._cross = None
        return self._aim

    def diagonal(self) -> Tensor:
        """The diagonal of :meth:`hessian`, fp32 [inputs]."""
        return 2 * self._squares() / max(self.tokens, 1)

    def norms(self) -> Tensor:
        """``||x_j||_2`` of every input over all tokens, fp32 [inputs] (Wanda, arXiv 2306.11695)."""
        return self._squares().sqrt()

    def _squares(self) -> Tensor:
        if not self._full:
            return self._sum
        return self._sum.diagonal() if self._closed is None else self._closed


SHARE = 0.5
"""How far an aim goes from the pruned model's inputs to the dense model's; measured."""

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
