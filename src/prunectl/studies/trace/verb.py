"""The ``trace`` verb: one checkpoint of a training after another, in the memory of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import hub_id, local_path
from prunectl.events import OnEvent, ignore_events
from prunectl.hub.snapshot import drop_commit, is_in_cache
from prunectl.loading.compressed import open_model
from prunectl.measure.cache import measured_of
from prunectl.measure.model_stats import model_stats
from prunectl.output.target import MANIFEST_NAME
from prunectl.parallel.run import Run
from prunectl.plan.prunable import require_prunable
from prunectl.studies.errors import DifferentCheckpoints
from prunectl.studies.settings import TraceSettings
from prunectl.studies.trace.result import Trace, TracePoint, check_libraries, findings, series_of
from prunectl.studies.trace.steps import course
from prunectl.tensorspec import TensorSpec

Open = Callable[[str], Checkpoint]


def trace(
    models: Sequence[str | os.PathLike[str]],
    settings: TraceSettings | None = None,
    *,
    open_one: Open = open_model,
    drop: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    jobs: int | None = None,
    command: str = "",
    on_event: OnEvent = ignore_events,
    on_point: Callable[[TracePoint], None] | None = None,
) -> Trace:
    """Follow near-zero weights, quantiles and losses by pruning over a training.

    Args:
        models: folders, weights files or Hub ids with revisions of one training run, in any order;
            a folder that holds ``checkpoint-*`` folders stands for all of them.
        open_one: opens one of them; by default as :func:`prunectl.open_checkpoint`.
        drop: delete the download of each revision once it is measured; revisions that were in the
            cache before stay there. cache_dir: the Hub cache that ``open_one`` uses.
        use_cache: reuse, and keep, measurements of these very checkpoints.
        jobs: threads; default one per core, eight at most.
        command: recorded in the result. on_point: receives each checkpoint as it is measured.

    Raises:
        TooFewCheckpoints: fewer than two. SameStep: two are of one step.
        DifferentCheckpoints: the prunable tensors of one differ from those of the first.
        SourceError, UsageError, NaNWeights: one of them cannot be used.
        MissingLibrary: a library that finds changes and trends is not installed.
    """
    check_libraries()
    started = time.perf_counter()
    run, settings = Run(jobs, on_event=on_event), settings or TraceSettings()
    found = course([os.fspath(model) for model in models])
    if not found.known:
        text = "not every checkpoint tells its training step: they are counted as they were given"
        run.note(text, warning=True)
    elif found.sorted:
        run.note("the checkpoints are taken in the order of their training steps")
    specs: dict[str, TensorSpec] = {}
    points: list[TracePoint] = []
    for named in found.checkpoints:
        cached = drop and _is_cached(named.model, cache_dir)
        checkpoint = run.opened(named.model, open_one)
        own = require_prunable(checkpoint, settings.include, settings.exclude)
        if points:
            _check_same(points[0].model, specs, named.model, own)
        specs = specs or own
        _warn(named.model, checkpoint, own, points[0].model if points else "", specs, run)
        with measured_of(checkpoint, use_cache=use_cache) as measured:
            stats = model_stats(
                checkpoint,
                measured,
                list(own),
                run,
                sparsities=settings.sparsities,
                patterns=settings.patterns,
            )
        label = f"step {named.step}" if found.known else named.model
        points.append(TracePoint(named.model, label, checkpoint.commit, named.step, stats))
        if on_point is not None:
            on_point(points[-1])
        if drop and not cached and checkpoint.commit:
            drop_commit(checkpoint.commit, Path(cache_dir) if cache_dir else None)
    for at, point in enumerate(points):
        twin = next((one.model for one in points[:at] if one.stats == point.stats), None)
        if twin is not None:
            run.note(f"{twin} and {point.model} hold the same weights", warning=True)
    result = Trace(
        points=tuple(points),
        steps_known=found.known,
        tensors=len(specs),
        weights=points[0].stats.weights,
        series=tuple(series_of(points)),
        findings=(),
        command=command,
        seconds=time.perf_counter() - started,
    )
    return replace(result, findings=tuple(findings(result)))


def _is_cached(model: str, cache_dir: str | os.PathLike[str] | None) -> bool:
    if local_path(model) is not None:
        return True
    return is_in_cache(*hub_id(model, None), Path(cache_dir) if cache_dir else None)


def _warn(
    model: str,
    checkpoint: Checkpoint,
    own: Mapping[str, TensorSpec],
    first: str,
    specs: Mapping[str, TensorSpec],
    run: Run,
) -> None:
    """Warn of what changes magnitudes other than training."""
    if (checkpoint.folder / MANIFEST_NAME).is_file():
        run.note(f"{model} is pruned: its zeros are not of the training", warning=True)
    other = next((name for name in own if own[name].dtype != specs[name].dtype), None)
    if other is not None:
        kinds = f"{own[other].dtype.label}, and {specs[other].dtype.label} in {first}"
        text = f"{model} is stored as {kinds}: rounding alone moves weights to and from zero"
        run.note(text, warning=True)


def _check_same(
    first: str, specs: Mapping[str, TensorSpec], model: str, own: Mapping[str, TensorSpec]
) -> None:
    for name in [*specs, *own]:
        if name not in own or name not in specs:
            lacking = model if name not in own else first
            raise DifferentCheckpoints(first, model, f"{lacking} has no prunable '{name}'")
        shapes = [list(one[name].shape) for one in (own, specs)]
        if shapes[0] != shapes[1]:
            why = f"'{name}' has shape {shapes[0]}, not {shapes[1]}"
            raise DifferentCheckpoints(first, model, why)
