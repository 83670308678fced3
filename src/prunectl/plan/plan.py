"""The plan: what happens to every tensor, decided from headers. ``--dry-run`` shows it.

Tensors that share a target form a *pool*: those that one recipe rule matches, or all others.
Numbers that depend on weights (thresholds, the matrices of a budget) come later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunectl.checkpoint.mask_file import Mask
from prunectl.checkpoint.roles import TensorRole
from prunectl.errors import NothingPrunable
from prunectl.pattern import NM, Pattern, Unstructured, pruned_count
from prunectl.plan.prunable import (
    NONE_LEFT,
    check_matches,
    input_axis,
    misfit_reason,
    not_prunable_reason,
    selected,
)
from prunectl.plan.settings import Budget, PruneSettings, Scope, check_complete, rule_target
from prunectl.tensorspec import TensorSpec


@dataclass(frozen=True, slots=True)
class Pool:
    """Tensors that share a target.

    Attributes:
        label: ``default``, the rule's selectors, or the name of the file of masks.
        pattern, scope, sparsity: as in :class:`PruneSettings`; meaningless where masks decide.
        members: names of its prunable tensors, in file order, those that do not fit an N:M
            pattern included: they count in the sparsity's denominator.
        weights: their elements in all.
        masked: weights that the masks prune; None where no mask decides.
        budget: what takes the N:M pattern, if ``is_budget``.
    """

    label: str
    pattern: Pattern
    scope: Scope
    sparsity: float | None
    members: tuple[str, ...]
    weights: int
    masked: int | None = None
    budget: Budget = Budget.MATRIX

    @property
    def kind(self) -> str:
        """How weights are chosen: ``unstructured``, ``N:M`` or ``mask``."""
        return str(self.pattern) if self.masked is None else "mask"

    @property
    def scope_label(self) -> str:
        """The scope, '' where it has no meaning."""
        return str(self.scope) if self.kind == "unstructured" else ""

    @property
    def is_budget(self) -> bool:
        """Whether the N:M pattern goes to only as many matrices or rows as the sparsity needs."""
        return (
            isinstance(self.pattern, NM)
            and self.sparsity is not None
            and self.sparsity < self.pattern.sparsity
        )

    @property
    def by_rows(self) -> bool:
        """Whether the budget goes to blocks of rows, not to whole matrices."""
        return self.is_budget and self.budget is Budget.ROWS

    @property
    def target_zeros(self) -> int:
        """``k = floor(s*P + 0.5)``; for N:M without a sparsity, the most that the pattern gives."""
        if self.masked is not None:
            return self.masked
        sparsity = self.sparsity
        if sparsity is None:
            assert isinstance(self.pattern, NM)
            sparsity = self.pattern.sparsity
        return pruned_count(sparsity, self.weights)


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        spec, role: of the tensor.
        pool: index of its pool; None if it is copied.
        pattern: its pool's pattern; None if it is copied.
        prunable: whether it counts as prunable (it may still be copied, with a reason).
        reason: why it is copied; '' if it is to be pruned.
        mask: the kept weights; None where no mask decides.
    """

    spec: TensorSpec
    role: TensorRole
    pool: int | None
    pattern: Pattern | None
    prunable: bool
    reason: str
    mask: Mask | None = None

    @property
    def input_axis(self) -> int | None:
        """The axis of the inputs, or of the mask's N:M groups."""
        if self.mask is not None and self.mask.pattern is not None:
            return self.mask.input_axis
        return input_axis(self.spec, self.role)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan: an entry for each tensor in file order, the pools, and notes for users."""

    settings: PruneSettings
    tensors: tuple[TensorPlan, ...]
    pools: tuple[Pool, ...]
    notes: tuple[str, ...] = ()

    @property
    def prunable_weights(self) -> int:
        return sum(entry.spec.numel for entry in self.tensors if entry.prunable)

    @property
    def weights(self) -> int:
        """All weights: elements of float tensors."""
        return sum(entry.spec.numel for entry in self.tensors if entry.spec.dtype.is_float)

    def zeros(self, pool: Pool) -> int:
        """Zeros of a pool: exact if unstructured; for N:M the most that its matrices allow.

        For masks: the weights that they prune; others may be zero too.
        """
        if not isinstance(pool.pattern, NM):
            return pool.target_zeros
        index = self.pools.index(pool)
        fitting = sum(e.spec.numel for e in self.tensors if e.pool == index)
        most = fitting // pool.pattern.m * (pool.pattern.m - pool.pattern.n)
        return min(pool.target_zeros, most) if pool.is_budget else most

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: totals, each pool, and each tensor with its action and reason.

        ``nbytes`` is in bytes, ``weights`` and ``zeros`` are elements, ``sparsity`` is a share of
        the pool's prunable weights, 0..1. An entry's ``pool`` is an index into ``pools``.
        """
        return {
            "weights": self.weights,
            "prunable_weights": self.prunable_weights,
            "nbytes": sum(entry.spec.nbytes for entry in self.tensors),
            "pools": [
                {
                    "label": pool.label,
                    "pattern": pool.kind,
                    "scope": pool.scope_label or None,
                    "sparsity": pool.sparsity,
                    "budget": str(pool.budget) if pool.is_budget else None,
                    "weights": pool.weights,
                    "zeros": self.zeros(pool),
                    "members": list(pool.members),
                }
                for pool in self.pools
            ],
            "tensors": [
                {
                    "name": entry.spec.name,
                    "dtype": entry.spec.dtype.label,
                    "shape": list(entry.spec.shape),
                    "role": str(entry.role.role),
                    "layer": entry.role.layer,
                    "action": "copy" if entry.pool is None else "prune",
                    "pool": entry.pool,
                    "pattern": None if entry.pattern is None else str(entry.pattern),
                    "prunable": entry.prunable,
                    "reason": entry.reason,
                }
                for entry in self.tensors
            ],
        }


