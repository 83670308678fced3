"""The streamed pass over the weights: exact facts, and histograms in a temporary file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import FileChanged, NaNWeights
from prunectl.geometry import Rows
from prunectl.magnitude.codes import code_format
from prunectl.magnitude.histogram import Histogram, Spans
from prunectl.magnitude.measure import (
    Measurement,
    PatternMeasure,
    PatternStats,
    TensorFacts,
    TensorMeasure,
)
from prunectl.magnitude.refine import Refiner
from prunectl.magnitude.select import quantile_bins
from prunectl.magnitude.store import HistogramStore
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import Scratch, pieces
from prunectl.pattern import NM
from prunectl.plan.prunable import input_axis, misfit_reason, prunable_tensors

Patterns = Mapping[str, tuple[NM, ...]]
"""N:M patterns to measure, by tensor name."""


@dataclass
class Measured:
    """Measurements of a checkpoint's weights so far.

    Attributes:
        facts: by tensor name.
        histograms: by tensor name; those of 32 and 64 bits are exact only where refined.
        patterns: by (tensor name, pattern as text).
        dirty: whether there is more here than in the cache.
    """

    facts: dict[str, TensorFacts] = field(default_factory=dict)
    histograms: HistogramStore = field(default_factory=HistogramStore)
    patterns: dict[tuple[str, str], PatternStats] = field(default_factory=dict)
    dirty: bool = False

    def refine(self, name: str, fine: Histogram) -> None:
        """Replace bins of a tensor by finer ones."""
        self.histograms.replace(name, self.histograms.get(name).refined(fine))
        self.dirty = True

    def close(self) -> None:
        """Delete the temporary file of the histograms."""
        self.histograms.close()


def measure(
    checkpoint: Checkpoint,
    names: Iterable[str],
    patterns: Patterns,
    axes: Mapping[str, int],
    *,
    into: Measured,
    run: Run,
    phase: str = "measuring weights",
) -> None:
    """Measure tensors in one pass: facts and histograms of ``names``, losses of ``patterns``.

    Args:
        names: float tensors whose facts and histograms are wanted.
        patterns: N:M patterns by tensor; their input axis must be divisible by M.
        axes: input axis of every tensor in ``patterns``.
        into: receives the results, in file order.
        run: its device counts the codes of large tensors of 8 and 16 bits.
    """
    wanted = set(names)
    tensors = [t for t in checkpoint.tensors if t.name in wanted or patterns.get(t.name)]
    if not tensors:
        return
    into.dirty = True
    with checkpoint.open() as reader:

        def work(
            tensor: StoredTensor, scratch: Scratch
        ) -> tuple[Measurement | None, list[tuple[str, PatternStats]]]:
            todo = patterns.get(tensor.name, ())
            rows = Rows.of(tensor.spec.shape, axes.get(tensor.name))
            losses = [(p, PatternMeasure(tensor.spec.dtype, p)) for p in todo]
            whole = TensorMeasure(tensor.spec.dtype) if tensor.name in wanted else None
            unit = rows.tile(math.lcm(*(p.m for p in todo))) if todo else 1
            uint = code_format(tensor.spec.dtype).uint
            # Sums of floats, such as losses and histograms of wide types, are not exact on a
            # device.
            there = scratch.device_for(tensor) if whole and uint.itemsize <= 2 else None
            for _, block in scratch.blocks(reader, tensor, unit, large=there is not None):
                codes = block.view(uint)
                if whole is not None:
                    there.run(codes, whole.update) if there else whole.update(codes)
                for part in pieces(codes, unit) if losses else ():
                    for pattern, loss in losses:
                        loss.update(rows.groups(part, pattern.m))
            found = whole.finish() if whole is not None else None
            return found, [(str(pattern), loss.finish()) for pattern, loss in losses]

        results = run.shared_tensors(phase, tensors, work)
        for tensor, (found, losses) in results:
            if found is not None:
                into.facts[tensor.name] = found.facts
                into.histograms.append(tensor.name, found.histogram)
            for pattern, loss in losses:
                into.patterns[tensor.name, pattern] = loss


def refine(
    checkpoint: Checkpoint,
    requests: Mapping[str, Spans],
    measured: Measured,
    run: Run,
) -> Iterator[tuple[str, Histogram]]:
    """Subdivide histogram bins of tensors by reading the tensors again; yields in file order.

    Args:
        requests: bins by tensor name.
        measured: receives the finer bins.

    Raises:
        FileChanged: a bin no longer holds as many weights as were counted.
    """
    tensors = [t for t in checkpoint.tensors if requests.get(t.name)]
    with checkpoint.open() as reader:

        def work(tensor: StoredTensor, scratch: Scratch) -> Histogram:
            refiner = Refiner(tensor.spec.dtype, requests[tensor.name])
            uint = code_format(tensor.spec.dtype).uint
            for _, block in scratch.blocks(reader, tensor):
                refiner.update(block.view(uint))
            return refiner.finish()

        for tensor, fine in run.shared_tensors("refining thresholds", tensors, work):
            coarse = measured.histograms.get(tensor.name).within(requests[tensor.name])
            try:
                if coarse.counts.sum() != fine.counts.sum():
                    raise ValueError("a bin is empty now")
                measured.refine(tensor.name, fine)
            except ValueError:
                raise FileChanged(
                    checkpoint.folder / tensor.file,
                    "changed since it was measured",
                    hint="repeat the command with --no-cache",
                ) from None
            yield tensor.name, fine


def unresolved_bins(
    histogram: Histogram, quantiles: Sequence[float], values: Iterable[float]
) -> Spans:
    """Wide bins that quantiles, or counts of weights up to ``values``, fall into.

    The bin that
    starts at 0 is among them: its smallest magnitudes are not zeros.
    """
    if not histogram.numel or not histogram.log2_widths.any():
        return []
    spans = set(quantile_bins(histogram, quantiles))
    codes = [1, *(histogram.format.floor_code(value) + 1 for value in values)]
    spans.update(histogram.bins_split_by(np.array(codes, np.uint64)))
    return sorted(spans)


# --- what is not measured yet ---------------------------------------------------------------------


def measure_missing(
    checkpoint: Checkpoint,
    measured: Measured,
    run: Run,
    *,
    names: Sequence[str],
    patterns: Sequence[NM],
    pattern_names: Sequence[str] | None = None,
) -> None:
    """Measure in one pass what ``measured`` lacks: facts of ``names``, losses of ``patterns``."""
    roles = checkpoint.roles.roles
    specs = {tensor.name: tensor.spec for tensor in checkpoint.tensors}
    todo: dict[str, tuple[NM, ...]] = {}
    axes: dict[str, int] = {}
    for name in prunable_tensors(checkpoint, fp8=True) if pattern_names is None else pattern_names:
        axis = input_axis(specs[name], roles[name])
        missing = tuple(
            pattern
            for pattern in dict.fromkeys(patterns)
            if (name, str(pattern)) not in measured.patterns
            and not misfit_reason(specs[name], roles[name], pattern)
        )
        if missing and axis is not None:
            todo[name], axes[name] = missing, axis
    measure(
        checkpoint,
        [name for name in names if name not in measured.facts],
        todo,
        axes,
        into=measured,
        run=run,
    )


def refuse_nans(measured: Measured, names: Sequence[str]) -> None:
    """Raise NaNWeights for the first tensor of ``names`` that holds NaN."""
    for name in names:
        if measured.facts[name].nans:
            raise NaNWeights(name, measured.facts[name].nans)
