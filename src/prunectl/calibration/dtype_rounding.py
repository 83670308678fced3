"""New weights as they will be stored: rounded to the checkpoint's dtype, and none lost by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


def unit_of(weight: torch.Tensor) -> float:
    """A power of 2 by which to divide a matrix, so that squares of its weights stay in fp32.

    It is 1 for all matrices that are usual. Dividing by it and multiplying again changes no bit,
    and neither does what lies in between, as long as nothing is rounded to zero.

    Args:
        weight: fp32 [out, in], finite.
    """
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if largest == 0 or 2**-24 <= largest <= 2**8:
        return 1.0
    return 2.0 ** max(math.frexp(largest)[1] - 1, -126)


@dataclass(frozen=True, slots=True)
class DtypeRounding:
    """How a matrix is stored.

    Attributes:
        dtype: of its weights in the checkpoint.
        unit: a power of 2 that its weights are divided by in memory.
    """

    dtype: torch.dtype
    unit: float

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored weights as they are in memory: fp32, divided by the unit."""
        return stored.float() if self.unit == 1 else stored.float() / self.unit

    def rounded(self, weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Weights as they are stored: +0.0 outside of ``kept`` [out, in], and never zero inside.

        A survivor that would be rounded to zero becomes the smallest number of the dtype, so that
        there are exactly as many zeros as were asked for.

        Args:
            weight: fp32 [out, in], as it is in memory.

        Returns:
            [out, in] of the dtype; Inf, or NaN, where it does not hold them.
        """
        new = (weight if self.unit == 1 else weight * self.unit).to(self.dtype)
        lost = kept & (new == 0)
        if bool(lost.any()):
            new = torch.where(lost, self._smallest(weight), new)
        return torch.where(kept, new, torch.zeros_like(new))

    def _smallest(self, weight: torch.Tensor) -> torch.Tensor:
        """The smallest numbers of the dtype, with the signs of the weights."""
        bits = _BITS[self.dtype.itemsize]
        small = torch.ones((), dtype=bits, device=weight.device).view(self.dtype)
        return torch.where(weight < 0, -small, small)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
