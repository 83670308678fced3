"""The ``trace`` verb: one checkpoint after another, in the memory of one."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import hub_id, local_path
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.hub.snapshot import drop_commit, is_in_cache
from prunectl.loading.compressed import open_model
from prunectl.measure.cache import measured_of
from prunectl.measure.model_stats import ModelStats, model_stats
from prunectl.output.target import MANIFEST_NAME
from prunectl.parallel.run import Run
from prunectl.plan.prunable import require_prunable
from prunectl.studies.trace.changes import LEAST, Trend, abrupt, trend
from prunectl.studies.trace.errors import DifferentCheckpoints
from prunectl.studies.trace.result import Series, Trace, TracePoint, measures
from prunectl.studies.trace.settings import TraceSettings
from prunectl.studies.trace.steps import Course, course
from prunectl.tensorspec import TensorSpec

_SURE = 0.05
"""The p-value below which a trend is one."""
_TREND = 5
"""Checkpoints that can reach it: of four in perfect order it is 0.08."""
_TURN = 0.02
"""How far beyond both ends, as a share of the larger, a value is worth a word."""
_TOLD = "near zero 0.01*std"

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
    """Follow near-zero weights, quantiles and what pruning would take over a training.

    Args:
        models: folders, weights files or Hub ids with revisions of one training run, in any order;
            a folder that holds ``checkpoint-*`` folders stands for those.
        open_one: opens one of them; by default as :func:`prunectl.open_checkpoint`.
        drop: delete what was downloaded for a revision once it is measured; revisions that were in
            the cache before stay there. cache_dir: the Hub cache that ``open_one`` uses.
        use_cache: reuse, and keep, measurements of these very checkpoints.
        jobs: threads; default one per core, eight at most.
        command: recorded. on_point: receives each checkpoint as it is measured.

    Raises:
        TooFewCheckpoints, SameStep: see there.
        DifferentCheckpoints: one has other prunable tensors than the first.
        SourceError, UsageError, NaNWeights: one of them cannot be used.
    """
    started = time.perf_counter()
    settings = settings or TraceSettings()
    found = course([os.fspath(model) for model in models])
    _tell(found, on_event)
    specs: dict[str, TensorSpec] = {}
    points: list[TracePoint] = []
    for named in found.checkpoints:
        cached = drop and _is_cached(named.model, cache_dir)
        checkpoint = open_one(named.model)
        for text in checkpoint.notes:
            on_event(Note(text, warning=True))
        own = require_prunable(checkpoint, settings.include, settings.exclude)
        if points:
            _check_same(points[0].model, specs, named.model, own)
        specs = specs or own
        _tell_of(named.model, checkpoint, own, points[0].model if points else "", specs, on_event)
        stats = _measured(checkpoint, list(own), settings, use_cache, jobs, on_event)
        label = f"step {named.step}" if found.known else named.model
        points.append(TracePoint(named.model, label, checkpoint.commit, named.step, stats))
        if on_point is not None:
            on_point(points[-1])
        if drop and not cached and checkpoint.commit:
            drop_commit(checkpoint.commit, Path(cache_dir) if cache_dir else None)
    for at, point in enumerate(points):
        twin = next((one.model for one in points[:at] if one.stats == point.stats), None)
        if twin is not None:
            on_event(Note(f"{twin} and {point.model} hold the same weights", warning=True))
    series = tuple(_series(points))
    result = Trace(
        points=tuple(points),
        steps_known=found.known,
        tensors=len(specs),
        weights=points[0].stats.weights,
        series=series,
        findings=(),
        command=command,
        seconds=time.perf_counter() - started,
    )
    return replace(result, findings=tuple(_findings(result)))


def _tell(found: Course, on_event: OnEvent) -> None:
    if not found.known:
        text = "not every checkpoint tells its training step: they are counted as they were given"
        on_event(Note(text, warning=True))
    elif found.sorted:
        on_event(Note("the checkpoints are taken in the order of their training steps"))


def _is_cached(model: str, cache_dir: str | os.PathLike[str] | None) -> bool:
    if local_path(model) is not None:
        return True
    return is_in_cache(*hub_id(model, None), Path(cache_dir) if cache_dir else None)


def _tell_of(
    model: str,
    checkpoint: Checkpoint,
    own: Mapping[str, TensorSpec],
    first: str,
    specs: Mapping[str, TensorSpec],
    on_event: OnEvent,
) -> None:
    """Say what changes magnitudes and is no training."""
    if (checkpoint.folder / MANIFEST_NAME).is_file():
        on_event(Note(f"{model} is pruned: its zeros are not of the training", warning=True))
    other = next((name for name in own if own[name].dtype != specs[name].dtype), None)
    if other is not None:
        kinds = f"{own[other].dtype.label}, and {specs[other].dtype.label} in {first}"
        text = f"{model} is stored as {kinds}: rounding alone moves weights to and from zero"
        on_event(Note(text, warning=True))


def _check_same(
    first: str, specs: Mapping[str, TensorSpec], model: str, own: Mapping[str, TensorSpec]
) -> None:
    for name in [*specs, *own]:
        if name not in own or name not in specs:
            where = "it" if name not in own else "the other"
            raise DifferentCheckpoints(first, model, f"{where} has no prunable '{name}'")
        shapes = [list(one[name].shape) for one in (own, specs)]
        if shapes[0] != shapes[1]:
            why = f"'{name}' is {shapes[0]} in it, and {shapes[1]} there"
            raise DifferentCheckpoints(first, model, why)


def _measured(
    checkpoint: Checkpoint,
    names: list[str],
    settings: TraceSettings,
    use_cache: bool,
    jobs: int | None,
    on_event: OnEvent,
) -> ModelStats:
    with measured_of(checkpoint, use_cache=use_cache) as measured:
        return model_stats(
            checkpoint,
            measured,
            names,
            sparsities=settings.sparsities,
            patterns=settings.patterns,
            run=Run(jobs, on_event=on_event),
        )


def _series(points: Sequence[TracePoint]) -> Iterator[Series]:
    steps = [point.step for point in points]
    for name, value in measures(points[0].stats).items():
        values = tuple(value(point.stats) for point in points)
        yield Series(name, values, abrupt(steps, values), trend(steps, values))


def _findings(result: Trace) -> Iterator[str]:
    """Sentences: an abrupt sparsification, and whether later checkpoints are more prunable."""
    by_name = {one.name: one for one in result.series}
    near = by_name[_TOLD]
    if near.change is not None:
        change = near.change
        times = "" if change.times is None else f", {change.times:.1f} times as fast as elsewhere"
        where = "step" if result.steps_known else "checkpoint"
        yield (
            f"Abrupt: between {where} {change.start:,} and {change.end:,} the weights within 1% of "
            f"the standard deviation go from {change.before:.3%} to {change.after:.3%}{times}."
        )
    elif len(result.points) >= LEAST:
        yield "Weights near zero change nowhere abruptly."
    else:
        yield f"With fewer than {LEAST} checkpoints, an abrupt change is not looked for."
    for series in result.series:
        if series.name.startswith("lost") and all(map(math.isfinite, series.values)):
            yield f"{_prunability(series, [point.label for point in result.points])}."


def _prunability(series: Series, labels: Sequence[str]) -> str:
    """``at 0.4`` is a sparsity, ``by 2:4`` a pattern."""
    kind, _, target = series.name.removeprefix("lost ").partition(" ")
    what = f"{100 * float(target):.4g}% sparsity" if kind == "at" else target
    course = (
        f"{what} takes {series.values[0]:.2%} of the squared norm at first, "
        f"{_turn(series.values, labels)}and {series.values[-1]:.2%} at last"
    )
    found: Trend | None = series.trend
    if found is None:
        return f"{course}: it stays the same"
    if len(series.values) < _TREND:
        return f"{course}: fewer than {_TREND} checkpoints cannot show a trend"
    test = f"Kendall's tau {found.tau:.2f}, p = {found.p:.2g}"
    if found.p >= _SURE:
        return f"{course}: no trend ({test})"
    later = "more" if found.tau < 0 else "less"
    return f"{course}: later checkpoints are {later} prunable ({test})"


def _turn(values: Sequence[float], labels: Sequence[str]) -> str:
    """The least or the largest value, where it stands out between the first and the last."""
    ends = sorted((values[0], values[-1]))
    low, high = min(values), max(values)
    beyond = {low: ends[0] - low, high: high - ends[1]}
    found = max(beyond, key=lambda value: beyond[value])
    if beyond[found] <= _TURN * ends[1]:
        return ""
    return f"{found:.2%} at {labels[values.index(found)]} "
