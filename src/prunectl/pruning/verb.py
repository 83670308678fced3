"""The ``prune`` verb: plan, resolve, then stream every tensor into a new folder."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.device import check_device
from prunectl.errors import (
    BadMaskFile,
    DamagedWork,
    FileChanged,
    NaNWeights,
    SourceChanged,
)
from prunectl.events import OnEvent, ignore_events
from prunectl.output.folder import OutputFolder
from prunectl.output.target import check_nobody_writes, clean_up_calibration
from prunectl.parallel.folder import shared_folder
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.run import Run
from prunectl.plan.job import Job, arguments, device_of, fingerprint, prepare, protected
from prunectl.plan.settings import PruneSettings
from prunectl.pruning.metadata import write_metadata
from prunectl.pruning.outcome import build_result, check_written
from prunectl.pruning.resolve import resolved
from prunectl.pruning.result import PruneResult
from prunectl.pruning.writing import write_weights
from prunectl.transform.edits import Resolution

DEFAULT_SHARD_SIZE = 5 * 10**9


def prune(
    model: Checkpoint | str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: PruneSettings,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    force: bool = False,
    use_cache: bool = True,
    jobs: int | None = None,
    device: str = "auto",
    ranks: Ranks = ALONE,
    command: str | None = None,
    on_event: OnEvent = ignore_events,
) -> PruneResult:
    """Write a pruned copy of a checkpoint as dense safetensors, with side files and manifest.

    Weights of lowest magnitude become +0.0, exactly as many as asked for; every other weight keeps
    its bits ("The Emergence of Essential Sparsity in Large Pre-trained Models", arXiv 2306.03805).
    With ``settings.mask`` a file of masks chooses the weights, whatever their magnitude. Calibrated
    methods run samples through the model, block by block, to choose the weights and to change the
    kept ones.
    The output is complete or absent; an interrupted run is resumed by the same call.

    Args:
        model: an open checkpoint, or what :func:`open_checkpoint` takes.
        output: folder to write; must be absent or empty, unless ``force``.
        settings: what to prune.
        max_shard_size: bytes of tensors in one file; a number, or text such as ``5GB``.
        force: replace an existing checkpoint at ``output``, once everything is written.
        use_cache: use and store measurements of this source.
        jobs: threads; default one per core, eight at most.
        device: ``cuda`` or ``cuda:N`` compares magnitudes there, with the same results; ``auto`` is
            the CPU. Calibration has a device of its own.
        ranks: the processes that share the work; :func:`prunectl.joined_ranks`.
        command: recorded in the model card; must hold no secrets.
        on_event: receives progress.

    Raises:
        UsageError, SourceError, OutputError: see :mod:`prunectl.errors`; nothing is written then.
    """
    started = time.perf_counter()
    run = Run(jobs, ranks, on_event=on_event)
    check_device(device)
    if settings.calibration is not None:
        device_of(settings.calibration)
    checkpoint = run.opened(model, open_checkpoint)
    job = prepare(checkpoint, Path(output), settings, max_shard_size, force, command or "")
    if ranks.is_first:
        check_nobody_writes(job.target)
    for text in job.plan.notes:
        run.note(text)
    ranks.check_source(checkpoint, "prune", arguments(job), use_cache)
    with (
        run.on_device(device, tells_unused=not settings.needs_calibration) as run,
        resolved(job, run, use_cache=use_cache) as (job, resolution),
    ):
        result = _write(job, resolution, run, force=force)
    if ranks.is_first:
        clean_up_calibration(job.target.resolve())
    for text in result.warnings:
        run.note(text, warning=True)
    return replace(result, seconds=time.perf_counter() - started)


def _write(job: Job, resolution: Resolution, run: Run, *, force: bool) -> PruneResult:
    """Write the output, complete or not at all."""
    checkpoint = job.checkpoint
    folder = shared_folder(
        run,
        job.target,
        fingerprint(job),
        force=force,
        protected=protected(checkpoint, job.settings),
    )
    with folder as sink:
        try:
            written, resumed = write_weights(job, resolution, sink, run)
            checkpoint.check_unchanged()
            check_written(job.target, checkpoint, resolution, job.outputs, written)
        except (NaNWeights, FileChanged, SourceChanged, BadMaskFile, DamagedWork) as error:
            sink.discard()  # a resumed run would meet the same error
            if isinstance(error, NaNWeights) and job.masks is not None:
                error.hint = "the checkpoint is damaged, or the masks are for another one"
            raise
        result = build_result(
            job.target, checkpoint, job.plan, resolution, job.outputs, job.layout, written, resumed
        )
        if isinstance(sink, OutputFolder):
            warnings = write_metadata(
                sink, checkpoint, result, arguments(job), job.layout, job.command
            )
            sink.commit()
            result = replace(result, warnings=(*result.warnings, *warnings))
    return result
