"""Scope global with calibration: how many weights each tensor gives up.

One threshold for all of a pool, on what a weight adds to its matrix' output: ``w_ij^2 * E[x_j^2]``
as a share of the sum over the matrix, so that a matrix with large outputs does not outweigh the
others (Wanda's score, arXiv 2306.11695, squared and made comparable). The method then chooses which
weights of the tensor these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from prunectl.calibration.capture import as_matrices
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.pruning.calibrated import refuse_odd

if TYPE_CHECKING:
    from prunectl.calibration.engine import Measured

_SHIFT = 15
"""fp32 scores are counted by sign, exponent and 8 bits of the mantissa: steps of 0.4%."""


class ScoreCounts:
    """Counts of scores by tensor: what the engine calls with the inputs' moments."""

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        axes: Mapping[str, int | None],
        reader: TensorReader,
    ) -> None:
        self._tensors, self._axes, self._reader = tensors, axes, reader
        self.counts: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, measured: Sequence[Measured]) -> None:
        """Count the scores of a tensor; changes nothing.

        Raises:
            NaNWeights, UnsupportedCheckpoint: it holds NaN or Inf, which have no score.
        """
        stored = read_tensor(self._reader, self._tensors[name])
        refuse_odd(name, stored)
        parts = as_matrices(stored, self._axes[name])
        total = torch.zeros(1 << (32 - _SHIFT - 1), dtype=torch.int64)
        for part, one in zip(parts, measured, strict=True):
            gram = one.gram
            inputs = None if gram is None or not gram.tokens else gram.diagonal().cpu()
            codes = scores(part.float(), inputs).view(torch.int32) >> _SHIFT
            total += torch.bincount(codes.flatten(), minlength=len(total))
        self.counts[name] = total


def scores(weight: torch.Tensor, inputs: torch.Tensor | None) -> torch.Tensor:
    """``w_ij^2 * d_j / sum``: fp32 [out, in], at least 0; shares of the matrix' output.

    Args:
        weight: fp32 [out, in], finite.
        inputs: fp32 [in], mean squares of the inputs; None where they are not known.
    """
    # Shares stay the same, and squares of very large or small weights stay in range.
    energy = _to_one(weight).square()
    if inputs is not None:
        energy = energy * _to_one(inputs)
    total = float(energy.sum(dtype=torch.float64))
    return energy / total if total > 0 else torch.zeros_like(energy)


def _to_one(values: torch.Tensor) -> torch.Tensor:
    """Scaled so that the largest is 1."""
    largest = values.abs().max()
    return values / largest if largest > 0 else values


def allocate(counts: Mapping[str, torch.Tensor], zeros: int) -> dict[str, int]:
    """The zeros of each tensor: exactly ``zeros`` in all, those of the lowest scores.

    Args:
        counts: by tensor in file order, how many scores lie in each step, from low to high. Scores
            of the step in which the threshold lies go in file order.
        zeros: at most as many as there are scores.
    """
    below = {name: torch.cumsum(one, 0) for name, one in counts.items()}
    total = sum(below.values(), torch.zeros(1, dtype=torch.int64))
    step = int(torch.searchsorted(total, zeros))
    found = {name: int(one[step - 1]) if step else 0 for name, one in below.items()}
    left = zeros - sum(found.values())
    for name, one in counts.items():
        more = min(left, int(one[step])) if step < len(one) else 0
        found[name] += more
        left -= more
    return found
