"""How many weights of which tensor go, where a calibrated method chooses them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from prunectl.pattern import NM, nearest_prefix, pruned_count
from prunectl.plan import Plan, Pool
from prunectl.pruning.edits import axis_view
from prunectl.settings import ROW_BLOCK, Scope
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    import torch

    from prunectl.methods.target import Target


class ByMask(Protocol):
    """A mask that is found when it is asked for."""

    def mask(self) -> torch.Tensor:
        """bool, of the tensor's shape; True = kept."""


@dataclass(frozen=True, slots=True)
class ByPattern:
    """Every group follows the pattern."""

    pattern: NM


@dataclass(frozen=True, slots=True)
class ByCount:
    """So many weights of the tensor."""

    zeros: int


@dataclass(frozen=True, slots=True)
class ByRow:
    """This share of every row."""

    sparsity: float


@dataclass(frozen=True, slots=True)
class ByRowBlocks:
    """The pattern in blocks of rows, until about ``zeros`` weights of the tensor are zero."""

    pattern: NM
    zeros: int


TensorTarget = ByMask | ByPattern | ByCount | ByRow | ByRowBlocks


@dataclass(frozen=True, slots=True)
class Masked:
    """A matrix whose mask is known: bool [out, in]."""

    mask: torch.Tensor


Goal: TypeAlias = "Target | Masked | ByRowBlocks"
"""What is asked of one matrix."""


def split(target: TensorTarget, parts: Sequence[torch.Tensor], axis: int | None) -> list[Goal]:
    """The target of each matrix [out, in] of a tensor; counts are shared out evenly and exactly."""
    from prunectl.calibration.capture import as_matrices
    from prunectl.methods.target import PerRow, PerTensor

    if isinstance(target, ByPattern):
        return [target.pattern] * len(parts)
    if isinstance(target, ByRow):
        return [PerRow(pruned_count(target.sparsity, part.shape[1])) for part in parts]
    if isinstance(target, ByCount | ByRowBlocks):
        ends = [target.zeros * i // len(parts) for i in range(len(parts) + 1)]
        shares = [b - a for a, b in itertools.pairwise(ends)]
        if isinstance(target, ByRowBlocks):
            return [ByRowBlocks(target.pattern, share) for share in shares]
        return [PerTensor(share) for share in shares]
    return [Masked(one) for one in as_matrices(target.mask(), axis)]


def pool_targets(plan: Plan, index: int) -> dict[str, TensorTarget]:
    """The targets of a pool's tensors, each by itself: no budget and no scope beyond a tensor."""
    pool = plan.pools[index]
    fitting = [entry.spec for entry in plan.tensors if entry.pool == index]
    return {spec.name: _target(pool, spec.numel) for spec in fitting}


def row_block_targets(plan: Plan, index: int) -> dict[str, TensorTarget]:
    """The targets of a budget that goes to blocks of rows: every matrix gives the same share.

    A share is met in whole blocks; what it is off by is carried over to the next matrix, in file
    order, so that the pool comes as near to its sparsity as a block allows.
    """
    pool = plan.pools[index]
    assert isinstance(pool.pattern, NM)
    pattern = pool.pattern
    entries = [entry for entry in plan.tensors if entry.pool == index]
    total = sum(entry.spec.numel for entry in entries)
    found: dict[str, TensorTarget] = {}
    given = done = 0
    for entry in entries:
        done += entry.spec.numel
        wanted = pool.target_zeros * done // total
        length, _ = axis_view(entry.spec, entry.input_axis)
        block = ROW_BLOCK * length * (pattern.m - pattern.n) // pattern.m
        most = entry.spec.numel * (pattern.m - pattern.n) // pattern.m
        zeros = min(most, max(0, (2 * (wanted - given) + block) // (2 * block)) * block)
        given += zeros
        found[entry.spec.name] = ByRowBlocks(pattern, zeros)
    return found


def take_by_error(
    pool: Pool, specs: Sequence[TensorSpec], errors: Mapping[str, float], zeros: Mapping[str, int]
) -> set[str]:
    """Which matrices take an N:M budget's pattern: those whose outputs change least.

    Args:
        pool: with a sparsity below the pattern's own.
        specs: its tensors that can take the pattern, in file order.
        errors: by name, the output error with the pattern, relative to the output; it is rounded
            to nine digits before it is compared, and equal ones go in file order.
        zeros: by name, of all the pool's tensors, the zeros that are there already.

    Returns:
        Names, so many that the pool's zeros are nearest to what was asked for.
    """
    assert isinstance(pool.pattern, NM)
    ranked = sorted(specs, key=lambda spec: float(f"{errors[spec.name]:.9g}"))
    n, m = pool.pattern.n, pool.pattern.m
    gains = (max(0, spec.numel * (m - n) // m - zeros[spec.name]) for spec in ranked)
    taken = nearest_prefix(gains, pool.target_zeros - sum(zeros.values()))
    return {spec.name for spec in ranked[:taken]}


def _target(pool: Pool, numel: int) -> TensorTarget:
    if isinstance(pool.pattern, NM):
        return ByPattern(pool.pattern)
    assert pool.sparsity is not None
    if pool.scope is Scope.ROW:
        return ByRow(pool.sparsity)
    return ByCount(pruned_count(pool.sparsity, numel))
