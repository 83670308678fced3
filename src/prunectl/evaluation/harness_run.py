"""Run tasks of lm-evaluation-harness on the model in memory, and take their scores.

The harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness) builds the prompts, runs the
model and scores its answers. The scores are taken sample by sample, so that the bootstrap can draw
from them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.errors import BadData, BadTokenizer, first_line
from prunectl.data.tokens import Ids, Tokenizer, load_tokenizer
from prunectl.device import is_out_of_memory
from prunectl.errors import InvalidOption, MissingLibrary
from prunectl.evaluation import prompts
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.metric import MAJORITY, Head, Request, Score, majority
from prunectl.events import Advanced, Note, OnEvent, PhaseDone, PhaseStarted, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

OWN_TASKS = Path(__file__).parent / "own_tasks"
"""Tasks that the harness does not have, as it describes tasks: YAML files."""
BATCH = 8
UNLIMITED = 1 << 30
"""Stands for the length of a model that takes any number of tokens; the harness would say 2,048."""


@dataclass(frozen=True, slots=True)
class Part:
    """One task of a metric.

    Attributes:
        task: the harness' object.
        score: the task's metric that is taken.
        groups: for each sample, the further score that it counts towards.
        named: position of what the user named among all that were named.
        indices: the samples that are run; None means all.
    """

    task: Any
    score: str
    groups: tuple[str | None, ...]
    named: int = 0
    indices: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HarnessMetric:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is one of the harness: (its score,
    position of the named task).

    Attributes:
        parts: by the harness' name of the task.
        room: tokens that the model takes at once; None leaves it to the harness.
        order: groups that come first among the further scores.
        more: further scores that are known before the model runs.
    """

    name: str
    unit: str
    parts: Mapping[str, Part]
    tokenizer: Tokenizer
    room: int | None
    batch_size: int
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    more: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool = True
    trains: bool = False
    head: Head | None = None

    @property
    def samples(self) -> int:
        return sum(len(part.groups) for part in self.parts.values())

    def tolerates(self, parameter: str) -> bool:
        return False

    def statistic(self, values: Values) -> float:
        """The mean over named tasks of the mean over each one's samples."""
        named = np.unique(values[:, 1])
        return float(np.mean([values[values[:, 1] == one, 0].mean() for one in named]))

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Have the harness run the tasks.

        Raises:
            EvaluationFailed: the harness fails, or outputs or scores are NaN.
        """
        samples = self.run(loaded.model, on_event)["samples"]
        rows: list[tuple[float, float]] = []
        for name, part in self.parts.items():
            found = values_of(samples[name], part.score)
            if bad := sum(map(math.isnan, found)):
                raise EvaluationFailed(self.name, f"{name}: the scores of {bad} samples are NaN")
            rows += [(value, part.named) for value in found]
        values = np.array(rows, np.float64)
        groups = list(chain.from_iterable(part.groups for part in self.parts.values()))
        shares = prompts.shares(groups, values[:, 0], self.order)
        return Score(self.statistic(values), values, {**shares, **self.more})

    def run(self, model: Any, on_event: OnEvent = ignore_events) -> dict[str, Any]:
        """The harness' results; fewer samples at once where memory is full.

        Raises:
            EvaluationFailed: the harness fails, or the model's outputs are NaN.
            RuntimeError, MemoryError: there is no memory for a single sample.
        """
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
        with quiet_harness(self.name, on_event), _watched(model, self.name):
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
                    task_dict={"tasks": {name: part.task for name, part in self.parts.items()}},
                    samples=chosen or None,
                    bootstrap_iters=0,
                )
            except (ValueError, AssertionError, KeyError, TypeError) as error:
                raise EvaluationFailed(
                    self.name, f"lm-evaluation-harness: {first_line(error)}"
                ) from None
        return found


def values_of(samples: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """A metric's value for each sample, in their order, by the first filter that has it."""
    having = [one for one in samples if metric in one]
    first = [one for one in having if one["filter"] == having[0]["filter"]]
    return [float(one[metric]) for one in sorted(first, key=lambda one: one["doc_id"])]


