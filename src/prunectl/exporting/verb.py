"""The ``export`` verb: choose a layout for every tensor, then stream it into a new folder."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import BadCheckpoint, InvalidOption, PatternMismatch
from prunectl.events import OnEvent, ignore_events
from prunectl.exporting.job import Job, prepare
from prunectl.exporting.metadata import write_metadata
from prunectl.exporting.result import ExportedTensor, ExportResult
from prunectl.exporting.survey import Choice, choose_layouts
from prunectl.exporting.writing import Stored, room_for, write_dense, write_parts
from prunectl.layouts.table import AUTO, DENSE, LAYOUTS, SUFFIXES
from prunectl.loading.compressed import open_model
from prunectl.loading.finished import check_finished
from prunectl.output.folder import OutputFolder
from prunectl.output.parts import PartsShard, PartsWriter
from prunectl.output.resumable import ResumableFolder
from prunectl.output.shards import Shard, ShardWriter
from prunectl.output.target import check_nobody_writes, check_space
from prunectl.parallel.folder import shared_folder
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.run import Run
from prunectl.pattern import NM, parse_nm
from prunectl.plan.job import protected, side_bytes
from prunectl.to_json import to_json

DEFAULT_SHARD_SIZE = 5 * 10**9


def export(
    model: Checkpoint | str | os.PathLike[str],
    output: str | os.PathLike[str],
    layout: str = AUTO,
    *,
    pattern: NM | str | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    force: bool = False,
    jobs: int | None = None,
    ranks: Ranks = ALONE,
    command: str | None = None,
    on_event: OnEvent = ignore_events,
) -> ExportResult:
    """Store a checkpoint in another layout, bit for bit; layout ``dense`` reverses it.

    The output is complete or absent; the same call resumes an interrupted run.

    Args:
        model: what :func:`prunectl.open_checkpoint` takes, compressed folders included; or an open
            checkpoint.
        output: folder to write; absent or empty, unless ``force``.
        layout: a name of :data:`prunectl.layouts.table.LAYOUTS`, or ``auto``: the smallest for each
            tensor. A tensor that would grow, or does not fit, stays dense.
        pattern: the N:M that the prunable tensors follow; default: each tensor's in the manifest,
            else one of the usual patterns, if it holds.
        max_shard_size: dense bytes of the tensors in one file; a number, or ``5GB``.
        force: replace an existing checkpoint at ``output``, once everything is written.
        jobs: threads; default one per core, eight at most.
        ranks: the processes that share the work; :func:`prunectl.joined_ranks`.
        command: recorded in the model card; must hold no secrets.
        on_event: receives progress.

    Raises:
        PatternMismatch: a tensor does not follow its expected pattern.
        UsageError, SourceError, OutputError: see :mod:`prunectl.errors`; nothing is written then.
    """
    started = time.perf_counter()
    run = Run(jobs, ranks, on_event=on_event)
    checkpoint = run.opened(model, open_model)
    groups = parse_nm(pattern) if isinstance(pattern, str) else pattern
    job = prepare(checkpoint, Path(output), layout, groups, max_shard_size, force, command or "")
    if ranks.is_first:
        check_nobody_writes(job.target)
    ranks.check_source(checkpoint, "export", job.arguments)
    folder = shared_folder(
        run,
        job.target,
        job.fingerprint,
        force=force,
        protected=protected(checkpoint),
    )
    with folder as sink:
        try:
            stored, resumed = _write(job, sink, run)
            checkpoint.check_unchanged()
        except (BadCheckpoint, PatternMismatch, InvalidOption):
            sink.discard()  # a later run would only meet the same error
            raise
        result = _result(job, stored, sink, ranks, resumed)
        warnings: tuple[str, ...] = ()
        if isinstance(sink, OutputFolder):
            warnings = write_metadata(sink, job, result, stored)
            sink.commit()
    for text in warnings:
        run.note(text, warning=True)
    return replace(result, warnings=warnings, seconds=time.perf_counter() - started)


def _write(job: Job, sink: ResumableFolder, run: Run) -> tuple[dict[str, Stored], int]:
    """Write the files that an earlier run has not finished, each rank its own."""
    check_finished(sink, run)
    stored: dict[str, Stored] = {}
    if job.dense:
        check_space(job.target, job.dense.total_bytes + side_bytes(job.checkpoint))
        found = {shard.name: sink.records_of(shard) for shard in job.dense.shards}
    else:
        found = {shard.name: sink.parts_of(shard) for shard in job.shards}
    for records in found.values():
        for record in records or ():
            one = Stored(**{**record, "stored_names": tuple(record["stored_names"])})
            stored[one.name] = one
    choices = {} if job.dense else _choices(job, set(stored), run)
    shards = job.dense.shards if job.dense else job.shards
    todo = [shard for shard in shards if found[shard.name] is None]
    own = run.ranks.share(todo, _dense_bytes)
    ours: list[Stored] = []
    sources = {name: tensor.source for name, tensor in job.outputs.items()}
    with run.phase("writing weights", sum(map(_dense_bytes, own))) as advance:
        with job.checkpoint.open() as reader:
            for shard in own:
                writer: ShardWriter | PartsWriter
                if isinstance(shard, Shard):
                    writer = sink.open_shard(shard)
                    written = write_dense(
                        shard, job.outputs, job.checkpoint, reader, writer, run, advance
                    )
                else:
                    writer = sink.open_parts(shard, room_for(shard, choices))
                    written = write_parts(shard, choices, sources, reader, writer, run, advance)
                sink.finish(writer, [to_json(one) for one in written])
                ours += written
        if run.ranks.count > 1:
            sink.wait()  # only durable files are reported to other ranks
        stored |= {one.name: one for one in run.ranks.all_gather(ours)}
    return stored, len(shards) - len(todo)


def _dense_bytes(shard: Shard | PartsShard) -> int:
    return sum(spec.nbytes for spec in shard.specs)


def _choices(job: Job, finished: set[str], run: Run) -> Mapping[str, Choice]:
    """Choose the layout of every tensor to write."""
    todo = {name: tensor for name, tensor in job.outputs.items() if name not in finished}
    sources = {tensor.source.name: tensor.source for tensor in todo.values()}
    found = choose_layouts(
        job.checkpoint,
        list(sources.values()),
        job.layout,
        job.expected,
        job.axes,
        run,
    )
    needs_groups = job.layout != AUTO and LAYOUTS[job.layout].needs_groups
    if needs_groups and not finished and all(c.is_dense for c in found.values()):
        records = job.manifest.tensors if job.manifest else ()
        partly = any(record.pattern_rows is not None for record in records)
        where = " in all its rows" if partly else ", or none gets smaller by it"
        raise InvalidOption(
            f"--layout {job.layout}: no tensor follows a known N:M pattern{where}",
            hint="prune with --pattern 2:4 first, or choose --layout auto",
        )
    choices = {
        name: _placed(replace(found[tensor.source.name], spec=tensor.spec), job.outputs)
        for name, tensor in todo.items()
    }
    needed = sum(choice.nbytes for choice in choices.values())
    check_space(job.target, needed + needed // 50 + side_bytes(job.checkpoint))
    return choices


def _placed(choice: Choice, names: Collection[str]) -> Choice:
    """The choice; dense where a part would have the name of another tensor."""
    if any(f"{choice.spec.name}.{suffix}" in names for suffix in SUFFIXES):
        return replace(choice, layout=DENSE, extra={})
    return choice


def _result(
    job: Job, stored: Mapping[str, Stored], sink: ResumableFolder, ranks: Ranks, resumed: int
) -> ExportResult:
    shards = job.dense.shards if job.dense else job.shards
    file_of = {spec.name: shard.name for shard in shards for spec in shard.specs}
    sink.wait()
    sizes = dict(ranks.all_gather((name, one["size"]) for name, one in sink.finished.items()))
    tensors = tuple(
        ExportedTensor(
            name=name,
            file=file_of[name],
            dtype=tensor.spec.dtype.name,
            shape=tensor.spec.shape,
            layout=stored[name].layout,
            pattern=stored[name].pattern,
            zeros=stored[name].zeros,
            dense_bytes=tensor.spec.nbytes,
            stored_bytes=stored[name].stored_bytes,
            blake3=stored[name].blake3,
        )
        for name, tensor in job.outputs.items()
    )
    return ExportResult(
        output=job.target,
        model=job.checkpoint.model,
        layout=job.layout,
        tensors=tensors,
        source_bytes=sum(file.size for file in job.checkpoint.files),
        dense_bytes=sum(tensor.dense_bytes for tensor in tensors),
        nbytes=sum(sizes.values()),
        shards=len(shards),
        resumed_shards=resumed,
        seconds=0.0,
    )
