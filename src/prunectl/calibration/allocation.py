"""Scope global with calibration: how many weights each matrix gives up.

One threshold for all of a pool, on what a weight adds to its matrix' output: ``w_ij^2 * E[x_j^2]``
as a share of the sum over the matrix, so that a matrix with large outputs does not outweigh the
others (Wanda's score, arXiv 2306.11695, squared and made comparable). The method then chooses which
weights of the matrix these are. Weights that are zero go before all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prunectl.calibration.calibrator import refuse_odd
from prunectl.calibration.capture import as_matrices
from prunectl.calibration.pruner import Computed, Pruner
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor

if TYPE_CHECKING:
    from prunectl.calibration.pruner import Captured

_SHIFT = 15
"""fp32 scores are counted by sign, exponent and 8 bits of the mantissa: steps of 0.4%."""


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """How many weights of a matrix lie in each step of the score.

    Attributes:
        first: the lowest step with a weight in it: 0 is of weights that are zero, 1 of those with
            a score of zero.
        numbers: int32 or int64, of the steps from there on.
    """

    first: int
    numbers: torch.Tensor

    def below(self, step: int) -> int:
        """How many lie in lower steps."""
        return int(self.numbers[: max(step - self.first, 0)].sum())

    def at(self, step: int) -> int:
        """How many lie in a step."""
        place = step - self.first
        return int(self.numbers[place]) if 0 <= place < len(self.numbers) else 0


class ScoreCounts(Pruner):
    """Counts of scores by tensor and matrix, where weights are only compared."""

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        axes: Mapping[str, int | None],
        reader: TensorReader,
    ) -> None:
        self._tensors, self._axes, self._reader = tensors, axes, reader
        self.counts: dict[str, list[Counts]] = {}

    def compute(self, name: str, measured: Sequence[Captured]) -> Computed:
        """Count the scores of a tensor; changes nothing.

        Raises:
            NaNWeights, UnsupportedCheckpoint: it holds NaN or Inf, which have no score.
        """
        stored = read_tensor(self._reader, self._tensors[name])
        refuse_odd(name, stored)
        parts = as_matrices(stored, self._axes[name])
        counts = []
        for part, one in zip(parts, measured, strict=True):
            gram = one.gram
            inputs = None if gram is None or not gram.tokens else gram.diagonal().cpu()
            counts.append(count_scores(part.float(), inputs))
        return Computed(None, counts)

    def take(self, name: str, computed: Computed) -> None:
        """Keep the counts of a tensor."""
        self.counts[name] = computed.facts


def count_scores(weight: torch.Tensor, inputs: torch.Tensor | None) -> Counts:
    """Count the weights of a matrix by :func:`scores`."""
    codes = (scores(weight, inputs).view(torch.int32) >> _SHIFT) + 1
    numbers = torch.bincount(codes.masked_fill_(weight == 0, 0).flatten())
    first = int(numbers.nonzero()[0]) if len(numbers) else 0
    # There may be many thousands of matrices: what is kept of each is small.
    narrow = torch.int32 if weight.numel() < 2**31 else torch.int64
    return Counts(first, numbers[first:].to(narrow, copy=True))


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
    largest = float(values.abs().max()) if values.numel() else 0.0
    return values / largest if largest > 0 else values


def allocate(counts: Mapping[str, Sequence[Counts]], zeros: int) -> dict[str, list[int]]:
    """The zeros of each matrix: exactly ``zeros`` in all, those of the lowest scores.

    Args:
        counts: by tensor in file order, of its matrices in order. Scores of the step in which the
            threshold lies go in this order.
        zeros: at most as many as there are scores.
    """
    every = [one for matrices in counts.values() for one in matrices]
    total = torch.zeros(_STEPS, dtype=torch.int64)
    for one in every:
        total[one.first : one.first + len(one.numbers)] += one.numbers
    step = int(torch.searchsorted(total.cumsum(0), zeros))
    found = {name: [one.below(step) for one in matrices] for name, matrices in counts.items()}
    left = zeros - sum(map(sum, found.values()))
    for name, matrices in counts.items():
        for index, one in enumerate(matrices):
            more = min(left, one.at(step))
            found[name][index] += more
            left -= more
    return found


_STEPS = (1 << (31 - _SHIFT)) + 1
