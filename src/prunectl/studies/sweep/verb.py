"""The ``sweep`` verb: a model's score at rising sparsity, and its essential sparsity."""

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

    The model is loaded once, and pruned in memory from its files, bit for bit as by ``prune``. Only
    metrics that train the model reload it. A point that fails is recorded, and the other points are
    measured. Source: "The Emergence of Essential Sparsity in Large Pre-trained Models",
    arXiv 2306.03805.

    Args:
        models: one or several open checkpoints, or arguments of :func:`prunectl.open_checkpoint`.
        settings: metric, sparsities and patterns; the default is perplexity, for which only
            ``demo`` and its outputs include text.
        results: a file to which each measured point is appended, and whose points are not measured
            again; None is a file in the user's cache for each checkpoint.
        use_cache: whether to use the user's cache where ``results`` is None.
        jobs: number of threads that read; default one per core, eight at most.
        command: recorded in the result.
        on_event: receives progress.
        on_result: receives the result so far, after each point.

    Raises:
        UsageError: settings that do not fit the model.
        SourceError: a model cannot be read.
        BadData: the metric's data cannot be read.
        CannotWrite: ``results`` cannot be written.
    """
    started = time.perf_counter()
    run, settings = Run(jobs, on_event=on_event), settings or SweepSettings()
    check_device(settings.evaluation.device)
    if settings.pruning.calibration is not None:
        check_device(settings.pruning.calibration.device)
    given = [models] if isinstance(models, Checkpoint | str | os.PathLike) else list(models)
    opened = [run.opened(one, open_model) for one in given]
    for checkpoint in opened:
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
    found = _empty_result(prepared, settings, command)
    names = short_names([named(one) for one in opened])
    done: list[Curve] = []
    devices: dict[str, None] = {}  # an ordered set
    try:
        known = _points(opened, results, _agreed(found), run, use_cache=use_cache)
        for (checkpoint, metric), name, points in zip(prepared, names, known, strict=True):
            with Measurer(checkpoint, metric, settings, points, run) as measurer:
                for pattern in settings.patterns:
                    for curve in _growing_curve(measurer, name, pattern):
                        seconds = time.perf_counter() - started
                        found = replace(found, curves=(*done, curve), seconds=seconds)
                        if measurer.devices:  # may differ between models that are spread over GPUs
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
    """The known points of each checkpoint, broadcast by rank 0.

    If only some ranks knew a point, the others would measure it, and wait for them in training.
    """
    with joined_ranks(run.on_event) as ranks:
        ranks.check_same("sweep", agreed, hint=SAME_COMMAND)
        if not ranks.is_first:
            nothing: list[Mapping[str, Point]] = []
            return [Points.of(known) for known in ranks.broadcast(nothing)]
        if results is not None:
            found = [Points(Path(results))] * len(checkpoints)
        else:
            found = [_cached_points(one, run) if use_cache else Points(None) for one in checkpoints]
        ranks.broadcast([points.known for points in found])
        return found


def _agreed(found: SweepResult) -> dict[str, object]:
    """What must be equal on all ranks, so that they measure the same points in the same order."""
    versions = [__version__, *(version(name) for name in LIBRARIES)]
    device = choose_device(str(found.settings["device"])).type
    asked = to_json(replace(found, machine={}, command=""))
    return {"versions": versions, "device": device, "asked": asked}


def _cached_points(checkpoint: Checkpoint, run: Run) -> Points:
    """The points in the user's cache; no known points where it cannot be written."""
    name = f"sweep-{key_of(checkpoint.identity())}.jsonl"
    try:
        points = Points(cache_dir() / name, is_cache=True)
    except CannotWrite as error:  # a sweep without a cache is slower, not wrong
        run.note(f"points are not cached: {error.message}", warning=True)
        return Points(None)
    with suppress(OSError):
        forget_oldest(cache_dir(), name)
    return points


def _growing_curve(measurer: Measurer, name: str, pattern: Pattern) -> Iterator[Curve]:
    """Yield the curve after each new point: the dense model, the grid, then the search."""
    grid, requested = measurer.settings.grid, [_measure(measurer, pattern, Fraction(0))]
    yield (curve := _curve(measurer, name, pattern, requested))
    if requested[0].failed or curve.essential.status is Status.UNLEARNED:
        return
    for sparsity in grid.within(pattern):
        requested.append(_measure(measurer, pattern, sparsity))
        yield (curve := _curve(measurer, name, pattern, requested))
    while grid.step is not None:
        epsilon = measurer.settings.tolerance.epsilon
        points = {Fraction(str(one.sparsity)): point for one, point in
                  zip(requested, curve.points, strict=True)}  # fmt: skip
        free = {s: p.change is not None and p.change <= epsilon for s, p in points.items()}
        wanted = next_point(free, grid.step)
        if wanted is None:
            return
        requested.append(_measure(measurer, pattern, wanted))
        requested.sort(key=lambda one: one.sparsity)
        yield (curve := _curve(measurer, name, pattern, requested))


def _measure(measurer: Measurer, pattern: Pattern, sparsity: Fraction) -> Requested:
    """Measure a requested sparsity with every seed."""
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
        # Several requests may reach the same sparsity, if the model has it already.
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
    if settings.pruning.reconstruct:
        method += " + reconstruct"
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


def _empty_result(
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
        models=tuple(_swept_model(*one, settings) for one in prepared),
        curves=(),
        settings={
            "sparsity": settings.grid.text,
            "step": settings.step,
            "method": str(pruning.method),
            "refine": pruning.refine,
            "reconstruct": pruning.reconstruct,
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


def _swept_model(checkpoint: Checkpoint, metric: Metric, settings: SweepSettings) -> SweptModel:
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
