"""What a prune will do, and what it has done, as people read it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.cli.tables import columns, facts, heading, sentence
from prunectl.layouts.table import DENSE, LAYOUTS
from prunectl.plan.settings import ROW_BLOCK

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.plan.plan import Plan, Pool, TensorPlan
    from prunectl.pruning.result import PoolOutcome, PruneResult, TensorOutcome

MOST_AFFECTED = 5
_ROUNDED = 0.005
"""Shares of weights closer than this do not make one tensor more affected than another."""


def plan_screen(plan: Plan, model: str, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: one row for every tensor too.
    """
    yield heading(f"Plan for {model}")
    yield columns(
        ("pool", "pattern", "scope", "sparsity", "prunable weights", "zeros"),
        [_planned_cells(plan, pool) for pool in plan.pools],
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
    yield sentence("Only headers were read, and nothing was written.")


def _planned_cells(plan: Plan, pool: Pool) -> tuple[str, ...]:
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


def prune_screen(result: PruneResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    yield heading(f"{result.model} -> {result.output}")
    yield columns(("sparsity", "requested", "achieved", "zeros", "of weights"), _sparsities(result))
    if len(result.pools) > 1:
        yield heading("By pool")
        yield columns(
            ("pool", "pattern", "scope", "pruned", "requested", "achieved", "threshold"),
            [_pool_cells(pool) for pool in result.pools],
            left=(0, 1, 2),
        )
    yield facts(_facts(result))
    yield from _affected(result, everything=everything)
    for pool in result.pools:
        if pool.note:
            yield sentence(pool.note)
    yield sentence(
        "The zeros are stored like any other weight: they make neither the files smaller nor the "
        "model faster. The pruned model loads wherever the original did."
    )
    folder = shlex.quote(str(result.output))
    if sizes := _sizes(result):
        yield sentence(f"prunectl export {folder} -o DIR would store it in {sizes}.")
    yield sentence(f"Next: prunectl verify {folder}")


def _sizes(result: PruneResult) -> str:
    """What each layout would take, in words; '' where it is not known."""
    dense = result.predicted_bytes.get(DENSE)
    return ", ".join(
        f"{'' if LAYOUTS[layout].is_exact else 'about '}{numbers.size(size)} ({layout}, "
        f"{numbers.share(size / dense)} of dense)"
        for layout, size in sorted(result.predicted_bytes.items(), key=lambda item: item[1])
        if dense and size < dense
    )


def _sparsities(result: PruneResult) -> list[tuple[str, ...]]:
    requested = ""
    if len(result.pools) == 1:
        requested = _requested(result.pools[0], 2)
    return [
        (
            "of the prunable weights",
            requested,
            numbers.share(result.sparsity, 2),
            f"{result.prunable_zeros:,}",
            f"{result.prunable_weights:,}",
        ),
        (
            "overall",
            "",
            numbers.share(result.overall_sparsity, 2),
            f"{result.zeros:,}",
            f"{result.weights:,}",
        ),
    ]


def _requested(pool: PoolOutcome, digits: int = 1) -> str:
    if pool.pattern == "mask":
        return "by mask"
    return "all that fit" if pool.requested is None else numbers.share(pool.requested, digits)


def _facts(result: PruneResult) -> list[tuple[str, str]]:
    pool = result.pools[0] if len(result.pools) == 1 else None
    pruned = sum(tensor.action == "prune" for tensor in result.tensors)
    resumed = f", {result.resumed_shards} of them kept from before" if result.resumed_shards else ""
    rate = numbers.rate(result.nbytes, result.seconds)
    return [
        ("", " "),
        ("method", _method(result)),
        ("pattern", _pattern(pool) if pool else ""),
        ("threshold", _threshold(pool) if pool else ""),
        ("tensors", f"{numbers.count(pruned)} pruned, "
                    f"{numbers.count(len(result.tensors) - pruned)} copied"),
        ("written", f"{numbers.size(result.nbytes)} in "
                    f"{numbers.plural(result.shards, 'file')}{resumed}"),
        ("time", numbers.duration(result.seconds) + (f", {rate}" if rate else "")),
    ]  # fmt: skip


def _method(result: PruneResult) -> str:
    """How it was done where that is not the usual way, and what became of the weights that stay."""
    calibrated = [tensor.calibrated for tensor in result.tensors if tensor.calibrated is not None]
    if not calibrated:
        return ""
    updated = any(record["survivors"] == "updated" for record in calibrated)
    refined = " and refine" if result.refined else ""
    refined += " and reconstruct" if result.reconstructed else ""
    kept = "the kept weights were updated" if updated else "the kept weights are unchanged"
    return f"{result.method}{refined}; {kept}"


def _pattern(pool: PoolOutcome) -> str:
    if pool.pattern == "mask":
        return f"the masks of {pool.label}"
    if pool.pattern == "unstructured":
        return f"unstructured, {pool.scope} scope"
    return f"{pool.pattern}, blocks of {pool.row_block} rows" if pool.row_block else pool.pattern


def _threshold(pool: PoolOutcome) -> str:
    return "" if pool.threshold is None else f"|w| up to {numbers.real(pool.threshold)}"


def _pool_cells(pool: PoolOutcome) -> tuple[str, ...]:
    return (
        "all others" if pool.label == "default" else pool.label,
        pool.pattern,
        pool.scope if pool.pattern == "unstructured" else "",
        f"{pool.pruned_tensors} of {pool.pruned_tensors + pool.dense_tensors}",
        _requested(pool),
        numbers.share(pool.achieved),
        "" if pool.threshold is None else numbers.real(pool.threshold),
    )


def _affected(result: PruneResult, *, everything: bool) -> Iterator[RenderableType]:
    pruned = [tensor for tensor in result.tensors if tensor.action == "prune" and tensor.numel]
    pruned.sort(key=_effect, reverse=True)  # stable: equal ones stay in file order
    if not pruned or not (everything or _differ(pruned)):
        return
    shown = pruned if everything else pruned[:MOST_AFFECTED]
    heading_text = "Pruned tensors" if everything else "Most affected tensors"
    yield heading(f"{heading_text} (of {len(pruned)})")
    title, share = _measure(shown)
    yield columns(
        ("tensor", "weights", "zero before", "zero now", *([title] if title else [])),
        [
            (
                tensor.name,
                numbers.count(tensor.numel),
                numbers.share(tensor.zeros_before / tensor.numel),
                numbers.share(tensor.zeros / tensor.numel),
                *([share(tensor)] if title else []),
            )
            for tensor in shown
        ],
    )


def _differ(pruned: list[TensorOutcome]) -> bool:
    """Whether some are affected more than others, by more than counts that are rounded."""
    effects = [_effect(tensor) for tensor in pruned]
    if len(pruned) == 1 or len({_share(lost) for lost, _ in effects}) > 1:
        return True
    gone = [share for _, share in effects]
    return max(gone) - min(gone) >= _ROUNDED


def _measure(shown: list[TensorOutcome]) -> tuple[str, Callable[[TensorOutcome], str]]:
    """The last column: what was lost of the outputs, or of the norm; '' where neither is known."""
    if any(_output_error(tensor) is not None for tensor in shown):
        return "output error", lambda tensor: _share(_output_error(tensor))
    if any(tensor.norm_lost is not None for tensor in shown):
        return "norm lost", lambda tensor: _share(tensor.norm_lost)
    return "", lambda tensor: ""


def _share(value: float | None) -> str:
    return "" if value is None else numbers.share(value)


def _output_error(tensor: TensorOutcome) -> float | None:
    error = None if tensor.calibrated is None else tensor.calibrated["error"]
    return None if error is None else float(error)


def _effect(tensor: TensorOutcome) -> tuple[float, float]:
    """What was lost of outputs or norm, where it is known; then the share of weights that went."""
    lost = _output_error(tensor)
    lost = (tensor.norm_lost or 0.0) if lost is None else lost
    return lost, (tensor.zeros - tensor.zeros_before) / tensor.numel
