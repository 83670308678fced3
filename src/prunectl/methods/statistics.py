"""What a layer's inputs look like: their second moments, gathered sample by sample."""

from __future__ import annotations

import torch
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
        tokens: rows counted.
        skipped: rows left out, since they hold NaN, Inf, or values whose squares overflow fp32.
    """

    def __init__(
        self, inputs: int, *, full: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        if inputs < 1:
            raise ValueError(f"a matrix has at least one input, not {inputs}")
        shape = (inputs, inputs) if full else (inputs,)
        self._sum = torch.zeros(shape, dtype=torch.float32, device=device)
        self._full, self._inputs = full, inputs
        self.tokens = 0
        self.skipped = 0

    def add(self, x: Tensor) -> None:
        """Count the inputs ``x`` [..., inputs], of any float dtype, on any device.

        Raises:
            ValueError: another last axis, or not floats.
        """
        if x.ndim == 0 or x.shape[-1] != self._inputs:
            raise ValueError(f"inputs are [..., {self._inputs}], not {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"inputs are floats, not {x.dtype}")
        rows = x.detach().reshape(-1, self._inputs).to(self._sum.device, torch.float32)
        # One pass finds NaN, Inf and what overflows: the sum of squares is then not finite.
        sound = torch.linalg.vecdot(rows, rows).isfinite()
        counted = int(sound.sum())
        self.skipped += len(rows) - counted
        if counted < len(rows):
            rows = rows[sound]
        self.tokens += counted
        if self._full:
            self._sum.addmm_(rows.T, rows)
        else:
            self._sum += rows.square().sum(0)

    def move(self, device: torch.device) -> None:
        """Keep the sum on another device from now on."""
        self._sum = self._sum.to(device)

    def hessian(self) -> Tensor:
        """``H = 2/n * sum x x^T``, fp32 [inputs, inputs], symmetric; zeros if n = 0.

        This is the second derivative of the mean squared output error by one row of the weight
        (SparseGPT, arXiv 2301.00774).

        Raises:
            ValueError: only the diagonal was kept.
        """
        if not self._full:
            raise ValueError("only the diagonal was gathered, not the full second moments")
        # Matrix products may round the two halves differently.
        return (self._sum + self._sum.T) / max(self.tokens, 1)

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
        return self._sum.diagonal() if self._full else self._sum
