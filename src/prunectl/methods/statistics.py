"""What a layer's inputs look like: their second moments, gathered sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunectl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Gram:
    """Second moments of the inputs of one matrix.

    Sums ``x x^T`` over all inputs x in fp32. Its memory is that of one [inputs, inputs] matrix, or
    of one vector if only the diagonal is kept, however many tokens are added. The order in which
    samples come changes the result only by rounding.

    Args:
        inputs: columns of the matrix.
        full: False keeps only the diagonal, which is all that Wanda needs.
        device: where the sum is kept and computed.

    Attributes:
        inputs: columns.
        tokens: rows counted. Rows of zeros are not: an expert is given them in the place of tokens
            that are not its own.
        skipped: rows left out, since they hold NaN or Inf, or are so large that sums of their
            squares could leave fp32.
    """

    def __init__(
        self, inputs: int, *, full: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        if inputs < 1:
            raise ValueError(f"a matrix has at least one input, not {inputs}")
        shape = (inputs, inputs) if full else (inputs,)
        self._sum = torch.zeros(shape, dtype=torch.float32, device=device)
        self._full, self.inputs = full, inputs
        self._closed: Tensor | None = None  # the sum's diagonal, once the sum is made H
        self.tokens = 0
        self.skipped = 0

    def add(self, x: Tensor) -> None:
        """Count the inputs ``x`` [..., inputs], of any float dtype, on any device.

        Raises:
            ValueError: another last axis, not floats, or the sum has been made H.
        """
        if self._closed is not None:
            raise ValueError("the second moments have been asked for: nothing is added to them")
        if x.ndim == 0 or x.shape[-1] != self.inputs:
            raise ValueError(f"inputs are [..., {self.inputs}], not {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"inputs are floats, not {x.dtype}")
        rows = x.detach().reshape(-1, self.inputs).to(self._sum.device, torch.float32)
        # One pass finds NaN, Inf and what is too large: no comparison holds for NaN.
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
        """Make these the moments of what several processes have added.

        Args:
            all_reduce: puts the sum of all processes' tensors in place of one, fp32 and contiguous,
                wherever it is.
            tokens, skipped: of all of them.

        Raises:
            ValueError: the sum has been made H.
        """
        if self._closed is not None:
            raise ValueError("the second moments have been asked for: nothing is added to them")
        all_reduce(self._sum)
        self.tokens, self.skipped = tokens, skipped

    def move(self, device: torch.device) -> None:
        """Keep the sum on another device from now on."""
        self._sum = self._sum.to(device)
        if self._closed is not None:
            self._closed = self._closed.to(device)

    def hessian(self) -> Tensor:
        """``H = 2/n * sum x x^T``, fp32 [inputs, inputs], symmetric; zeros if n = 0.

        This is the second derivative of the mean squared output error by one row of the weight
        (SparseGPT, arXiv 2301.00774). It is the sum's own memory, for one more matrix of that size
        might not fit: it must not be changed, and nothing can be added from then on.

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
"""Sum of squares of a row; 10^12 rows below it still sum up to a number of fp32."""


def _symmetrize(matrix: Tensor) -> None:
    """Add its transpose to a matrix, in place; products may round the two halves differently."""
    size = len(matrix)
    for i in range(0, size, _TILE):
        for j in range(i, size, _TILE):
            one, other = matrix[i : i + _TILE, j : j + _TILE], matrix[j : j + _TILE, i : i + _TILE]
            total = one + other.T
            one.copy_(total)
            other.copy_(total.T)


_TILE = 1024
