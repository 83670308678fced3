"""The result of ``prune``, summed up from what was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import DamagedWork, InvalidPattern, SourceChanged
from prunectl.geometry import Rows
from prunectl.layouts.layout import Statistics
from prunectl.layouts.table import DENSE, LAYOUTS
from prunectl.output.shards import ShardLayout
from prunectl.pattern import NM, Unstructured, parse_pattern, pruned_count
from prunectl.plan.job import OutputTensor
from prunectl.plan.plan import Plan, Pool, TensorPlan
from prunectl.plan.settings import ROW_BLOCK, Scope
from prunectl.pruning.result import PoolOutcome, PruneResult, TensorOutcome
from prunectl.tensorspec import DTYPES
from prunectl.transform.edits import Copy, Cut, Replace, Resolution
from prunectl.transform.writing import Written

VISIBLE = 0.0005
"""Differences between requested and achieved sparsity that are explained to the user."""


def check_written(
    target: Path,
    checkpoint: Checkpoint,
    resolution: Resolution,
    outputs: Mapping[str, OutputTensor],
    written: Mapping[str, Written],
) -> None:
    """Compare what was written with the forecasts.

    Raises:
        SourceChanged: the zeros differ from the forecast, so the weights are not those that were
            measured.
        DamagedWork: new weights are not those that the calibration wrote.
    """
    for name, tensor in outputs.items():
        edit = resolution.edits.get(tensor.source.name)
        if isinstance(edit, Replace) and written[name].blake3 != edit.blake3:
            raise DamagedWork(target, name)
        forecast = resolution.forecasts.get(tensor.source.name)
        if forecast is not None and written[name].zeros != forecast.zeros:
            raise SourceChanged(checkpoint.model, name, forecast.zeros, written[name].zeros)


def build_result(
    target: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    resolution: Resolution,
    outputs: Mapping[str, OutputTensor],
    layout: ShardLayout,
    written: Mapping[str, Written],
    resumed: int,
) -> PruneResult:
    """Sum up the written tensors; those tied under two names count once."""
    planned = {entry.spec.name: entry for entry in plan.tensors}
    counted: dict[str, Written] = {}
    tensors = []
    for name, tensor in outputs.items():
        entry, one = planned[tensor.source.name], written[name]
        first = counted.setdefault(tensor.source.name, one)
        outcome = _tensor_outcome(name, entry, plan, resolution, layout.shard_of[name], one)
        tensors.append(outcome if first is one else replace(outcome, tied_to=first.name))
    prunable = [entry for entry in plan.tensors if entry.prunable]
    floats = [entry for entry in plan.tensors if entry.spec.dtype.is_float]
    return PruneResult(
        output=target,
        model=checkpoint.model,
        pools=tuple(_pool_outcome(plan, i, resolution, counted) for i in range(len(plan.pools))),
        tensors=tuple(tensors),
        prunable_weights=sum(entry.spec.numel for entry in prunable),
        prunable_zeros=sum(counted[entry.spec.name].zeros for entry in prunable),
        prunable_zeros_before=sum(counted[entry.spec.name].zeros_before for entry in prunable),
        weights=sum(entry.spec.numel for entry in floats),
        zeros=sum(counted[entry.spec.name].zeros for entry in floats),
        zeros_before=sum(counted[entry.spec.name].zeros_before for entry in floats),
        nbytes=layout.total_bytes,
        source_bytes=sum(file.size for file in checkpoint.files),
        shards=len(layout.shards),
        resumed_shards=resumed,
        seconds=0.0,
        warnings=tuple(_warnings(checkpoint, plan, counted.values())),
        predicted_bytes=predict(tensors, written),
        method="mask" if plan.settings.mask is not None else str(plan.settings.method),
        refined=plan.settings.refine,
        reconstructed=plan.settings.reconstruct,
    )


def _tensor_outcome(
    name: str, entry: TensorPlan, plan: Plan, resolution: Resolution, file: str, one: Written
) -> TensorOutcome:
    pool = None if entry.pool is None else plan.pools[entry.pool]
    alone = pool is not None and not isinstance(pool.pattern, NM) and pool.scope != Scope.GLOBAL
    forecast = resolution.forecasts.get(entry.spec.name)
    edit = resolution.edits.get(entry.spec.name, Copy())
    reason = resolution.reasons.get(entry.spec.name, entry.reason)
    return TensorOutcome(
        name=name,
        file=file,
        dtype=entry.spec.dtype.name,
        shape=entry.spec.shape,
        role=str(entry.role.role),
        layer=entry.role.layer,
        numel=entry.spec.numel,
        prunable=entry.prunable,
        action="copy" if isinstance(edit, Copy) else "prune",
        pattern=None if isinstance(edit, Copy) else str(entry.pattern),
        zeros=one.zeros,
        zeros_before=one.zeros_before,
        threshold=edit.threshold if isinstance(edit, Cut) else None,
        reason=reason,
        blake3=one.blake3,
        requested=pool.sparsity if pool and alone else None,
        input_axis=entry.input_axis if entry.prunable else None,
        norm_lost=forecast.norm_lost if forecast else None,
        calibrated=resolution.calibrated.get(entry.spec.name),
        pattern_rows=resolution.pattern_rows.get(entry.spec.name),
    )


def _pool_outcome(
    plan: Plan, index: int, resolution: Resolution, written: Mapping[str, Written]
) -> PoolOutcome:
    pool = plan.pools[index]
    zeros = sum(written[name].zeros for name in pool.members)
    before = sum(written[name].zeros_before for name in pool.members)
    pruned = sum(not isinstance(resolution.edits.get(name, Copy()), Copy) for name in pool.members)
    return PoolOutcome(
        label=pool.label,
        pattern=pool.kind,
        scope=pool.scope_label,
        requested=pool.sparsity,
        achieved=zeros / pool.weights if pool.weights else 0.0,
        weights=pool.weights,
        zeros=zeros,
        threshold=resolution.thresholds[index],
        budget=pool.is_budget,
        row_block=ROW_BLOCK if pool.by_rows else None,
        pruned_tensors=pruned,
        dense_tensors=len(pool.members) - pruned,
        note=pool_note(pool, zeros, len(pool.members) - pruned, _rounded(plan, index), before),
    )


def _rounded(plan: Plan, index: int) -> int:
    """The zeros that an unstructured pool's sparsity asks for, rounded for each tensor or row."""
    pool = plan.pools[index]
    entries = [entry for entry in plan.tensors if entry.pool == index]
    if not isinstance(pool.pattern, Unstructured) or pool.sparsity is None:
        return 0
    if pool.scope is Scope.GLOBAL:
        return pool.target_zeros
    total = 0
    for entry in entries:
        together = Rows.of(entry.spec.shape, entry.input_axis).length
        if pool.scope is Scope.TENSOR:
            together = entry.spec.numel
        if together:
            total += entry.spec.numel // together * pruned_count(pool.sparsity, together)
    return total


