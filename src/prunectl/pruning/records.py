"""The papers of an output: the result, the manifest, the model card, the side files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prunectl._version import __version__
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import SourceChanged
from prunectl.pattern import NM
from prunectl.plan import Plan, TensorPlan
from prunectl.pruning.edits import Copy, Cut
from prunectl.pruning.outputs import OutputTensor
from prunectl.pruning.resolve import Resolution
from prunectl.pruning.result import PoolOutcome, PruneResult, TensorOutcome
from prunectl.pruning.transform import Written
from prunectl.settings import Scope
from prunectl.sink.card import CardFacts, RoleRow, model_card
from prunectl.sink.folder import OutputFolder
from prunectl.sink.manifest import Count, Manifest, SourceFile, SourceRecord, TensorRecord
from prunectl.sink.shards import INDEX_NAME, ShardLayout
from prunectl.sink.target import MANIFEST_NAME

CARD_NAME = "README.md"


def check_counts(
    checkpoint: Checkpoint, resolution: Resolution, written: Mapping[str, Written]
) -> None:
    """Compare the zeros that were written with those that the thresholds were found for.

    Raises:
        SourceChanged: they differ, so the weights are not the ones that were measured.
    """
    for name, forecast in resolution.forecasts.items():
        if name in written and written[name].zeros != forecast.zeros:
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
    """Sum up what was written. Tied tensors written under two names count once."""
    planned = {entry.spec.name: entry for entry in plan.tensors}
    counted: dict[str, Written] = {}
    tensors = []
    for name, tensor in outputs.items():
        entry, one = planned[tensor.source.name], written[name]
        counted.setdefault(tensor.source.name, one)
        tensors.append(_tensor_outcome(name, entry, plan, resolution, layout.shard_of[name], one))
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
        warnings=tuple(_warnings(checkpoint, counted.values())),
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
        norm_lost=forecast.norm_lost if forecast else None,
    )


def _pool_outcome(
    plan: Plan, index: int, resolution: Resolution, written: Mapping[str, Written]
) -> PoolOutcome:
    pool = plan.pools[index]
    zeros = sum(written[name].zeros for name in pool.members)
    pruned = sum(not isinstance(resolution.edits.get(name, Copy()), Copy) for name in pool.members)
    return PoolOutcome(
        label=pool.label,
        pattern=str(pool.pattern),
        scope="" if isinstance(pool.pattern, NM) else str(pool.scope),
        requested=pool.sparsity,
        achieved=zeros / pool.weights if pool.weights else 0.0,
        weights=pool.weights,
        zeros=zeros,
        threshold=resolution.thresholds[index],
        budget=pool.is_budget,
        pruned_tensors=pruned,
        dense_tensors=len(pool.members) - pruned,
    )


def _warnings(checkpoint: Checkpoint, written: Iterable[Written]) -> Iterable[str]:
    infinite = [one for one in written if one.infs]
    if infinite:
        more = f" and {len(infinite) - 1} more" if len(infinite) > 1 else ""
        yield (
            f"Tensor '{infinite[0].name}'{more} holds Inf, which counts as the largest magnitude."
        )
    if checkpoint.roles.origin == "headers":
        yield (
            "What is prunable was told from tensor names and shapes only "
            f"({checkpoint.roles.detail})."
        )


# --- files ------------------------------------------------------------------------------------


def write_papers(
    sink: OutputFolder,
    checkpoint: Checkpoint,
    result: PruneResult,
    arguments: dict[str, Any],
    layout: ShardLayout,
    command: str,
) -> None:
    """Write side files, index, model card and, last, the manifest."""
    files = [sink.write_side_file(name, checkpoint.folder / name) for name in checkpoint.side_files]
    index = layout.index()
    if index is not None:
        files.append(sink.write_bytes(INDEX_NAME, index))
    prunable, overall = _counts(result)
    card = model_card(_source_card(checkpoint), _card_facts(checkpoint, result, arguments, command))
    # A card is for people to edit, so its bytes are not part of what verify checks.
    sink.write_bytes(CARD_NAME, card.encode("utf-8", "surrogateescape"))
    manifest = Manifest(
        version=__version__,
        source=_source_record(checkpoint),
        arguments=arguments,
        prunable=prunable,
        overall=overall,
        tensors=tuple(_tensor_record(one) for one in result.tensors),
        files=tuple(files),
    )
    sink.write_bytes(MANIFEST_NAME, manifest.to_json())


def _counts(result: PruneResult) -> tuple[Count, Count]:
    """Totals over the prunable weights, and over all of them."""
    requested = result.pools[0].requested if len(result.pools) == 1 else None
    return (
        Count(
            result.prunable_weights, result.prunable_zeros_before, result.prunable_zeros, requested
        ),
        Count(result.weights, result.zeros_before, result.zeros),
    )


def _tensor_record(one: TensorOutcome) -> TensorRecord:
    return TensorRecord(
        name=one.name,
        file=one.file,
        dtype=one.dtype,
        shape=one.shape,
        role=one.role,
        layer=one.layer,
        pattern=one.pattern,
        sparsity=one.requested,
        zeros=one.zeros,
        zeros_before=one.zeros_before,
        # JSON has no Inf, the threshold where so many go that Inf does too.
        threshold=one.threshold if one.threshold != math.inf else None,
        blake3=one.blake3,
        reason=one.reason or None,
    )


def _source_record(checkpoint: Checkpoint) -> SourceRecord:
    kind: Any = checkpoint.kind
    return SourceRecord(
        model=checkpoint.model,
        kind=kind,
        repo_id=checkpoint.repo_id,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        endpoint=os.environ.get("HF_ENDPOINT") if checkpoint.kind == "hub" else None,
        files=tuple(SourceFile(file.name, file.size, None) for file in checkpoint.files),
    )


def _source_card(checkpoint: Checkpoint) -> str | None:
    try:
        data = (checkpoint.folder / CARD_NAME).read_bytes()
    except OSError:
        return None
    return data.decode("utf-8", "surrogateescape")


_AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForImageClassification": "AutoModelForImageClassification",
}


def _card_facts(
    checkpoint: Checkpoint, result: PruneResult, arguments: dict[str, Any], command: str
) -> CardFacts:
    prunable, overall = _counts(result)
    architectures = checkpoint.config.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    auto = next((auto for end, auto in _AUTO_CLASSES.items() if named.endswith(end)), "AutoModel")
    return CardFacts(
        # The card is for others: of a local path only the last part, which says what it was.
        model=checkpoint.repo_id or Path(checkpoint.model).resolve().name,
        version=__version__,
        method="one-shot magnitude pruning",
        pattern=arguments["pattern"] if len(result.pools) == 1 else "by recipe",
        scope=arguments["scope"],
        prunable=prunable,
        overall=overall,
        roles=_role_rows(result),
        command=command or "prunectl.prune(...)",
        repo_id=checkpoint.repo_id,
        commit=checkpoint.commit,
        auto_class=auto,
    )


def _role_rows(result: PruneResult) -> list[RoleRow]:
    roles: dict[str, list[TensorOutcome]] = {}
    for one in result.tensors:
        roles.setdefault(one.role, []).append(one)
    return [
        RoleRow(
            role,
            len(members),
            Count(
                sum(one.numel for one in members),
                sum(one.zeros_before for one in members),
                sum(one.zeros for one in members),
            ),
        )
        for role, members in roles.items()
    ]
