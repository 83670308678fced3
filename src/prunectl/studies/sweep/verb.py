"""The ``sweep`` verb: a model's score along rising sparsity, and where the curve turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from prunectl._version import __version__
from prunectl.benchmarking.machine import machine_of
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.device import check_device, choose_device
from prunectl.errors import CannotWrite
from prunectl.evaluation.batches import tell_unshared
from prunectl.evaluation.loaded_model import dtype_of
from prunectl.evaluation.metric import Metric, prepare
from prunectl.events import OnEvent, ignore_events
from prunectl.loading.compressed import open_model
from prunectl.output.target import MANIFEST_NAME
from prunectl.parallel.joining import joined_ranks
from prunectl.parallel.ranks import SAME_COMMAND
from prunectl.parallel.run import Run
from prunectl.pattern import Pattern
from prunectl.plan.job import plan_prune
from prunectl.plan.prunable import prunable_tensors
from prunectl.studies.sweep.commands import command_for, named, short_names
from prunectl.studies.sweep.curves import Requested, read_curve
from prunectl.studies.sweep.measurer import LIBRARIES, Measurer
from prunectl.studies.sweep.points import Point, Points, key_of
from prunectl.studies.sweep.result import Curve, Status, SweepResult, SweptModel
from prunectl.studies.sweep.settings import SweepSettings, next_point
from prunectl.to_json import to_json
from prunectl.userdirs import cache_dir, forget_oldest

OnResult = Callable[[SweepResult], None]


def sweep(
    models: Checkpoint | str | os.PathLike[str] | Sequence[Checkpoint | str | os.PathLike[str]],
    settings: SweepSettings | None = None,
    *,
    results: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    jobs: int | None = None,
    command: str = "",
    on_event: OnEvent = ignore_events,
    on_result: OnResult | None = None,
) -> SweepResult:
    """Measure how a model's score falls with sparsity, and its essential sparsity.

    The model is loaded once and pruned in memory, from the dense copy on disk, bit for bit as
    ``prune`` would; it is reloaded only for metrics that train it. A point that fails is noted, and
    the others are measured. "The Emergence of Essential Sparsity in Large Pre-trained Models",
    arXiv 2306.03805.

    Args:
        models: one or several: open checkpoints, or what :func:`prunectl.open_checkpoint` takes.
        settings: metric, sparsities, patterns; by default perplexity, for ``demo`` on its own text.
        results: a file to which every point is appended as it is measured, and whose points are not
            measured again; None is one file in the user's cache for each checkpoint.
        use_cache: whether to use the user's cache where ``results`` is None.
        jobs: threads that read; default one per core, eight at most.
        command: recorded in the result.
        on_event: receives progress. on_result: receives the result so far, after each point.

    Raises:
        UsageError: settings that do not fit the model. SourceError: it cannot be read.
        BadData: the metric's data cannot be read. CannotWrite: ``results`` cannot be written.
    """
    started = time.perf_counter()
    run, settings = Run(jobs, on_event=on_event), settings or SweepSettings()
    check_device(settings.evaluation.device)
    if settings.pruning.calibration is not None:
        check_device(settings.pruning.calibration.device)
    given = [models] if isinstance(models, Checkpoint | str | os.PathLike) else list(models)
    opened = [one if isinstance(one, Checkpoint) else open_model(one) for one in given]
    for checkpoint in opened:
        for text in checkpoint.notes:
            run.note(text, warning=True)
        if (checkpoint.folder / MANIFEST_NAME).is_file():
            text = (
                "is already pruned: losses are measured against its current score, not against "
                "the dense model's"
            )
            run.note(f"{checkpoint.model} {text}", warning=True)
    for checkpoint in opened:
        for pattern in settings.patterns:  # impossible settings fail before anything is measured
            first = float(settings.grid.within(pattern)[0])
            plan_prune(checkpoint, settings.at(pattern, first, settings.seeds[0]))
    prepared = [(one, prepare(one, settings.evaluation, on_event)) for one in opened]
    tell_unshared(on_event, trains=any(metric.trains for _, metric in prepared))
    found = _empty(prepared, settings, command)
    names = short_names([named(one) for one in opened])
    done: list[Curve] = []
    devices: dict[str, None] = {}  # in order
    try:
        known = _points(opened, results, _agreed(found), run, use_cache=use_cache)
        for (checkpoint, metric), name, points in zip(prepared, names, known, strict=True):
            with Measurer(checkpoint, metric, settings, points, run) as measurer:
                for pattern in settings.patterns:
                    for curve in _measured(measurer, name, pattern):
                        seconds = time.perf_counter() - started
                        found = replace(found, curves=(*done, curve), seconds=seconds)
                        if measurer.devices:  # several, if the model is spread over them
                            devices[measurer.devices] = None
                            found.machine["device"] = ", ".join(devices)
                        if on_result is not None:
                            on_result(found)
                    done.append(curve)
    except KeyboardInterrupt:
        if not found.curves:
            raise
        return replace(found, interrupted=True)
    return found


def _points(
    checkpoints: Sequence[Checkpoint],
    results: str | os.PathLike[str] | None,
    agreed: object,
    run: Run,
    *,
    use_cache: bool,
) -> list[Points]:
    """The known points of each checkpoint; every process takes those of the first.

    If only some processes knew a point, the others would wait for them in its training.

    Args:
        agreed: decides the points' keys; must be the same in every process.

    Raises:
        RanksDiffer: it is not.
    """
    with joined_ranks(run.on_event) as ranks:
        ranks.check_same("sweep", agreed, hint=SAME_COMMAND)
        if not ranks.is_first:
            nothing: list[Mapping[str, Point]] = []
            return [Points.of(known) for known in ranks.broadcast(nothing)]
        if results is not None:
            found = [Points(Path(results))] * len(checkpoints)
        else:
            found = [_cached(one, run) if use_cache else Points(None) for one in checkpoints]
        ranks.broadcast([points.known for points in found])
        return found


def _agreed(found: SweepResult) -> dict[str, object]:
    """What all processes must agree on: the same points in the same order, for the same work."""
    versions = [__version__, *(version(name) for name in LIBRARIES)]
    place = choose_device(str(found.settings["device"])).type
    asked = to_json(replace(found, machine={}, command=""))
    return {"versions": versions, "device": place, "asked": asked}


def _cached(checkpoint: Checkpoint, run: Run) -> Points:
    """The points in the user's cache."""
    name = f"sweep-{key_of(checkpoint.identity())}.jsonl"
    try:
        points = Points(cache_dir() / name, is_cache=True)
    except CannotWrite as error:  # costs time, not the result
        run.note(f"points are not kept: {error.message}", warning=True)
        return Points(None)
    with suppress(OSError):
        forget_oldest(cache_dir(), name)
    return points


