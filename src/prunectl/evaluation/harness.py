"""Tasks of lm-evaluation-harness, on the model in memory.

The harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness) builds the prompts, runs the
model and scores its answers; its scores are taken sample by sample, so that they can be drawn
again. Of a task that has several metrics, the first of ``acc_norm``, ``acc`` and ``exact_match`` is
taken, else the first that is a mean over samples and better if higher; of several filters, the
first. Tasks that were named count alike; of a group, samples count alike.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.checkpoint.model_kind import Kind
from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.errors import first_line
from prunectl.data.tokens import Tokenizer, load_tokenizer
from prunectl.device import is_out_of_memory
from prunectl.errors import InvalidOption, MissingLibrary
from prunectl.evaluation import prompts
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch
from prunectl.evaluation.harness_tasks import (
    Part,
    check_names,
    described,
    load,
    part_of,
    task_folder,
    values_of,
)
from prunectl.evaluation.metric import Head, Request, Score
from prunectl.evaluation.metrics import suggested
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values


BATCH = 8


@dataclass(frozen=True, slots=True, eq=False)
class Harness:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is one of the harness: (its score,
    place of the task that was named)."""

    parts: Mapping[str, Part]
    loaded: Mapping[str, Any]
    tokenizer: Tokenizer
    room: int | None
    batch_size: int
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = "harness"
    unit: str = "samples"
    higher_is_better: bool = True
    trains: bool = False
    head: Head | None = None

    @property
    def samples(self) -> int:
        return sum(one.samples for one in self.parts.values())

    def tolerates(self, parameter: str) -> bool:
        return False

    def statistic(self, values: Values) -> float:
        """The mean of the named tasks' means, of those that there are samples of."""
        named = np.unique(values[:, 1])
        return float(np.mean([values[values[:, 1] == one, 0].mean() for one in named]))

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Have the harness run its tasks.

        Raises:
            EvaluationFailed: the harness fails, or a score is NaN.
        """
        results = self._run(loaded.model, on_event)
        rows: list[tuple[float, float]] = []
        parts = {}
        for name, part in self.parts.items():
            found = values_of(results["samples"][name], part.metric)
            if bad := sum(map(math.isnan, found)):
                raise EvaluationFailed(self.name, f"{name}: the scores of {bad} samples are NaN")
            rows += [(value, part.named) for value in found]
            parts[name] = float(np.mean(found))
        values = np.array(rows, np.float64)
        shown = parts if 2 <= len(parts) <= prompts.MOST_GROUPS else {}
        return Score(self.statistic(values), values, shown)

    def _run(self, model: Any, on_event: OnEvent) -> dict[str, Any]:
        """The harness's results; fewer samples at once where memory is full."""
        size = self.batch_size
        while True:
            try:
                return self._run_once(model, size, on_event)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            size //= 2
            on_event(Note(f"memory is full: {size} samples at once from here on", warning=True))

    def _run_once(self, model: Any, size: int, on_event: OnEvent) -> dict[str, Any]:
        chosen = {name: list(p.indices) for name, p in self.parts.items() if p.indices is not None}
        with quiet_harness(on_event), _numbers_only(model):
            from lm_eval.evaluator import evaluate
            from lm_eval.models.huggingface import HFLM

            try:
                found: dict[str, Any] = evaluate(
                    lm=HFLM(
                        pretrained=model,
                        tokenizer=self.tokenizer.inner,
                        batch_size=size,
                        max_length=self.room,
                    ),
                    task_dict=dict(self.loaded),
                    samples=chosen or None,
                    bootstrap_iters=0,
                )
            except (ValueError, AssertionError, KeyError, TypeError) as error:
                raise EvaluationFailed(
                    self.name, f"lm-evaluation-harness: {first_line(error)}"
                ) from None
        return found


