"""Scores one checkpoint, pruned in memory, at one sparsity after another, each at most once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from prunectl._version import __version__
from prunectl.calibration.samples import gather_samples
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor, torch_dtype
from prunectl.device import choose_device, is_out_of_memory
from prunectl.errors import CalibrationFailed, CannotWrite
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.loaded_model import LoadedModel, dtype_of, open_loaded_model
from prunectl.evaluation.metric import Metric
from prunectl.events import ignore_events
from prunectl.measure.cache import load_measured
from prunectl.measure.measured import Measured
from prunectl.parallel.run import Run
from prunectl.pattern import Pattern
from prunectl.plan.job import plan_job
from prunectl.plan.plan import TensorPlan
from prunectl.plan.prunable import prunable_tensors
from prunectl.plan.settings import Calibration, PruneSettings
from prunectl.pruning.resolve import resolved
from prunectl.pruning.verb import DEFAULT_SHARD_SIZE
from prunectl.studies.sweep.curves import Redraws
from prunectl.studies.sweep.points import Point, Points, key_of
from prunectl.studies.sweep.settings import SweepSettings
from prunectl.tensorspec import TensorSpec
from prunectl.to_json import to_json
from prunectl.transform.edits import Copy, Edit, Replace
from prunectl.transform.writing import edited

PHASE = "pruning in memory"


@dataclass(frozen=True, slots=True)
class Zeros:
    """The zeros of a model after pruning.

    Attributes:
        zeros, weights: of the prunable weights. parameters: all numbers in the files.
    """

    zeros: int
    weights: int
    parameters: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def overall(self) -> float:
        return self.zeros / self.parameters if self.parameters else 0.0


class PrunedModel:
    """Puts into a loaded model what ``prune`` would write, bit for bit.

    Only tensors whose edit has changed are read and put in again: masks of rising sparsity are
    nested, and N:M budgets add one matrix after the other.

    Args:
        prunable: the tensors that are pruned.
        measured: what is known of the weights; receives more, and is not closed. None is the cache.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        reader: TensorReader,
        prunable: Collection[TensorSpec],
        measured: Measured | None = None,
    ) -> None:
        self.loaded, self._prunable, self._measured = loaded, prunable, measured
        self._reader = reader
        self._edits: dict[str, Edit] = {}
        self._zeros: dict[str, int] = {}

    def apply(self, settings: PruneSettings | None, run: Run) -> Zeros:
        """Prune the model in memory as ``prune`` would; None makes it dense again."""
        checkpoint = self.loaded.checkpoint
        if settings is None:
            self._put({}, {}, run)
            return self._zeros_now()
        with tempfile.TemporaryDirectory(prefix="prunectl-sweep-") as folder:
            job = plan_job(checkpoint, Path(folder) / "out", settings, DEFAULT_SHARD_SIZE, "")
            with resolved(job, run, use_cache=True, measured=self._measured) as (job, resolution):
                self._put(resolution.edits, job.planned, run)
        return self._zeros_now()

    def _zeros_now(self) -> Zeros:
        return Zeros(
            sum(self._count(spec.name) for spec in self._prunable),
            sum(spec.numel for spec in self._prunable),
            sum(tensor.spec.numel for tensor in self.loaded.checkpoint.tensors),
        )

    def _put(self, edits: Mapping[str, Edit], planned: Mapping[str, TensorPlan], run: Run) -> None:
        """Apply ``edits`` to the model; tensors without one become dense again."""
        stored = self.loaded.checkpoint.by_name
        wanted = {name: edits.get(name, Copy()) for name in {**self._edits, **edits}}
        changed = {
            name: edit
            for name, edit in wanted.items()
            if edit != self._edits.get(name, Copy()) or isinstance(edit, Replace)
        }
        with run.phase(PHASE, sum(stored[name].spec.nbytes for name in changed)) as advance:
            for name, edit in changed.items():
                axis = planned[name].input_axis if name in planned else None
                values = edited(stored[name], edit, axis, self._reader, prunable=True)
                tensor = as_tensor(values, stored[name])
                self.loaded.put(name, tensor)
                self._edits[name] = edit
                self._zeros[name] = tensor.numel() - int(tensor.count_nonzero())
                advance(stored[name].spec.nbytes, name)

    def _count(self, name: str) -> int:
        if name not in self._zeros:
            stored = read_tensor(self._reader, self.loaded.checkpoint.by_name[name])
            self._zeros[name] = stored.numel() - int(stored.count_nonzero())
        return self._zeros[name]


def as_tensor(data: object, stored: StoredTensor) -> torch.Tensor:
    """View the bytes of a whole tensor as a torch tensor of its dtype and shape."""
    flat = torch.frombuffer(data, dtype=torch_dtype(stored.spec))
    return flat.reshape(stored.spec.shape)


