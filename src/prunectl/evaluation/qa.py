"""Question answering: the model is fine-tuned to mark the answer in a text, then scored.

A question and its text go into one sequence; a text that is too long, into several windows that
overlap by a third. The model tells for each token how likely the answer begins and ends there
(Devlin et al., arXiv 1810.04805); of all spans of up to 30 tokens in the text, in all windows, the
one with the largest sum of both is its answer. Where a window does not hold the answer, it is
trained to mark the token that begins the sequence. The score is SQuAD's F1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tables import Table, digest_rows
from prunectl.evaluation import squad, tasks
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.examples import HELD_OUT, choose, drawn, facts_of, held_out
from prunectl.evaluation.heads import HeadClass, head_class
from prunectl.evaluation.inputs import (
    Floats,
    TextSamples,
    length_of,
    outputs,
    padding_tokenizer,
)
from prunectl.evaluation.metric import Head, Request, Score
from prunectl.evaluation.qa_windows import ANSWER, Window, windows_of
from prunectl.evaluation.settings import Training
from prunectl.evaluation.squad import Question, questions_of
from prunectl.evaluation.tasks import UNNAMED_QUESTIONS, Recipe, Task, task_of
from prunectl.evaluation.tuning import recipe_of, tuned
from prunectl.events import OnEvent, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

LENGTH = 384
BATCH = 16
HEAD = "AutoModelForQuestionAnswering"


@dataclass(frozen=True, slots=True, eq=False)
class QA:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is a question: (F1, exact match).

    Attributes:
        train: windows with the answers' spans; None where nothing is trained.
        scored: windows of ``questions``.
    """

    train: TextSamples | None
    questions: tuple[Question, ...]
    windows: tuple[Window, ...]
    scored: TextSamples
    recipe: Recipe
    head_class: HeadClass
    head: Head
    batch_size: int
    checkpoints: Path | None
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = "qa"
    unit: str = "questions"
    higher_is_better: bool = True

    @property
    def samples(self) -> int:
        return len(self.questions)

    @property
    def trains(self) -> bool:
        return self.train is not None

    def tolerates(self, parameter: str) -> bool:
        return self.trains and self.head_class.is_head(parameter)

    def statistic(self, values: Values) -> float:
        """Mean F1."""
        return float(values[:, 0].mean())

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Train the model in place and ask it.

        Raises:
            EvaluationFailed: the loss or the outputs are not numbers.
        """
        with tuned(
            loaded,
            self.train,
            self.recipe,
            record=self.record,
            seed=seed,
            checkpoints=self.checkpoints,
            on_event=on_event,
        ):
            told = self.told(loaded.model, on_event)
        values = np.array(
            [
                (squad.f1(text, one.answers), squad.exact_match(text, one.answers))
                for text, one in zip(told, self.questions, strict=True)
            ]
        )
        return Score(self.statistic(values), values, {"exact match": float(values[:, 1].mean())})

    def told(self, model: Any, on_event: OnEvent = ignore_events) -> list[str]:
        """The model's answers.

        Raises:
            EvaluationFailed: its outputs are NaN.
        """
        found = outputs(
            model,
            self.scored,
            _logits,
            batch_size=self.batch_size,
            phase=self.name,
            unit="windows",
            on_event=on_event,
        )
        best: dict[int, tuple[float, str]] = {}
        for window, (starts, ends) in zip(self.windows, found, strict=True):
            score, low, high = window.best(starts, ends)
            if np.isnan(score):
                raise EvaluationFailed(self.name, "the outputs of the model are NaN")
            if window.question not in best or score > best[window.question][0]:
                text = self.questions[window.question].context[low:high]
                best[window.question] = score, text
        return [best.get(number, (0.0, ""))[1] for number in range(len(self.questions))]


def _logits(found: Any) -> tuple[Floats, ...]:
    return tuple(
        one.float().cpu().numpy().astype(np.float64)
        for one in (found.start_logits, found.end_logits)
    )


def prepare(request: Request) -> QA:
    """Read the questions and cut their windows.

    Raises:
        MetricMismatch: there is no such head for this kind of model.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    settings = request.settings
    task = task_of(settings.task, tasks.QA, UNNAMED_QUESTIONS, settings.metric)
    found = head_class(request, HEAD)
    recipe = recipe_of(request, task)
    data = _read(request, task, trains=recipe.epochs > 0)
    tokenizer = padding_tokenizer(request)
    length = length_of(request, tokenizer, LENGTH)
    windows = windows_of(request, tokenizer, data.scored, length, found.accepted)
    scored = TextSamples(tokenizer.inner, [one.tokens for one in windows], {})
    train = None
    if data.train is not None:
        own = windows_of(request, tokenizer, data.train, length, found.accepted)
        spans = np.array([one.span(data.train[one.question]) for one in own], np.int64)
        labels = {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}
        train = TextSamples(tokenizer.inner, [one.tokens for one in own], labels)
    facts = {"sequence_length": length, "overlap": length // 3, "longest_answer": ANSWER}
    return QA(
        train,
        tuple(data.scored),
        tuple(windows),
        scored,
        recipe,
        found,
        found.head(request, tokenizer.inner.pad_token_id, num_labels=2),
        settings.batch_size or BATCH,
        settings.training.checkpoints if settings.training else None,
        _record(request, data, recipe, facts | {"windows": len(windows)}),
        tuple(request.notes),
    )


@dataclass(frozen=True, slots=True)
class _Data:
    """Questions to train on (None: nothing is trained) and to score on, and where they are from."""

    train: list[Question] | None
    scored: list[Question]
    tables: tuple[Table | None, Table]
    available: int
    divided: bool


def _read(request: Request, task: Task, *, trains: bool) -> _Data:
    settings = request.settings
    chosen = choose(request, task, squad.ANSWERS, trains=trains)
    every = questions_of(request, chosen.scored)
    train = questions_of(request, chosen.train) if chosen.train else None
    divided = trains and train is None
    if divided:
        kept, rest = _apart(every, settings.seed)
        train, every = [every[i] for i in kept], [every[i] for i in rest]
        if not every or not train:
            raise BadData(chosen.scored.name, "its texts are too few to train and to score on")
    if train is not None:
        usable = [one for one in train if one.start is not None]
        if not usable:
            raise BadData(
                (chosen.train or chosen.scored).name, "no answer is where its 'answer_start' says"
            )
        if lost := len(train) - len(usable):
            request.notes.append(f"{lost:,} answers are not in their text: not trained on")
        most = (settings.training or Training()).train_samples
        train = [usable[i] for i in drawn([0] * len(usable), most, settings.seed)]
    scored = [every[i] for i in drawn([0] * len(every), settings.samples, settings.seed)]
    return _Data(train, scored, (chosen.train, chosen.scored), len(every), divided)


def _apart(questions: Sequence[Question], seed: int) -> tuple[list[int], list[int]]:
    """Questions to train and to score on, so that no text is on both sides."""
    texts = list(dict.fromkeys(one.context for one in questions))
    _, rest = held_out([0] * len(texts), seed)
    scored = {texts[index] for index in rest}
    is_scored = [one.context in scored for one in questions]
    return [i for i, one in enumerate(is_scored) if not one], [
        i for i, one in enumerate(is_scored) if one
    ]


def _record(request: Request, data: _Data, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    settings = request.settings
    record: dict[str, Any] = {
        "metric": "qa",
        "task": settings.task,
        **facts_of(data.tables[1]),
        **request.facts,
        "blake3": _digest(data.scored),
        "questions": len(data.scored),
        "questions_available": data.available,
        **facts,
    }
    if data.train is not None:
        record["train"] = {
            **facts_of(data.tables[0] or data.tables[1]),
            "blake3": _digest(data.train, "start"),
            "questions": len(data.train),
        }
        record["recipe"] = recipe.to_json()
    if data.divided:
        record["held_out"] = {"share": HELD_OUT, "seed": settings.seed, "of": "texts"}
    return record


def _digest(questions: Sequence[Question], *names: str) -> str:
    columns = ["question", "context", "answers", *names]
    rows = ({name: getattr(one, name) for name in columns} for one in questions)
    return digest_rows(rows, columns)