def _measured(measurer: Measurer, name: str, pattern: Pattern) -> Iterator[Curve]:
    """The curve after each of its points: first the grid's, then the search's."""
    grid, requested = measurer.settings.grid, [_requested(measurer, pattern, Fraction(0))]
    yield (curve := _curve(measurer, name, pattern, requested))
    if requested[0].failed or curve.essential.status is Status.UNLEARNED:
        return
    for sparsity in grid.within(pattern):
        requested.append(_requested(measurer, pattern, sparsity))
        yield (curve := _curve(measurer, name, pattern, requested))
    while grid.step is not None:
        epsilon = measurer.settings.tolerance.epsilon
        asked = {Fraction(str(one.sparsity)): point for one, point in
                 zip(requested, curve.points, strict=True)}  # fmt: skip
        free = {s: p.change is not None and p.change <= epsilon for s, p in asked.items()}
        wanted = next_point(free, grid.step)
        if wanted is None:
            return
        requested.append(_requested(measurer, pattern, wanted))
        requested.sort(key=lambda one: one.sparsity)
        yield (curve := _curve(measurer, name, pattern, requested))


def _requested(measurer: Measurer, pattern: Pattern, sparsity: Fraction) -> Requested:
    value = float(sparsity)
    return Requested(
        value, {seed: measurer.measure(pattern, value, seed) for seed in measurer.seeds}
    )


def _curve(measurer: Measurer, name: str, pattern: Pattern, requested: list[Requested]) -> Curve:
    metric, settings = measurer.metric, measurer.settings
    read = read_curve(
        requested,
        measurer.redraws,
        settings.tolerance,
        higher_is_better=metric.higher_is_better,
    )
    command = None
    if read.essential.sparsity:
        # Several requests may achieve the same sparsity, which the model may have from the start.
        at = next(
            p.requested
            for p in reversed(read.points)
            if p.sparsity == read.essential.sparsity and not p.failed
        )
        chosen = settings.at(pattern, at, settings.seeds[0])
        command = command_for(measurer.checkpoint, pattern, chosen)
    method = str(settings.pruning.method)
    if settings.pruning.refine:
        method += " + refine"
    return Curve(
        label=f"{name}, {pattern}",
        model=measurer.checkpoint.model,
        pattern=str(pattern),
        method=method,
        bound=read.bound,
        points=read.points,
        essential=read.essential,
        knee=read.knee,
        command=command,
    )


def _empty(
    prepared: Sequence[tuple[Checkpoint, Metric]], settings: SweepSettings, command: str
) -> SweepResult:
    """A result without curves."""
    metric = prepared[0][1]
    pruning, tolerance = settings.pruning, settings.tolerance
    calibration = pruning.calibration if pruning.needs_calibration else None
    return SweepResult(
        metric=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        models=tuple(_model(*one, settings) for one in prepared),
        curves=(),
        settings={
            "sparsity": settings.grid.text,
            "step": settings.step,
            "method": str(pruning.method),
            "refine": pruning.refine,
            "scope": str(pruning.scope),
            "budget": str(pruning.budget),
            "calibration": None if calibration is None else to_json(calibration),
            "include": list(pruning.include),
            "exclude": list(pruning.exclude),
            "patterns": [str(one) for one in settings.patterns],
            "epsilon": tolerance.epsilon,
            "epsilon_mode": str(tolerance.mode),
            "seeds": list(settings.seeds),
            "device": settings.evaluation.device,
            "dtype": settings.evaluation.dtype,
        },
        machine=to_json(machine_of(choose_device(settings.evaluation.device))),
        command=command,
        seconds=0.0,
    )


def _model(checkpoint: Checkpoint, metric: Metric, settings: SweepSettings) -> SweptModel:
    evaluation, pruning = settings.evaluation, settings.pruning
    dtype = dtype_of(checkpoint, metric, choose_device(evaluation.device), evaluation.dtype)
    prunable = prunable_tensors(checkpoint, pruning.include, pruning.exclude)
    return SweptModel(
        model=checkpoint.model,
        revision=checkpoint.commit,
        parameters=sum(tensor.spec.numel for tensor in checkpoint.tensors),
        prunable=sum(spec.numel for spec in prunable.values()),
        samples=metric.samples,
        record=metric.record,
        dtype=str(dtype).removeprefix("torch."),
    )
