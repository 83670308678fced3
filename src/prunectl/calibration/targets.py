"""How many weights of which tensor go, where a calibrated method chooses them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from prunectl.calibration.capture import as_matrices
from prunectl.calibration.pruner import Computed, Pruner, refuse_odd
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.pattern import NM, nearest_prefix, pruned_count
from prunectl.plan.plan import Plan, Pool
from prunectl.plan.settings import Scope
from prunectl.tensorspec import TensorSpec
from prunectl.transform.row_blocks import RowShares

if TYPE_CHECKING:
    from prunectl.calibration.pruner import Captured
    from prunectl.methods.goal import MatrixGoal


class ByMask(Protocol):
    """A mask that is computed on demand."""

    def mask(self) -> torch.Tensor:
        """bool, of the tensor's shape; True = kept."""


@dataclass(frozen=True, slots=True)
class ByPattern:
    """Every group follows the pattern."""

    pattern: NM


@dataclass(frozen=True, slots=True)
class ByCount:
    """Prune a fixed number of weights of the tensor."""

    zeros: int


@dataclass(frozen=True, slots=True)
class ByCounts:
    """Prune a fixed number of weights in each of the tensor's matrices."""

    zeros: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ByRow:
    """This share of every row."""

    sparsity: float


@dataclass(frozen=True, slots=True)
class ByShare:
    """The pattern in blocks of rows, as many as the tensor's matrices are to give of a budget."""

    pattern: NM
    shares: RowShares


TensorTarget = ByMask | ByPattern | ByCount | ByCounts | ByRow | ByShare


@dataclass(frozen=True, slots=True)
class Masked:
    """A matrix whose mask is known: bool [out, in]."""

    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class ByRowBlocks:
    """The pattern in blocks of a matrix' rows, until about ``zeros`` of its weights are zero."""

    pattern: NM
    zeros: int


Goal: TypeAlias = "MatrixGoal | Masked | ByRowBlocks"
"""What is asked of one matrix."""


def split(target: TensorTarget, parts: Sequence[torch.Tensor], axis: int | None) -> Iterator[Goal]:
    """Yield the goal of each matrix [out, in] of a tensor.

    A tensor's count is distributed evenly and exactly; zeros that are present count. The caller
    reports the zeros of a matrix to the budget's shares before it takes the next goal.
    """
    from prunectl.methods.goal import PerRow, PerTensor

    match target:
        case ByPattern(pattern):
            yield from [pattern] * len(parts)
        case ByRow(sparsity):
            yield from (PerRow(pruned_count(sparsity, part.shape[1])) for part in parts)
        case ByCounts(zeros):
            yield from map(PerTensor, zeros)
        case ByCount(zeros):
            yield from map(PerTensor, _shared_out(zeros, parts))
        case ByShare(pattern, shares):
            yield from (ByRowBlocks(pattern, shares.of_next(part.numel())) for part in parts)
        case _:
            yield from (Masked(one) for one in as_matrices(target.mask(), axis))


def _shared_out(zeros: int, parts: Sequence[torch.Tensor]) -> list[int]:
    """The number of zeros of each matrix of a tensor, ``zeros`` in all."""
    present = [int((part == 0).sum()) for part in parts]
    there = min(zeros, sum(present))
    first = [min(n, max(0, there - sum(present[:i]))) for i, n in enumerate(present)]
    left = [0, *itertools.accumulate(p.numel() - n for p, n in zip(parts, present, strict=True))]
    ends = [(zeros - there) * end // max(left[-1], 1) for end in left]
    return [a + c - b for a, (b, c) in zip(first, itertools.pairwise(ends), strict=True)]


def pool_targets(plan: Plan, index: int) -> dict[str, TensorTarget]:
    """The targets of a pool's tensors, each by itself: no budget and no scope beyond a tensor."""
    pool = plan.pools[index]
    fitting = [entry.spec for entry in plan.tensors if entry.pool == index]
    return {spec.name: _target(pool, spec.numel) for spec in fitting}


def share_targets(plan: Plan, index: int, unfit: int) -> dict[str, TensorTarget]:
    """The targets of a budget that goes to blocks of rows.

    Args:
        unfit: zeros of the pool's tensors that cannot take its pattern.
    """
    pool = plan.pools[index]
    assert isinstance(pool.pattern, NM)
    specs = [entry.spec for entry in plan.tensors if entry.pool == index]
    shares = RowShares(max(0, pool.target_zeros - unfit), sum(spec.numel for spec in specs))
    return {spec.name: ByShare(pool.pattern, shares) for spec in specs}


def take_by_error(
    pool: Pool,
    specs: Sequence[TensorSpec],
    errors: Mapping[str, float],
    before: Mapping[str, int],
    after: Mapping[str, int],
) -> set[str]:
    """Which matrices take an N:M budget's pattern: those whose outputs change least.

    Args:
        pool: with a sparsity below the pattern's own.
        specs: its tensors that can take the pattern, in file order.
        errors: by name, the output error with the pattern, relative to the output; it is rounded
            to nine digits before it is compared, and equal ones go in file order.
        before: by name, of all the pool's tensors, the zeros that are there already.
        after: by name, the zeros with the pattern.

    Returns:
        Names, so many that the pool's zeros are nearest to what was asked for.
    """
    ranked = sorted(specs, key=lambda spec: float(f"{errors[spec.name]:.9g}"))
    gains = (after[spec.name] - before[spec.name] for spec in ranked)
    taken = nearest_prefix(gains, pool.target_zeros - sum(before.values()))
    return {spec.name for spec in ranked[:taken]}


def _target(pool: Pool, numel: int) -> TensorTarget:
    if isinstance(pool.pattern, NM):
        return ByPattern(pool.pattern)
    assert pool.sparsity is not None
    if pool.scope is Scope.ROW:
        return ByRow(pool.sparsity)
    return ByCount(pruned_count(pool.sparsity, numel))


# --- scope global: how many weights each matrix gives up ------------------------------------------

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
