"""Run tasks of lm-evaluation-harness on the model in memory, and collect the scores of samples.

The harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness) builds the prompts, runs the
model and scores its answers. The bootstrap needs the score of each sample.
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
"""Definitions of tasks that the harness lacks, in its own YAML format."""
BATCH = 8
UNLIMITED = 1 << 30
"""The length of a model without a limit, for which the harness would assume 2,048 tokens."""


@dataclass(frozen=True, slots=True)
class Part:
    """One task of a metric.

    Attributes:
        task: the harness' object.
        score: the task's metric that is used.
        groups: for each sample, the further score that it counts towards.
        named: position, among the names that the user gave, of the one that includes this task.
        indices: indices of the samples to run; None means all.
    """

    task: Any
    score: str
    groups: tuple[str | None, ...]
    named: int = 0
    indices: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HarnessMetric:
    """A metric of harness tasks; see :class:`prunectl.evaluation.metric.Metric`.

    The values of a sample are its score and ``Part.named`` of its task.

    Attributes:
        parts: the tasks by their names in the harness.
        room: most tokens that the model accepts; None leaves it to the harness.
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
        """The mean, over the names that the user gave, of the mean score of each name's samples."""
        named = np.unique(values[:, 1])
        return float(np.mean([values[values[:, 1] == one, 0].mean() for one in named]))

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Run the tasks in the harness.

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
        """Run the tasks and return the harness' results. The batch is halved while memory is full.

        Raises:
            EvaluationFailed: the harness fails, or the model's outputs are NaN.
            RuntimeError, MemoryError: memory does not suffice for a single sample.
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
        with quiet_harness(self.name, on_event), _guarded(model, self.name):
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
    """A metric's value for each sample, in order, from the first filter that has the metric."""
    having = [one for one in samples if metric in one]
    first = [one for one in having if one["filter"] == having[0]["filter"]]
    return [float(one[metric]) for one in sorted(first, key=lambda one: one["doc_id"])]


class _Rows(list[Any]):
    """A replacement for ``datasets.Dataset`` with the members that the harness uses."""

    @property
    def features(self) -> Any:
        """A mapping whose keys are the columns."""
        return self[0]


def own_task(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, object]],
    examples: Sequence[Mapping[str, object]],
) -> Any:
    """A task of the harness on rows in memory. All ``examples`` precede each row's question.

    Args:
        config: as in a task's YAML file. It must not hold text from a row: its strings are
            templates, which can run code.
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
    task.set_fewshot_seed(seed=0)  # nothing is drawn, but the harness requires a seed
    return task


def open_tokenizer(request: Request) -> Tokenizer:
    """The checkpoint's tokenizer, which must have an end-of-text token for the harness.

    Raises:
        BadTokenizer: there is no tokenizer, it does not load, or it has no end-of-text token.
    """
    tokenizer = load_tokenizer(request.checkpoint)
    if tokenizer.inner.eos_token_id is None:
        raise BadTokenizer(request.checkpoint.model, "which has no end-of-text token")
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
    """A metric of tasks from :func:`own_task`, whose prompts are checked.

    Args:
        unit: what samples are called, in the plural.
        answers: the right answer to each sample.
        record: the metric's record, without the counts of prompts that are cut.
        order: groups that come first among the further scores.
        new_tokens: most tokens that the model generates.
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
    """The installed release of the harness, for a record."""
    return importlib.metadata.version("lm_eval")


def _check_prompts(
    request: Request, tokenizer: Tokenizer, tasks: Iterable[Any], unit: str, new_tokens: int
) -> dict[str, int | None]:
    """Tokenize the prompts, and count those whose beginning the harness cuts off.

    Returns:
        Members of a record: most tokens that the model accepts, the number of prompts that lose
        only examples, and the number that lose part of the question.

    Raises:
        BadTokenizer, WrongTokenizer: the tokenizer fails, or belongs to another model.
        BadData: an option alone is too long for the model.
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
        context, option_tokens = _tokenized(tokenizer, task, doc, shots)
        contexts.append(context)
        if room is None or len(context) + option_tokens + new_tokens <= room:
            continue
        if option_tokens >= room:
            what = f"an option has more than the {room:,} tokens there are"
            raise BadData(request.settings.data[0], what)
        question_only = _tokenized(tokenizer, task, doc, 0)[0] if shots else context
        fits = len(question_only) + option_tokens + new_tokens <= room
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


def _tokenized(tokenizer: Tokenizer, task: Any, doc: Any, shots: int) -> tuple[Ids, int]:
    """The tokens of a prompt, and how many tokens of the longest option are fed to the model.

    The last token of an option is predicted, and never fed. The number is 0 for a task without
    options, where the model generates the answer.
    """
    text = task.fewshot_context(doc=doc, num_fewshot=shots)
    options = task.doc_to_choice(doc) if task.config.doc_to_choice else []
    context, *wholes = tokenizer.each([text, *(f"{text} {one}" for one in options)])
    longest = max(map(len, wholes), default=len(context) + 1)
    return np.array(context, np.int64), longest - len(context) - 1


@contextmanager
def _guarded(model: Any, metric: str) -> Iterator[None]:
    """Refuse NaN outputs, and keep the harness from tying weights.

    Where all options score NaN, the harness would choose the first. Where config.json ties the head
    to the embedding but the stored weights differ, it would overwrite the head.
    """
    import torch

    largest: list[torch.Tensor] = []

    def watch(module: Any, arguments: Any, output: Any) -> None:
        maximum = output.logits.detach().amax().float()  # NaN if any logit is NaN
        largest[:] = [torch.maximum(largest[0], maximum) if largest else maximum]

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
    """A replacement for a tqdm bar that sends progress to events."""

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


_MODULES_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")


@contextmanager
def quiet_harness(metric: str, on_event: OnEvent = ignore_events) -> Iterator[None]:
    """Import the harness. Inside the ``with`` block it prints nothing, and its progress goes to
    events.

    Raises:
        MissingLibrary: the harness is not installed.
    """
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with quiet_transformers():
        try:
            modules: list[Any] = [importlib.import_module(name) for name in _MODULES_WITH_BARS]
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