_DECIDING = ("config", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "spiece",
             "preprocessor_config", "processor_config", "modules", "modeling", "generation_config",
             "tekken")  # fmt: skip
_DECIDING_ENDS = (".py", ".model", ".spm", ".bpe", ".tiktoken", ".vocab")
"""How the names of files begin or end from which models and their inputs are built."""
LIBRARIES = ("torch", "transformers")
"""The libraries that compute; two versions may round differently."""


class Measurer:
    """Scores of a checkpoint by a metric; the model is loaded when the first score needs it.

    Attributes:
        redraws: the bootstrap of its scores.
        devices: where the model was, as :attr:`LoadedModel.devices`; '' before it is loaded.

    A context manager: leaving it drops the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        metric: Metric,
        settings: SweepSettings,
        points: Points,
        run: Run,
    ) -> None:
        self.checkpoint, self.metric, self.settings = checkpoint, metric, settings
        self._points, self._run = points, run
        self.redraws = Redraws(metric.statistic, settings.evaluation.seed)
        self._source = checkpoint.identity() | {"beside": _side_digests(checkpoint)}
        self._stack = ExitStack()
        self._pruned: PrunedModel | None = None
        self._measured: Measured | None = None
        self.devices = ""
        self._samples: dict[Calibration, dict[str, Any]] = {}

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *error: object) -> None:
        self._drop()
        if self._measured is not None:
            self._measured.close()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that change a score: only the first without training and calibration."""
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
        """The score of a model that is pruned as ``wanted``; None is the dense model.

        Args:
            sparsity: for messages.
            then: receives the model as it was scored, trained where the metric trains, before the
                point is stored; not called for a point that is known from before.
            again: measure the point even if it is known.
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
        self.checkpoint.check_unchanged()  # the point's key names its source
        if not point.failed:  # another attempt may succeed
            self._keep(key, point)
        return point

    def _keep(self, key: str, point: Point) -> None:
        try:
            self._points.add(key, point)
        except CannotWrite as error:
            if not self._points.is_cache:
                raise
            self._run.note(f"points are not cached: {error.message}", warning=True)

    def _known(self, key: str) -> Point | None:
        """A point that was measured before and whose score follows from its samples."""
        point = self._points.get(key)
        if point is None or point.values is None or point.score is None:
            return None
        try:
            with np.errstate(all="ignore"):
                score = self.metric.statistic(point.values)
        except (ValueError, IndexError, ArithmeticError):  # columns of another metric
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
        pruned = self._pruned_model(seed)
        zeros = pruned.apply(wanted, self._run)
        try:
            score = self.metric.score(pruned.loaded, seed=seed, on_event=self._run.on_event)
            if then is not None:
                then(pruned.loaded)
        finally:
            if self.metric.trains:
                self._drop()
        seconds = time.perf_counter() - started
        return Point(zeros.sparsity, zeros.overall, score.value, score.values, score.parts, seconds)

    def _failed(self, why: str, sparsity: float, started: float) -> Point:
        words = f"dense: {why}" if not sparsity else f"sparsity {sparsity:g}: {why}"
        self._run.note(f"{self.checkpoint.model}, {words}; this point is left out", warning=True)
        self._drop()
        seconds = time.perf_counter() - started
        return Point(sparsity, 0.0, None, None, {}, seconds, why or "failed")

    def _pruned_model(self, seed: int) -> PrunedModel:
        if self._pruned is None:
            chosen = self.settings.evaluation
            loaded, reader = self._stack.enter_context(
                open_loaded_model(
                    self.checkpoint, self.metric,
                    device=chosen.device, dtype=chosen.dtype, seed=seed,
                )
            )  # fmt: skip
            for note in () if self.devices else loaded.notes:  # the first time it is loaded
                self._run.on_event(note)
            self.devices = loaded.devices
            pruning = self.settings.pruning
            prunable = prunable_tensors(self.checkpoint, pruning.include, pruning.exclude)
            # Weights are measured once, even where the cache does not work.
            self._measured = self._measured or load_measured(self.checkpoint) or Measured()
            self._pruned = PrunedModel(loaded, reader, prunable.values(), self._measured)
        return self._pruned

    def _drop(self) -> None:
        """Drop the model, because training has changed it or no score needs it any more."""
        self._pruned = None
        self._stack.close()

    def _facts(self, wanted: PruneSettings | None, seed: int) -> dict[str, object]:
        """Everything that decides a point."""
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
        """How a point is pruned, including the contents of its mask or calibration samples."""
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


def _side_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Digests of the side files that decide what the model computes."""
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