def make_plan(
    specs: Sequence[TensorSpec], roles: Mapping[str, TensorRole], settings: PruneSettings
) -> Plan:
    """Decide what happens to every tensor. Pure: no weights, no files.

    Args:
        specs: the tensors in file order.
        roles: of every tensor.
        settings: what was asked for.

    Raises:
        UsageError: settings that contradict themselves; a selector or rule that matches nothing.
        NothingPrunable: no tensor is left to prune.
    """
    check_complete(settings)
    check_matches(
        specs,
        [
            *(("--include", s) for s in settings.include),
            *(("--exclude", s) for s in settings.exclude),
            *(("a recipe rule", s) for rule in settings.rules for s in rule.match),
        ],
    )
    has_default = settings.sparsity is not None or isinstance(settings.pattern, NM)
    targets = [None if rule.skip else rule_target(rule, settings) for rule in settings.rules]
    targets.append((settings.sparsity, settings.pattern, settings.scope) if has_default else None)
    entries: list[TensorPlan] = []
    members: list[list[TensorSpec]] = [[] for _ in targets]
    for spec in specs:
        reason = not_prunable_reason(spec, roles[spec.name], settings.include, settings.exclude)
        which = _rule_for(spec.name, settings)
        target = targets[which]
        if not reason and target is None:
            reason = (
                "skipped by the recipe" if which < len(settings.rules) else "no rule matches it"
            )
        if reason or target is None:
            entries.append(TensorPlan(spec, roles[spec.name], None, None, False, reason))
            continue
        members[which].append(spec)
        unfit = misfit_reason(spec, roles[spec.name], target[1])
        if unfit:
            entries.append(TensorPlan(spec, roles[spec.name], None, None, True, unfit))
        else:
            entries.append(TensorPlan(spec, roles[spec.name], which, target[1], True, ""))
    return _assemble(settings, targets, entries, members)


def plan_masks(
    specs: Sequence[TensorSpec],
    roles: Mapping[str, TensorRole],
    settings: PruneSettings,
    masks: Mapping[str, Mask],
) -> Plan:
    """The plan where masks choose the weights. Pure: no weights, no files.

    Args:
        specs: the tensors in file order.
        roles: of every tensor.
        settings: with the path of the file of masks.
        masks: by names of ``specs``, of the same shapes.
    """
    assert settings.mask is not None
    entries = []
    for spec in specs:
        role, mask = roles[spec.name], masks.get(spec.name)
        reason = not_prunable_reason(spec, role)
        if mask is None:
            prunable = not reason
            reason = reason or "the file has no mask for it"
            entries.append(TensorPlan(spec, role, None, None, prunable, reason))
        elif not spec.numel:
            entries.append(TensorPlan(spec, role, None, None, False, "empty"))
        else:
            pattern = mask.pattern or Unstructured()
            entries.append(TensorPlan(spec, role, 0, pattern, True, "", mask))
    members = tuple(entry.spec for entry in entries if entry.mask is not None)
    if not members:
        raise NothingPrunable("every tensor with a mask is empty")
    pool = Pool(
        label=settings.mask.name,
        pattern=Unstructured(),
        scope=Scope.GLOBAL,
        sparsity=None,
        members=tuple(spec.name for spec in members),
        weights=sum(spec.numel for spec in members),
        masked=sum(masks[spec.name].zeros for spec in members),
    )
    return Plan(settings, tuple(entries), (pool,))


def _assemble(
    settings: PruneSettings,
    targets: list[tuple[float | None, Pattern, Scope] | None],
    entries: list[TensorPlan],
    members: list[list[TensorSpec]],
) -> Plan:
    """Renumber the pools that have members; refuse a plan that prunes nothing."""
    if not any(entry.pool is not None for entry in entries):
        reasons = sorted({entry.reason for entry in entries if entry.prunable}) or [NONE_LEFT]
        raise NothingPrunable("; ".join(reasons[:3]))
    pools: list[Pool] = []
    numbers: dict[int, int] = {}
    for which, target in enumerate(targets):
        if target is None or not members[which]:
            continue
        numbers[which] = len(pools)
        rule = settings.rules[which] if which < len(settings.rules) else None
        sparsity, pattern, scope = target
        pools.append(
            Pool(
                label=", ".join(rule.match) if rule else "default",
                pattern=pattern,
                scope=scope,
                sparsity=sparsity,
                members=tuple(spec.name for spec in members[which]),
                weights=sum(spec.numel for spec in members[which]),
                budget=settings.budget,
            )
        )
    numbered = tuple(e if e.pool is None else replace(e, pool=numbers[e.pool]) for e in entries)
    return Plan(settings, numbered, tuple(pools))


def _rule_for(name: str, settings: PruneSettings) -> int:
    """Index of the first rule that matches; the number of rules where none does."""
    for index, rule in enumerate(settings.rules):
        if selected(rule.match, name):
            return index
    return len(settings.rules)
