"""The ``analyze`` verb: measure what is missing, then summarize."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from prunectl.analysis.result import SPARSITIES, Analysis
from prunectl.analysis.summary import summarize
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.device import check_device
from prunectl.events import OnEvent, ignore_events
from prunectl.measure.cache import measured_of
from prunectl.measure.measured import measure_missing, refuse_nans
from prunectl.measure.thresholds import find_thresholds
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.run import Run
from prunectl.pattern import NM, distinct_nms, pruned_count
from prunectl.plan.prunable import prunable_tensors, refuse_quantized

DEFAULT_PATTERNS = (NM(2, 4),)


def analyze(
    model: Checkpoint | str | os.PathLike[str],
    *,
    patterns: Sequence[NM | str] = DEFAULT_PATTERNS,
    use_cache: bool = True,
    jobs: int | None = None,
    device: str = "auto",
    ranks: Ranks = ALONE,
    on_event: OnEvent = ignore_events,
) -> Analysis:
    """Measure a checkpoint's weights exactly, in one streamed pass (fp32 and fp64: two and four).

    Args:
        model: an open checkpoint, or what :func:`open_checkpoint` takes.
        patterns: N:M patterns to measure on the prunable tensors, as such or as text (``2:4``).
        use_cache: reuse and store measurements of this exact source.
        jobs: threads; default one per core, eight at most.
        device: ``cuda`` or ``cuda:N`` counts the weights of 16-bit types there, with the same
            results; ``auto`` is the CPU.
        ranks: the processes that share the work; :func:`prunectl.joined_ranks`.
        on_event: receives progress.

    Raises:
        SourceError: the checkpoint cannot be used.
        InvalidPattern: a text that is not an N:M pattern.
        InvalidOption: ``jobs`` out of range, or no such device.
        NaNWeights: a prunable tensor holds NaN.
    """
    run = Run(jobs, ranks, on_event=on_event)
    check_device(device)
    chosen = distinct_nms(patterns)
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    _refuse_packed(checkpoint)
    ranks.check_source(checkpoint, "analyze", [str(pattern) for pattern in chosen], use_cache)
    started = time.perf_counter()
    with measured_of(checkpoint, use_cache=use_cache, ranks=ranks) as measured:
        prunable = list(prunable_tensors(checkpoint, fp8=True))
        floats = [tensor.name for tensor in checkpoint.tensors if tensor.spec.dtype.is_float]
        with run.on_device(device) as there:
            measure_missing(checkpoint, measured, there, names=floats, patterns=chosen)
        refuse_nans(measured, prunable)
        weights = sum(measured.facts[name].numel for name in prunable)
        thresholds = find_thresholds(
            checkpoint,
            measured,
            prunable,
            [pruned_count(sparsity, weights) for sparsity in SPARSITIES] if weights else [],
            run,
            with_statistics=True,
        )
        fresh = measured.dirty
        result = summarize(checkpoint, measured, prunable, thresholds, chosen)
    return replace(result, from_cache=not fresh, seconds=time.perf_counter() - started)


def _refuse_packed(checkpoint: Checkpoint) -> None:
    """Refuse quantized weights other than fp8: their numbers are not magnitudes."""
    if not any(t.spec.dtype.is_float and t.spec.dtype.bits == 8 for t in checkpoint.tensors):
        refuse_quantized(checkpoint, "use the checkpoint from before quantization")