class _Rows(list[Any]):
    """As much of a ``datasets.Dataset`` as the harness uses."""

    @property
    def features(self) -> Any:
        """Something whose keys are the columns."""
        return self[0]


def own_task(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, object]],
    examples: Sequence[Mapping[str, object]],
) -> Any:
    """A task of the harness on rows in memory; all ``examples`` stand before each row's question.

    Args:
        config: as in a task's YAML file. No text of a row may be in it: it holds templates, which
            can run code.
    """
    from lm_eval.api.task import ConfigurableTask

    table = _Rows(rows)
    task = ConfigurableTask(
        config={
            **config,
            "custom_dataset": lambda **options: {"test": table},
            "test_split": "test",
            "num_fewshot": len(examples),
            "fewshot_config": {"sampler": "first_n", "samples": list(examples)},
        }
    )
    task.set_fewshot_seed(seed=0)  # nothing is drawn, but the harness wants one
    return task


def open_tokenizer(request: Request) -> Tokenizer:
    """The checkpoint's tokenizer, as the harness needs it.

    Raises:
        BadTokenizer: there is none, it does not load, or no token of it ends a text.
    """
    tokenizer = load_tokenizer(request.checkpoint)
    if tokenizer.inner.eos_token_id is None:
        raise BadTokenizer(request.checkpoint.model, "which names no token that ends a text")
    return tokenizer


def own_metric(
    request: Request,
    unit: str,
    parts: Mapping[str, Part],
    answers: Sequence[Hashable],
    record: Mapping[str, Any],
    *,
    order: tuple[str, ...] = (),
    new_tokens: int = 0,
) -> HarnessMetric:
    """A metric of own tasks, whose prompts were checked.

    Args:
        unit: what a sample is, in the plural. answers: the right one of each.
        record: what fixes the score, except how prompts fit the model.
        new_tokens: tokens that the model writes.

    Raises:
        BadTokenizer, WrongTokenizer, BadData, InvalidOption: see :func:`_check_prompts`.
    """
    tokenizer = open_tokenizer(request)
    tasks = [part.task for part in parts.values()]
    counts = _check_prompts(request, tokenizer, tasks, unit, new_tokens)
    return HarnessMetric(
        request.settings.metric,
        unit,
        parts,
        tokenizer,
        counts["sequence_length"] or UNLIMITED,
        request.settings.batch_size or BATCH,
        {"metric": request.settings.metric, "harness": harness_version(), **record, **counts},
        tuple(request.notes),
        order,
        {MAJORITY: majority(answers)},
    )


def harness_version() -> str:
    """The installed release, for a record."""
    return importlib.metadata.version("lm_eval")


def _check_prompts(
    request: Request, tokenizer: Tokenizer, tasks: Iterable[Any], unit: str, new_tokens: int
) -> dict[str, int | None]:
    """Tokenize the prompts, and count those from which the harness cuts the beginning.

    Returns:
        for a record: tokens that the model takes, prompts that lose examples only, and prompts that
        lose part of the question.

    Raises:
        BadTokenizer, WrongTokenizer: the tokenizer fails, or is another model's.
        BadData: an option alone is too long.
        InvalidOption: the answer leaves no room for the question.
    """
    room, shots = prompts.room(request, tokenizer), request.settings.shots
    if room is not None and room <= new_tokens:
        raise InvalidOption(
            f"--max-new-tokens {new_tokens} leaves no room for a question in {room:,} tokens",
            hint=f"fewer, such as --max-new-tokens {max(1, room // 2)}",
        )
    contexts, fewer, cut = [], 0, 0
    pairs = [(task, doc) for task in tasks for doc in task.eval_docs]
    for task, doc in pairs:
        context, end = _encoded(tokenizer, task, doc, shots)
        contexts.append(context)
        if room is None or len(context) + end + new_tokens <= room:
            continue
        if end >= room:
            what = f"an option has more than the {room:,} tokens there are"
            raise BadData(request.settings.data[0], what)
        alone = _encoded(tokenizer, task, doc, 0)[0] if shots else context
        fits = len(alone) + end + new_tokens <= room
        fewer, cut = fewer + fits, cut + (not fits)
    if fewer:
        request.notes.append(f"{fewer:,} {unit} lose examples: the model takes {room:,} tokens")
    if cut:
        request.notes.append(f"{cut:,} {unit} lose their beginning: the model takes {room:,}")
    tokenizer.check(contexts, request.model_kind.vocabulary)
    return {
        "sequence_length": room,
        f"{unit}_with_fewer_examples": fewer,
        f"{unit}_cut": cut,
    }