@contextmanager
def _numbers_only(model: Any) -> Iterator[None]:
    """The harness takes the first of options that are all NaN, so outputs are watched here.

    Raises:
        EvaluationFailed: inside of it, the model gave one that is NaN.
    """
    import torch

    largest: list[torch.Tensor] = []

    def watch(module: Any, arguments: Any, output: Any) -> None:
        most = output.logits.detach().amax().float()  # NaN, if there is one among them
        largest[:] = [torch.maximum(largest[0], most) if largest else most]

    hook = model.register_forward_hook(watch)
    try:
        yield
    finally:
        hook.remove()
    if largest and bool(largest[0].isnan()):
        raise EvaluationFailed("harness", "the model's outputs are NaN")


def prepare(request: Request) -> Harness:
    """Load the tasks and their data.

    Raises:
        MissingLibrary: lm-evaluation-harness is not installed.
        MetricMismatch: the model does not generate text, or a task has no score that fits.
        InvalidOption: no task, or one that is not known.
        BadData, HubUnreachable, AccessDenied: a task's data cannot be read.
    """
    settings = request.settings
    names = [one.strip() for one in settings.metric.partition(":")[2].split(",") if one.strip()]
    if not names:
        raise InvalidOption(
            f"--metric {settings.metric} names no task",
            hint="for example --metric harness:arc_easy",
        )
    if request.model_kind.kind not in (Kind.CAUSAL_LM, Kind.SEQ2SEQ):
        raise MetricMismatch(
            settings.metric,
            request.checkpoint.model,
            f"tasks of the harness are for models that write text, and this one is of kind "
            f"{request.model_kind.kind}",
            hint=suggested(request.model_kind.kind),
        )
    folder = task_folder(request)
    with quiet_harness():
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise MissingLibrary(
                "lm-eval", f"--metric {settings.metric}", extra="harness"
            ) from None
        manager = TaskManager(include_path=str(folder) if folder else None)
        check_names(names, manager.all_tasks)
        loaded = {name: load(manager, name) for name in names}
    parts: dict[str, Part] = {}
    for place, found in enumerate(loaded.values()):
        for key, task in found["tasks"].items():
            if key in parts:
                raise InvalidOption(f"--metric {settings.metric}: task '{key}' is in it twice")
            parts[key] = part_of(request, key, task, place)
    merged = {
        kind: {key: one for found in loaded.values() for key, one in found[kind].items()}
        for kind in ("tasks", "groups", "group_map")
    }
    tokenizer = load_tokenizer(request.checkpoint)
    room = prompts.room(request, tokenizer)
    record = {
        "metric": settings.metric,
        "harness": importlib.metadata.version("lm_eval"),
        "tasks": {key: described(part) for key, part in parts.items()},
        "sequence_length": room,
        "seed": settings.seed,
    }
    return Harness(
        parts,
        merged,
        tokenizer,
        room,
        settings.batch_size or BATCH,
        record,
        tuple(request.notes),
    )


_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
_PHASE = "harness"


class _Bar:
    """As much of a bar of tqdm as the harness uses."""

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        on_event: OnEvent,
        **options: Any,
    ) -> None:
        self._iterable, self._on_event, self._open = iterable, on_event, True
        if total is None:
            total = len(iterable) if hasattr(iterable, "__len__") else 0  # type: ignore[arg-type]
        on_event(PhaseStarted(_PHASE, total, "requests"))

    def __iter__(self) -> Iterator[Any]:
        for one in self._iterable or ():
            yield one
            self.update(1)
        self.close()

    def update(self, count: int = 1) -> None:
        self._on_event(Advanced(_PHASE, count))

    def close(self) -> None:
        if self._open:
            self._on_event(PhaseDone(_PHASE))
        self._open = False


@contextmanager
def quiet_harness(on_event: OnEvent = ignore_events) -> Iterator[None]:
    """Inside of it, the harness shows nothing, and ``on_event`` hears how far it is."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with quiet_transformers():
        modules = _modules()
        before = [module.tqdm for module in modules]
        for module in modules:
            module.tqdm = lambda *rest, **options: _Bar(*rest, **options, on_event=on_event)
        try:
            yield
        finally:
            for module, bar in zip(modules, before, strict=True):
                module.tqdm = bar
            logger.setLevel(level)


def _modules() -> list[Any]:
    try:
        return [importlib.import_module(name) for name in _WITH_BARS]
    except ImportError:  # whoever needs it will say so
        return []