def pool_note(pool: Pool, zeros: int, dense: int, rounded: int = 0, before: int = 0) -> str:
    """Why a pool has visibly more or fewer zeros than requested; '' if it has not.

    Args:
        zeros: achieved. dense: tensors that stay dense.
        rounded: the requested zeros, rounded for each tensor or row.
        before: zeros in the source.
    """
    if pool.masked is not None:
        return ""
    where = "" if pool.label == "default" else f" in {pool.label}"
    unfit = f"{dense} {'tensor' if dense == 1 else 'tensors'}{where} cannot take {pool.pattern}"
    if pool.sparsity is None:
        return f"{unfit} and stay dense; the manifest says why." if dense else ""
    achieved = zeros / pool.weights if pool.weights else 0.0
    if abs(achieved - pool.sparsity) < VISIBLE:
        return ""
    asked = f"{pool.sparsity:.1%} requested, {achieved:.1%} achieved{where}: "
    if pool.is_budget and before > pool.target_zeros:
        return asked + "more weights were zero already, and they stay."
    if pool.is_budget:
        one, all_ = ("matrix", "whole matrices")
        if pool.by_rows:
            one, all_ = (f"block of {ROW_BLOCK} rows", f"blocks of {ROW_BLOCK} rows")
        if not zeros:
            return asked + f"any one {one} in {pool.pattern} is already further away than none."
        return asked + f"{all_} take {pool.pattern}, and this is the nearest they come."
    if achieved > pool.sparsity and isinstance(pool.pattern, Unstructured) and zeros > rounded:
        return asked + "more weights were zero already, and they stay."
    if isinstance(pool.pattern, NM):
        return asked + f"{unfit} and stay dense."
    return asked + f"the number of zeros is rounded for each {pool.scope}."


def _warnings(checkpoint: Checkpoint, plan: Plan, written: Iterable[Written]) -> Iterable[str]:
    if plan.settings.mask is not None:
        return  # neither magnitudes nor roles decided anything
    infinite = [one for one in written if one.infs]
    if infinite:
        more = f" and {len(infinite) - 1} more" if len(infinite) > 1 else ""
        yield (
            f"Tensor '{infinite[0].name}'{more} holds Inf, which counts as the largest magnitude."
        )
    if checkpoint.roles.origin == "headers":
        yield (
            "Prunable tensors were recognised by names and shapes only "
            f"({checkpoint.roles.detail})."
        )


def predict(tensors: Sequence[TensorOutcome], written: Mapping[str, Written]) -> dict[str, int]:
    """Bytes of all tensors in each layout, without headers; a tensor that would grow counts as
    dense.

    As exact as the layout's prediction: zeros are counted, exponents sampled from the beginning of
    each tensor. Layouts that need an N:M pattern are left out where no tensor gains by one.
    """
    totals = dict.fromkeys(LAYOUTS, 0)
    for tensor in tensors:
        dtype = DTYPES[tensor.dtype]
        dense = tensor.numel * dtype.bits // 8
        kept = tensor.numel - tensor.zeros
        for name, layout in LAYOUTS.items():
            size = dense
            if dtype.is_float and tensor.numel:
                exponents = kept * written[tensor.name].exponent_bits
                facts = Statistics(dtype, tensor.numel, kept, exponents, _groups(tensor))
                size = min(dense, layout.predicted(facts))
            totals[name] += size
    return {
        name: total
        for name, total in totals.items()
        if total < totals[DENSE] or not LAYOUTS[name].needs_groups
    }


def _groups(tensor: TensorOutcome) -> NM | None:
    """The N:M that a whole tensor was pruned to, or None."""
    if tensor.pattern_rows is not None or tensor.action != "prune" or tensor.pattern is None:
        return None
    try:
        pattern = parse_pattern(tensor.pattern)
    except InvalidPattern:  # the pattern that a mask file states
        return None
    return pattern if isinstance(pattern, NM) else None