def _encoded(tokenizer: Tokenizer, task: Any, doc: Any, shots: int) -> tuple[Ids, int]:
    """The tokens of a prompt, and how many of the longest option's the model is fed: not the last.

    Where the model writes the answer itself there are no options.
    """
    text = task.fewshot_context(doc=doc, num_fewshot=shots)
    options = task.doc_to_choice(doc) if task.config.doc_to_choice else []
    context, *wholes = tokenizer.each([text, *(f"{text} {one}" for one in options)])
    longest = max(map(len, wholes), default=len(context) + 1)
    return np.array(context, np.int64), longest - len(context) - 1


@contextmanager
def _watched(model: Any, metric: str) -> Iterator[None]:
    """Refuse NaN outputs, and keep the weights as they are.

    The harness takes the first of options that are all NaN, and ties a head again that differs from
    the embedding although config.json says that they are one.

    Raises:
        EvaluationFailed: inside the block, the model put out NaN.
    """
    import torch

    largest: list[torch.Tensor] = []

    def watch(module: Any, arguments: Any, output: Any) -> None:
        most = output.logits.detach().amax().float()  # NaN, if there is one among them
        largest[:] = [torch.maximum(largest[0], most) if largest else most]

    hook = model.register_forward_hook(watch)
    model.tie_weights = lambda *rest, **options: None
    try:
        yield
    finally:
        hook.remove()
        del model.tie_weights
    if largest and bool(largest[0].isnan()):
        raise EvaluationFailed(metric, "the model's outputs are NaN")


class _Bar:
    """As much of a tqdm bar as the harness uses."""

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        phase: str,
        on_event: OnEvent,
        **options: Any,
    ) -> None:
        self._iterable, self._phase, self._on_event = iterable, phase, on_event
        self._open = True
        if total is None:
            total = len(iterable) if hasattr(iterable, "__len__") else 0  # type: ignore[arg-type]
        on_event(PhaseStarted(phase, total, "requests"))

    def __iter__(self) -> Iterator[Any]:
        for one in self._iterable or ():
            yield one
            self.update(1)
        self.close()

    def update(self, count: int = 1) -> None:
        self._on_event(Advanced(self._phase, count))

    def close(self) -> None:
        if self._open:
            self._on_event(PhaseDone(self._phase))
        self._open = False


_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")


@contextmanager
def quiet_harness(metric: str, on_event: OnEvent = ignore_events) -> Iterator[None]:
    """Import the harness; inside the block it prints nothing, and its progress goes to events.

    Raises:
        MissingLibrary: it is not installed.
    """
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with quiet_transformers():
        try:
            modules: list[Any] = [importlib.import_module(name) for name in _WITH_BARS]
        except ImportError:
            logger.setLevel(level)
            raise MissingLibrary("lm-eval", f"--metric {metric}", extra="harness") from None
        before = [module.tqdm for module in modules]
        phase = metric.partition(":")[0]
        for module in modules:
            module.tqdm = lambda *rest, **options: _Bar(
                *rest, **options, phase=phase, on_event=on_event
            )
        try:
            yield
        finally:
            for module, bar in zip(modules, before, strict=True):
                module.tqdm = bar
            logger.setLevel(level)
