"""The ``evaluate`` verb: a metric's data are read, the model is loaded, and scored."""

from __future__ import annotations

import os
import time

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.device import check_device
from prunectl.errors import InvalidOption
from prunectl.evaluation.batches import tell_unshared
from prunectl.evaluation.loaded_model import LoadedModel, open_loaded_model
from prunectl.evaluation.metric import Metric, Score, prepare
from prunectl.evaluation.resampling import Interval, interval, redrawn
from prunectl.evaluation.result import Evaluation
from prunectl.evaluation.settings import EvalSettings
from prunectl.events import OnEvent, ignore_events
from prunectl.loading.compressed import open_model
from prunectl.loading.weights import count_zeros
from prunectl.parallel.run import Run
from prunectl.runtime.executions import DENSE, check_execution, check_place


def evaluate(
    model: Checkpoint | str | os.PathLike[str],
    settings: EvalSettings | None = None,
    *,
    execution: str = DENSE,
    on_event: OnEvent = ignore_events,
) -> Evaluation:
    """Score a dense, pruned or compressed checkpoint.

    Args:
        model: an open checkpoint, or what :func:`prunectl.open_checkpoint` takes.
        settings: metric and data; by default perplexity, for which ``demo`` and its outputs have a
            text of their own.
        execution: ``dense``; ``compressed``: weights stay compressed in memory while the model is
            scored; ``auto``: where that is not slower on this machine.
        on_event: receives progress.

    Raises:
        UsageError: a metric that is not known or does not fit the model, no data, or an execution
            that does not fit the device or the metric.
        SourceError: the checkpoint cannot be read.
        BadData: the data cannot be read. EvaluationFailed: the outputs are not numbers.
    """
    settings = settings or EvalSettings()
    check_device(settings.device)
    check_execution(execution)
    started = time.perf_counter()
    checkpoint = Run(on_event=on_event).opened(model, open_model)
    metric = prepare(checkpoint, settings, on_event)
    tell_unshared(on_event, trains=metric.trains)
    with open_loaded_model(
        checkpoint, metric, device=settings.device, dtype=settings.dtype, seed=settings.seed
    ) as (loaded, reader):
        for note in loaded.notes:
            on_event(note)
        zeros, weights = count_zeros(checkpoint, loaded.prunable, reader)
        if execution != DENSE:
            _compress(loaded, metric, execution)
        score = metric.score(loaded, seed=settings.seed, on_event=on_event)
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        return Evaluation(
            model=checkpoint.model,
            revision=checkpoint.commit,
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            score=score.value,
            interval=interval_of(metric, score, settings.seed),
            parts=score.parts,
            samples=metric.samples,
            unit=metric.unit,
            zeros=zeros,
            weights=weights,
            disk_bytes=sum(file.size for file in checkpoint.files),
            record=metric.record,
            device=loaded.devices,
            dtype=dtype,
            seconds=time.perf_counter() - started,
        )


def _compress(loaded: LoadedModel, metric: Metric, execution: str) -> None:
    from prunectl.runtime.models import compress_model

    if metric.trains:
        raise InvalidOption(
            f"--metric {metric.name} trains the model, and compressed weights are for inference",
            hint="leave --execution out",
        )
    check_place(execution, loaded.devices)
    compress_model(loaded.model, execution)


def interval_of(metric: Metric, score: Score, seed: int) -> Interval | None:
    """How sure a score is."""
    return interval(redrawn(score.values, metric.statistic, seed))
