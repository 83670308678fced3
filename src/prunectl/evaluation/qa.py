"""Question answering: the model is fine-tuned to mark the answer in a text, then scored.

A question and its text go into one sequence; a text that is too long, into several windows that
overlap by a third. For each token, the model says how likely the answer begins and ends there
(Devlin et al., arXiv 1810.04805). Its answer is the span with the largest sum of both, of all spans
of up to 30 tokens of the text in all windows. In a window without the answer, it is trained to mark
the token that begins the sequence. The score is SQuAD's F1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tables import Table, digest_rows
from prunectl.evaluation import squad, tasks
from prunectl.evaluation.examples import Reader, choose, read
from prunectl.evaluation.inputs import Floats, TextSamples, length_of, padding_tokenizer
from prunectl.evaluation.metric import Request, Score
from prunectl.evaluation.qa_windows import ANSWER, Window, windows_of
from prunectl.evaluation.squad import Question, questions_of
from prunectl.evaluation.tasks import UNNAMED_QUESTIONS, task_of
from prunectl.evaluation.tuning import TunedMetric, head_class, recipe_of, record_of
from prunectl.events import OnEvent

if TYPE_CHECKING:
    from prunectl.evaluation.metric import Values

LENGTH = 384
HEAD = "AutoModelForQuestionAnswering"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class QA(TunedMetric):
    """See :class:`prunectl.evaluation.tuning.TunedMetric`; a sample is a question: (F1, exact
    match), and the model is fed ``windows`` of the questions."""

    name, unit, fed, batch = "qa", "questions", "windows", 16

    questions: Sequence[Question]
    windows: Sequence[Window]

    @property
    def samples(self) -> int:
        return len(self.questions)

    def statistic(self, values: Values) -> float:
        """Mean F1."""
        return float(values[:, 0].mean())

    def read(self, found: Any) -> tuple[Floats, ...]:
        """Scores of each token to begin and to end the answer."""
        both = (found.start_logits, found.end_logits)
        return tuple(one.float().cpu().numpy().astype(np.float64) for one in both)

    def graded(self, found: Mapping[str, list[tuple[Floats, ...]]], on_event: OnEvent) -> Score:
        answers = zip(self.answers(found[""]), self.questions, strict=True)
        values = np.array(
            [
                (squad.f1(text, one.answers), squad.exact_match(text, one.answers))
                for text, one in answers
            ]
        )
        return Score(self.statistic(values), values, {"exact match": float(values[:, 1].mean())})

    def answers(self, found: Sequence[tuple[Floats, ...]]) -> list[str]:
        """The model's answer to each question, by what was read of the outputs for each window."""
        best: dict[int, tuple[float, str]] = {}
        for window, (starts, ends) in zip(self.windows, found, strict=True):
            score, low, high = window.best(starts, ends)
            if window.question not in best or score > best[window.question][0]:
                text = self.questions[window.question].context[low:high]
                best[window.question] = score, text
        return [best.get(number, (0.0, ""))[1] for number in range(len(self.questions))]


def prepare(request: Request) -> QA:
    """Read the questions and cut their windows.

    Raises:
        MetricMismatch: there is no such head for this kind of model.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    settings = request.settings
    task = task_of(settings.task, tasks.QA, UNNAMED_QUESTIONS, settings.metric)
    head = head_class(request, HEAD)
    recipe = recipe_of(request, task)
    trains = recipe.epochs > 0
    chosen = choose(request, task, squad.ANSWERS, trains=trains)
    reader = Reader(
        name="questions",
        rows=lambda table, trained: questions_of(request, table),
        digest=_digest,
        group=lambda one: 0,
        unit=lambda one: one.context,
        units="texts",
        usable=partial(_with_answer, request),
    )
    data = read(request, chosen, reader, trains=trains)
    tokenizer = padding_tokenizer(request)
    length = length_of(request, tokenizer, LENGTH)

    def cut(questions: Sequence[Question]) -> list[Window]:
        return windows_of(request, tokenizer, questions, length, head.accepted)

    windows = cut(data.scored)
    train = None
    if data.train is not None:
        own = cut(data.train)
        spans = np.array([one.span(data.train[one.question]) for one in own], np.int64)
        labels = {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}
        train = TextSamples(tokenizer.inner, [one.tokens for one in own], labels)
    facts = {
        "sequence_length": length,
        "overlap": length // 3,
        "longest_answer": ANSWER,
        "windows": len(windows),
    }
    return QA(
        train=train,
        scored=TextSamples(tokenizer.inner, [one.tokens for one in windows], {}),
        further={},
        settings=settings,
        recipe=recipe,
        head_class=head,
        head=head.head(request, tokenizer.inner.pad_token_id, num_labels=2),
        record=record_of(request, data, reader, recipe, data.available, facts),
        notes=tuple(request.notes),
        questions=data.scored,
        windows=windows,
    )


def _with_answer(request: Request, questions: list[Question], table: Table) -> list[Question]:
    """The questions whose answer is in their text."""
    usable = [one for one in questions if one.start is not None]
    if not usable:
        raise BadData(table.name, "no answer is where its 'answer_start' says")
    if lost := len(questions) - len(usable):
        request.notes.append(f"{lost:,} answers are not in their text: not trained on")
    return usable


def _digest(questions: Sequence[Question], trained: bool) -> str:
    """A hash of questions, order included; of those to train on, of where the answers are too."""
    columns = ["question", "context", "answers", *(["start"] if trained else [])]
    rows = ({name: getattr(one, name) for name in columns} for one in questions)
    return digest_rows(rows, columns)
