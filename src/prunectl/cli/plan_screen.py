"""What ``--dry-run`` shows: the plan, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.cli.tables import columns, heading, sentence
from prunectl.plan.settings import ROW_BLOCK

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.plan.plan import Plan, Pool, TensorPlan


def plan_screen(plan: Plan, model: str, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: one row for every tensor too.
    """
    yield heading(f"Plan for {model}")
    yield columns(
        ("pool", "pattern", "scope", "sparsity", "prunable weights", "zeros"),
        [_pool_cells(plan, pool) for pool in plan.pools],
        left=(0, 1, 2),
    )
    yield heading("Tensors")
    yield columns(
        ("what is done", "tensors", "weights", "size"),
        [
            (
                group.what,
                numbers.count(group.tensors),
                numbers.count(group.weights),
                numbers.size(group.nbytes),
            )
            for group in _groups(plan)
        ],
    )
    if everything:
        yield heading("Every tensor")
        yield columns(
            ("tensor", "shape", "what is done"),
            [
                (e.spec.name, "x".join(map(str, e.spec.shape)) or "scalar", _what(plan, e))
                for e in plan.tensors
            ],
            left=(0, 2),
        )
    yield sentence("Nothing was read but headers, and nothing was written.")


def _pool_cells(plan: Plan, pool: Pool) -> tuple[str, ...]:
    about = "about " if pool.is_budget else ""
    return (
        "all prunable" if pool.label == "default" else pool.label,
        pool.kind,
        pool.scope_label,
        _asked(pool),
        numbers.count(pool.weights),
        about + numbers.count(plan.zeros(pool)),
    )


def _asked(pool: Pool) -> str:
    if pool.masked is not None:
        return numbers.share(pool.masked / pool.weights)
    return "all that fit" if pool.sparsity is None else numbers.share(pool.sparsity)


@dataclass(slots=True)
class _Group:
    what: str
    tensors: int = 0
    weights: int = 0
    nbytes: int = 0


def _groups(plan: Plan) -> list[_Group]:
    """Tensors of which the same is done, the pruned ones first."""
    groups: dict[str, _Group] = {}
    for entry in sorted(plan.tensors, key=lambda e: (e.pool is None, not e.prunable)):
        group = groups.setdefault(_what(plan, entry), _Group(_what(plan, entry)))
        group.tensors += 1
        group.weights += entry.spec.numel
        group.nbytes += entry.spec.nbytes
    return list(groups.values())


def _what(plan: Plan, entry: TensorPlan) -> str:
    if entry.pool is None:
        return f"copy: {entry.reason}"
    pool = plan.pools[entry.pool]
    verb = "may take" if pool.is_budget else "prune"
    if pool.by_rows:
        verb = f"blocks of {ROW_BLOCK} rows may take"
    which = f" ({pool.label})" if len(plan.pools) > 1 else ""
    return f"{verb} {entry.pattern}{which}" + (" by its mask" if entry.mask is not None else "")
