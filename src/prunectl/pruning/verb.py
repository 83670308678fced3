"""The ``prune`` verb: plan, resolve, then stream every tensor into a new folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import blake3

from prunectl._version import __version__
from prunectl.analysis.cache import load_measured, store_measured
from prunectl.analysis.measured import Measured
from prunectl.checkpoint.checkpoint import Checkpoint, open_checkpoint
from prunectl.checkpoint.reader import WeightReader
from prunectl.errors import BadCheckpoint, NaNWeights, SourceChanged, UnsupportedCheckpoint
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted, ignore_events
from prunectl.plain import plain
from prunectl.plan import Plan, make_plan
from prunectl.pruning.edits import Copy
from prunectl.pruning.outputs import OutputTensor, output_tensors
from prunectl.pruning.records import build_result, check_counts, write_papers
from prunectl.pruning.resolve import Resolution, resolve_plan
from prunectl.pruning.result import PruneResult
from prunectl.pruning.transform import Written, write_tensor
from prunectl.settings import PruneSettings
from prunectl.sink.folder import OutputFolder
from prunectl.sink.shards import Shard, ShardLayout, ShardWriter, plan_shards
from prunectl.sink.target import check_space, check_target
from prunectl.streaming import BATCH_BYTES, Scratch, run_ordered

DEFAULT_SHARD_SIZE = 5 * 10**9


@dataclass(frozen=True)
class Job:
    """Everything that is decided before the first byte is written."""

    checkpoint: Checkpoint
    plan: Plan
    settings: PruneSettings
    outputs: dict[str, OutputTensor]
    layout: ShardLayout
    command: str


def plan_prune(checkpoint: Checkpoint, settings: PruneSettings) -> Plan:
    """What ``prune`` would do to every tensor; reads no weights.

    Raises:
        UnsupportedCheckpoint: the checkpoint is quantized.
        UsageError: settings that contradict themselves or match nothing.
    """
    if checkpoint.quantization:
        raise UnsupportedCheckpoint(
            checkpoint.model,
            f"the checkpoint is quantized ({checkpoint.quantization})",
            hint="prune the checkpoint from before quantization, then quantize the result",
        )
    specs = [tensor.spec for tensor in checkpoint.tensors]
    return make_plan(specs, checkpoint.roles.roles, settings)


def prune(
    model: Checkpoint | str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: PruneSettings,
    *,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    force: bool = False,
    use_cache: bool = True,
    jobs: int | None = None,
    command: str | None = None,
    on_event: OnEvent = ignore_events,
) -> PruneResult:
    """Write a pruned copy of a checkpoint as dense safetensors, with side files and manifest.

    Weights of lowest magnitude become +0.0, exactly as many as asked for; every other weight keeps
    its bits ("The Emergence of Essential Sparsity in Large Pre-trained Models", arXiv 2306.03805).
    The output is complete or absent; an interrupted run is resumed by the same call.

    Args:
        model: an open checkpoint, or what :func:`open_checkpoint` takes.
        output: folder to write; must be absent or empty, unless ``force``.
        settings: what to prune.
        max_shard_size: bytes of tensors in one file.
        force: replace an existing checkpoint at ``output``, once everything is written.
        use_cache: use measurements that ``analyze`` kept.
        jobs: threads; default one per core, eight at most.
        command: recorded in the model card; must hold no secrets.
        on_event: receives progress.

    Raises:
        UsageError, SourceError, OutputError: see :mod:`prunectl.errors`; nothing is written then.
    """
    started = time.perf_counter()
    target = Path(output)
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    plan = plan_prune(checkpoint, settings)
    protected = _protected(checkpoint)
    check_target(target, force=force, protected=protected)
    outputs = {tensor.spec.name: tensor for tensor in output_tensors(checkpoint)}
    layout = plan_shards([tensor.spec for tensor in outputs.values()], max_shard_size)
    check_space(target, layout.total_bytes + _side_bytes(checkpoint))
    job = Job(checkpoint, plan, settings, outputs, layout, command or "")
    measured = (load_measured(checkpoint) if use_cache else None) or Measured()
    try:
        known = len(measured.facts), len(measured.patterns)
        resolution = resolve_plan(checkpoint, plan, measured, jobs=jobs, on_event=on_event)
        if use_cache and known != (len(measured.facts), len(measured.patterns)):
            store_measured(checkpoint, measured)
    finally:
        measured.close()
    folder = OutputFolder(
        target, _fingerprint(job), force=force, protected=protected, on_event=on_event
    )
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        with folder as sink:
            written, resumed = _write_weights(job, resolution, sink, jobs, on_event)
            check_counts(checkpoint, resolution, written)
            result = build_result(
                target, checkpoint, plan, resolution, outputs, layout, written, resumed
            )
            write_papers(
                sink, job.checkpoint, result, _arguments(job, max_shard_size), layout, job.command
            )
            sink.commit()
    except (NaNWeights, SourceChanged):
        _discard_shards(target, missing)
        raise
    for text in result.warnings:
        on_event(Note(text, warning=True))
    return replace(result, seconds=time.perf_counter() - started)


def _side_bytes(checkpoint: Checkpoint) -> int:
    """Size of all side files; one that cannot be read is found here, before anything is written."""
    size = 0
    for name in checkpoint.side_files:
        path = checkpoint.folder / name
        try:
            size += path.stat().st_size
        except OSError as error:
            raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from None
    return size


def _discard_shards(target: Path, parents: Sequence[Path]) -> None:
    """Drop finished shards, and parents made for them: the same call would fail again."""
    with OutputFolder(target, "discarded", force=True, protected=()):
        pass
    with suppress(OSError):  # something else was put there meanwhile
        for parent in parents:
            parent.rmdir()


def _protected(checkpoint: Checkpoint) -> list[Path]:
    """What the output must not touch: the source's folder, or the one file and its side files."""
    if checkpoint.kind == "file":
        return [checkpoint.folder / file.name for file in checkpoint.files]
    return [checkpoint.folder]


