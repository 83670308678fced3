"""Scores one checkpoint at one sparsity after another, each at most once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from prunectl._version import __version__
from prunectl.calibration.samples import gather_samples
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.device import choose_device, is_out_of_memory
from prunectl.errors import CalibrationFailed, CannotWrite
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.loaded_model import LoadedModel, dtype_of, open_loaded_model
from prunectl.evaluation.metric import Metric
from prunectl.events import Note, OnEvent, ignore_events
from prunectl.measure.cache import load_measured
from prunectl.measure.measured import Measured
from prunectl.pattern import Pattern
from prunectl.plan.prunable import prunable_tensors
from prunectl.plan.settings import Calibration, PruneSettings
from prunectl.studies.sweep.curves import Redraws
from prunectl.studies.sweep.points import Point, Points, key_of
from prunectl.studies.sweep.pruned import PrunedModel
from prunectl.studies.sweep.settings import SweepSettings
from prunectl.to_json import to_json

_DECIDING = ("config", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "spiece",
             "preprocessor_config", "processor_config", "modules", "modeling", "generation_config",
             "tekken")  # fmt: skip
_DECIDING_ENDS = (".py", ".model", ".spm", ".bpe", ".tiktoken", ".vocab")
"""What the names of files begin or end with that models and their inputs are built from."""
LIBRARIES = ("torch", "transformers")
"""Those that compute; two versions may round in two ways."""


class Measurer:
    """A checkpoint and a metric; the model is loaded when the first score needs it.

    Attributes:
        redraws: how sure its scores are.
        devices: where the model was, as :attr:`LoadedModel.devices`; '' before it is loaded.

    A context manager: leaving it drops the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        metric: Metric,
        settings: SweepSettings,
        points: Points,
        jobs: int | None,
        on_event: OnEvent,
    ) -> None:
        self.checkpoint, self.metric, self.settings = checkpoint, metric, settings
        self._points, self._jobs, self._on_event = points, jobs, on_event
        self.redraws = Redraws(metric.statistic, settings.evaluation.seed)
        self._source = checkpoint.identity() | {"beside": _beside(checkpoint)}
        self._stack = ExitStack()
        self._pruned: PrunedModel | None = None
        self._measured: Measured | None = None
        self._told, self.devices = False, ""
        self._samples: dict[Calibration, dict[str, Any]] = {}

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *error: object) -> None:
        self._drop()
        if self._measured is not None:
            self._measured.close()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that change anything: without training and calibration one is as good as all."""
        if self.metric.trains or self.settings.pruning.needs_calibration:
            return self.settings.seeds
        return self.settings.seeds[:1]

    def measure(self, pattern: Pattern, sparsity: float, seed: int) -> Point:
        """The score at a sparsity; 0 is the dense model."""
        wanted = self.settings.at(pattern, sparsity, seed) if sparsity else None
        return self.measure_as(wanted, sparsity, seed)

    def measure_as(
        self,
        wanted: PruneSettings | None,
        sparsity: float,
        seed: int,
        *,
        then: Callable[[LoadedModel], None] | None = None,
        again: bool = False,
    ) -> Point:
        """The score of a model that is pruned in any way; None is the dense one.

        Args:
            sparsity: what it is called by.
            then: gets the model as it was scored, trained where the metric trains, before the point
                is kept; not where the point is known from before.
            again: measure it even if it is known.
        """
        key = key_of(self._facts(wanted, seed))
        known = None if again else self._known(key)
        if known is not None:
            return known
        started = time.perf_counter()
        try:
            point = self._score(wanted, seed, started, then)
        except (EvaluationFailed, CalibrationFailed) as error:
            point = self._failed(error.message, sparsity, started)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            point = self._failed("out of memory", sparsity, started)
        self.checkpoint.check_unchanged()  # what the point's key says it is of
        if not point.failed:  # what failed may do another time
            self._keep(key, point)
        return point

    def _keep(self, key: str, point: Point) -> None:
        try:
            self._points.add(key, point)
        except CannotWrite as error:
            if not self._points.is_cache:
                raise
            self._on_event(Note(f"points are not kept: {error.message}", warning=True))

    def _known(self, key: str) -> Point | None:
        """A point that was measured before; one that does not agree with itself is none."""
        point = self._points.get(key)
        if point is None or point.values is None or point.score is None:
            return None
        try:
            with np.errstate(all="ignore"):
                score = self.metric.statistic(point.values)
        except (ValueError, IndexError, ArithmeticError):  # columns of something else
            return None
        agrees = len(point.values) == self.metric.samples and np.isclose(
            score, point.score, rtol=1e-9, atol=1e-12, equal_nan=True
        )
        return point if agrees else None

    def _score(
        self,
        wanted: PruneSettings | None,
        seed: int,
        started: float,
        then: Callable[[LoadedModel], None] | None,
    ) -> Point:
        pruned = self._subject(seed)
        zeros = pruned.apply(wanted, jobs=self._jobs, on_event=self._on_event)
        try:
            score = self.metric.score(pruned.loaded, seed=seed, on_event=self._on_event)
            if then is not None:
                then(pruned.loaded)
        finally:
            if self.metric.trains:
                self._drop()
        seconds = time.perf_counter() - started
        return Point(zeros.sparsity, zeros.overall, score.value, score.values, score.parts, seconds)

    def _failed(self, why: str, sparsity: float, started: float) -> Point:
        words = f"dense: {why}" if not sparsity else f"sparsity {sparsity:g}: {why}"
        self._on_event(Note(f"{self.checkpoint.model}, {words}; this point is left out", True))
        self._drop()
        seconds = time.perf_counter() - started
        return Point(sparsity, 0.0, None, None, {}, seconds, why or "failed")

    def _subject(self, seed: int) -> PrunedModel:
        if self._pruned is None:
            chosen = self.settings.evaluation
            loaded, reader = self._stack.enter_context(
                open_loaded_model(
                    self.checkpoint, self.metric,
                    device=chosen.device, dtype=chosen.dtype, seed=seed,
                )
            )  # fmt: skip
            self.devices = loaded.devices
            for note in () if self._told else loaded.notes:
                self._on_event(note)
            self._told = True
            pruning = self.settings.pruning
            prunable = prunable_tensors(self.checkpoint, pruning.include, pruning.exclude)
            # Weights are measured once, also where the cache does not work.
            self._measured = self._measured or load_measured(self.checkpoint) or Measured()
            self._pruned = PrunedModel(loaded, reader, prunable.values(), self._measured)
        return self._pruned

    def _drop(self) -> None:
        """Let go of the model, which training has changed, or which is not needed any more."""
        self._pruned = None
        self._stack.close()

    def _facts(self, wanted: PruneSettings | None, seed: int) -> dict[str, object]:
        """All that decides a point."""
        chosen = self.settings.evaluation
        place = choose_device(chosen.device)
        uses_seed = self.metric.trains or (wanted is not None and wanted.needs_calibration)
        return {
            "version": __version__,
            "libraries": {name: version(name) for name in LIBRARIES},
            "source": self._source,
            "metric": self.metric.record,
            "device": place.type,
            "dtype": str(dtype_of(self.checkpoint, self.metric, place, chosen.dtype)),
            "seed": seed if uses_seed else None,
            "pruning": None if wanted is None else self._pruning_facts(wanted),
        }

    def _pruning_facts(self, wanted: PruneSettings) -> dict[str, object]:
        """How a point is pruned, with what calibration reads, and not only what that is called."""
        facts: dict[str, object] = to_json(asdict(wanted)) | {"pattern": str(wanted.pattern)}
        if wanted.mask is not None:
            facts["mask"] = blake3(wanted.mask.read_bytes()).hexdigest()
        calibration = wanted.calibration if wanted.needs_calibration else None
        if calibration is None:
            return facts | {"calibration": None}
        if calibration not in self._samples:
            found = gather_samples(self.checkpoint, calibration, ignore_events)
            self._samples[calibration] = found.record
        return facts | {"calibration_samples": self._samples[calibration]}


def _beside(checkpoint: Checkpoint) -> dict[str, str]:
    """Digests of the files beside the weights that decide what the model computes."""
    names = [
        one
        for one in checkpoint.side_files
        if Path(one).name.startswith(_DECIDING) or one.endswith(_DECIDING_ENDS)
    ]
    found = {}
    for name in names:
        with suppress(OSError):
            found[name] = blake3((checkpoint.folder / name).read_bytes()).hexdigest()
    return found
