"""How many weights of which tensor go, where a calibrated method chooses them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prunectl.pattern import NM, pruned_count
from prunectl.plan import Plan, Pool
from prunectl.settings import Scope
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


TensorTarget = ByMask | ByPattern | ByCount | ByRow


@dataclass(frozen=True, slots=True)
class Masked:
    """A matrix whose mask is known: bool [out, in]."""

    mask: torch.Tensor


def split(
    target: TensorTarget, parts: Sequence[torch.Tensor], axis: int | None
) -> list[Target | Masked]:
    """The target of each matrix [out, in] of a tensor; counts are shared out evenly and exactly."""
    from prunectl.calibration.capture import as_matrices
    from prunectl.methods.target import PerRow, PerTensor

    if isinstance(target, ByPattern):
        return [target.pattern] * len(parts)
    if isinstance(target, ByRow):
        return [PerRow(pruned_count(target.sparsity, part.shape[1])) for part in parts]
    if isinstance(target, ByCount):
        ends = [target.zeros * i // len(parts) for i in range(len(parts) + 1)]
        return [PerTensor(b - a) for a, b in itertools.pairwise(ends)]
    return [Masked(one) for one in as_matrices(target.mask(), axis)]


def pool_targets(plan: Plan, index: int) -> dict[str, TensorTarget]:
    """The targets of a pool's tensors, each by itself: no budget and no scope beyond a tensor."""
    pool = plan.pools[index]
    fitting = [entry.spec for entry in plan.tensors if entry.pool == index]
    return {spec.name: _target(pool, spec.numel) for spec in fitting}


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
    reached = sum(zeros.values())
    best, distance = 0, abs(reached - pool.target_zeros)
    for count, spec in enumerate(ranked, 1):
        pruned = spec.numel * (pool.pattern.m - pool.pattern.n) // pool.pattern.m
        reached += max(0, pruned - zeros[spec.name])
        if abs(reached - pool.target_zeros) < distance:
            best, distance = count, abs(reached - pool.target_zeros)
    return {spec.name for spec in ranked[:best]}


def _target(pool: Pool, numel: int) -> TensorTarget:
    if isinstance(pool.pattern, NM):
        return ByPattern(pool.pattern)
    assert pool.sparsity is not None
    if pool.scope is Scope.ROW:
        return ByRow(pool.sparsity)
    return ByCount(pruned_count(pool.sparsity, numel))