def _arguments(job: Job, max_shard_size: int) -> dict[str, Any]:
    settings = job.settings
    return {
        "method": "magnitude",
        "sparsity": settings.sparsity,
        "pattern": str(settings.pattern),
        "scope": str(settings.scope),
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "rules": [
            {
                "match": list(rule.match),
                "sparsity": rule.sparsity,
                "pattern": str(rule.pattern) if rule.pattern else None,
                "scope": str(rule.scope) if rule.scope else None,
                "skip": rule.skip,
            }
            for rule in settings.rules
        ],
        "max_shard_size": max_shard_size,
    }


def _fingerprint(job: Job) -> str:
    """Digest of all that decides the output's weight bytes."""
    facts = {
        "version": __version__,
        "source": job.checkpoint.identity(),
        "arguments": _arguments(job, 0),
        "roles": plain(job.checkpoint.roles.roles),
        "shards": [[s.name, [spec.name for spec in s.specs]] for s in job.layout.shards],
    }
    return blake3.blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# --- the weights ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Tensors of one shard that one thread writes; ``last`` if the shard is complete after it."""

    shard: Shard
    writer: ShardWriter
    names: tuple[str, ...]
    last: bool


def _write_weights(
    job: Job, resolution: Resolution, sink: OutputFolder, jobs: int | None, on_event: OnEvent
) -> tuple[dict[str, Written], int]:
    """Write all shards that an earlier run has not finished; returns facts by tensor."""
    phase = "writing weights"
    written: dict[str, Written] = {}
    todo: list[Shard] = []
    for shard in job.layout.shards:
        records = sink.records_of(shard)
        if records is None:
            todo.append(shard)
        else:
            written.update((record["name"], Written(**record)) for record in records)
    on_event(PhaseStarted(phase, sum(shard.size for shard in todo)))
    with job.checkpoint.open() as reader:

        def work(batch: _Batch, scratch: Scratch) -> tuple[_Batch, list[Written]]:
            one = partial(_one, job, resolution, reader, batch.writer, scratch)
            return batch, [one(name) for name in batch.names]

        for batch, results in run_ordered(_batches(todo, sink), work, jobs):
            written.update((result.name, result) for result in results)
            size = sum(job.outputs[name].spec.nbytes for name in batch.names)
            on_event(Advanced(phase, size, batch.shard.name))
            if batch.last:
                names = [spec.name for spec in batch.shard.specs]
                sink.finish(batch.writer, [plain(written[name]) for name in names])
    on_event(PhaseDone(phase))
    return written, len(job.layout.shards) - len(todo)


def _batches(shards: Sequence[Shard], sink: OutputFolder) -> Iterator[_Batch]:
    """Open shards as they are come to, and cut them into batches of small tensors."""
    for shard in shards:
        writer = sink.open_shard(shard)
        names: list[str] = []
        size = 0
        for index, spec in enumerate(shard.specs):
            names.append(spec.name)
            size += spec.nbytes
            last = index == len(shard.specs) - 1
            if last or size + shard.specs[index + 1].nbytes > BATCH_BYTES:
                yield _Batch(shard, writer, tuple(names), last)
                names, size = [], 0


def _one(
    job: Job,
    resolution: Resolution,
    reader: WeightReader,
    writer: ShardWriter,
    scratch: Scratch,
    name: str,
) -> Written:
    tensor = job.outputs[name]
    owner = tensor.source.name
    return write_tensor(
        tensor,
        job.checkpoint.roles.roles[owner],
        resolution.edits.get(owner, Copy()),
        reader,
        lambda offset, block: writer.write(name, offset, block),
        scratch,
    )
