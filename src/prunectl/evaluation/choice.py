"""Multiple choice: how often the option that the model finds likeliest is the right one.

Protocol ``letters`` is that of MMLU (Hendrycks et al., arXiv 2009.03300): a line that names the
subject, solved examples of the same subject if any are asked for, the question with its options
after A., B., C. and D., and ``Answer:``; of `` A`` to `` D`` the likeliest next is the model's
answer. Protocol ``text`` shows no options: the log likelihood of each option's own text, by its
characters, decides. Prompts and boundaries of tokens are those of lm-evaluation-harness (``acc`` of
its ``mmlu``, ``acc_norm`` of its ``arc``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tables import Table, digest_rows
from prunectl.data.tokens import load_tokenizer
from prunectl.evaluation import likelihood, prompts
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.likelihood import Continued
from prunectl.evaluation.metric import MAJORITY, Head, Request, Score, majority
from prunectl.evaluation.mmlu import GROUPS, group_of
from prunectl.evaluation.questions import (
    ANSWER,
    LETTERS,
    Question,
    Shape,
    questions_of,
    shape_of,
)
from prunectl.evaluation.sources import splits_of, the_data
from prunectl.events import OnEvent, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

BATCH = 8
_SKIPPED = ("auxiliary_train",)
"""Splits of MMLU that nothing is taken from."""
_UNSAID = ("rows", "classes")


@dataclass(frozen=True, slots=True)
class Form:
    """How a question becomes a prompt.

    Attributes:
        letters: options are listed and named by letters; else their texts are what is scored.
        continues: the options end the question's text.
    """

    letters: bool
    continues: bool = False

    def head(self, subject: str | None) -> str:
        """What stands before all examples."""
        if not self.letters:
            return ""
        about = f" about {subject.replace('_', ' ')}" if subject else ""
        return f"The following are multiple choice questions (with answers){about}.\n\n"

    def asked(self, question: Question) -> str:
        """A question up to where its answer stands."""
        if self.letters:
            lines = [f"{name}. {one}" for name, one in self._named(question)]
            return "\n".join([question.text, *lines, "Answer:"])
        return question.text if self.continues else f"Question: {question.text}\nAnswer:"

    def ends(self, question: Question) -> list[str]:
        """What may follow: the answers, each with the space before it."""
        return [f" {name if self.letters else one}" for name, one in self._named(question)]

    def prompt(self, question: Question, solved: Sequence[Question]) -> str:
        """All that stands before the answer: solved questions, and the one that is asked."""
        examples = [f"{self.asked(one)}{self.ends(one)[one.answer]}\n\n" for one in solved]
        return "".join([self.head(question.subject), *examples, self.asked(question)])

    def described(self) -> str:
        """A prompt in words, without examples."""
        if not self.letters:
            return "{question}" if self.continues else "Question: {question}\nAnswer:"
        lines = "{question}\nA. {option}\nB. {option}\n...\nAnswer:"
        return self.head("{subject}") + lines

    def _named(self, question: Question) -> list[tuple[str, str]]:
        return list(zip(LETTERS, question.options, strict=False))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is a question: (1 if the model's
    answer is the right one, else 0)."""

    questions: tuple[Question, ...]
    texts: tuple[Continued, ...]
    form: Form
    batch_size: int
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = "choice"
    unit: str = "questions"
    higher_is_better: bool = True
    trains: bool = False
    head: Head | None = None

    @property
    def samples(self) -> int:
        return len(self.questions)

    def tolerates(self, parameter: str) -> bool:
        return False

    def statistic(self, values: Values) -> float:
        """The share that is right."""
        return float(values[:, 0].mean())

    def score(
        self, subject: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Ask the model.

        Raises:
            EvaluationFailed: a likelihood is NaN.
        """
        found = likelihood.log_likelihoods(
            subject.model,
            self.texts,
            batch_size=self.batch_size,
            phase=self.name,
            on_event=on_event,
        )
        if bad := sum(bool(np.isnan(one).any()) for one in found):
            raise EvaluationFailed(self.name, f"the likelihoods of {bad} questions are NaN")
        chosen = [
            int(np.argmax(one if self.form.letters else one / np.array(list(map(len, q.options)))))
            for one, q in zip(found, self.questions, strict=True)
        ]
        right = [answer == q.answer for answer, q in zip(chosen, self.questions, strict=True)]
        values = np.array(right, np.float64)[:, None]
        groups = [group_of(one.subject) if one.subject else None for one in self.questions]
        parts = prompts.shares(groups, values[:, 0], GROUPS)
        parts[MAJORITY] = majority([one.answer for one in self.questions])
        return Score(self.statistic(values), values, parts)


def prepare(request: Request) -> Choice:
    """Read the questions and write the prompts.

    Raises:
        MetricMismatch: the model does not continue text.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    prompts.continues_text(request)
    settings, name = request.settings, the_data(request)
    splits = splits_of(request, name, skip=_SKIPPED)
    table = prompts.scored_split(splits, ANSWER, name)
    shape = shape_of(table)
    every = questions_of(table, shape)
    prompts.enough(len(every), "questions", table.name)
    questions, counts = prompts.taken(request, every, "questions")
    form = Form(_by_letters(shape, table, settings.protocol), shape.continues)
    record: dict[str, Any] = {
        "metric": "choice",
        **{key: value for key, value in table.facts.items() if key not in _UNSAID},
        "blake3": digest_rows(table.rows, shape.columns),
        "protocol": "letters" if form.letters else "text",
        "scored": "log likelihood of ' A', ' B', ..."
        if form.letters
        else "log likelihood of ' ' and the option, divided by the option's characters",
        "prompt": form.described(),
        "shots": settings.shots,
    }
    solved: dict[str | None, list[Question]] = {}
    if settings.shots:
        source = prompts.examples_split(splits, table, name)
        solved = _examples(source, questions, settings.shots)
        record["examples"] = f"the first of the same subject in {source.facts['split']}"
        record["examples_blake3"] = digest_rows(source.rows, shape_of(source).columns)
    texts, changed = _texts(request, form, questions, solved)
    record |= counts | changed
    return Choice(
        tuple(questions),
        tuple(texts),
        form,
        settings.batch_size or BATCH,
        record,
        tuple(request.notes),
    )


def _by_letters(shape: Shape, table: Table, protocol: str) -> bool:
    if protocol != "auto":
        return protocol == "letters"
    # Endings, and options with labels of their own (ARC), are scored by their text.
    has_labels = isinstance(table.rows[0].get(shape.choices[0]), dict)
    return not (shape.continues or has_labels)


def _examples(
    source: Table, questions: Sequence[Question], shots: int
) -> dict[str | None, list[Question]]:
    """The first ``shots`` questions of each subject.

    Raises:
        BadData: a subject has fewer.
    """
    found: dict[str | None, list[Question]] = {one.subject: [] for one in questions}
    for one in questions_of(source, shape_of(source)):
        if len(found.get(one.subject, ())) < shots and one.subject in found:
            found[one.subject].append(one)
    for subject, solved in found.items():
        if len(solved) < shots:
            of = f" of subject '{subject}'" if subject else ""
            raise BadData(
                source.name, f"it has {len(solved)} examples{of}, and --shots asks for {shots}"
            )
    return found


def _texts(
    request: Request,
    form: Form,
    questions: Sequence[Question],
    solved: Mapping[str | None, list[Question]],
) -> tuple[list[Continued], dict[str, int | None]]:
    """The prompts as tokens, each with as many of its examples as fit; and for a record, how many
    tokens fit, how many prompts have fewer examples, or are cut at their beginning.

    Raises:
        BadTokenizer, WrongTokenizer: see there.
        BadData: the model does not take an option's text.
    """
    tokenizer = load_tokenizer(request.checkpoint)
    room = prompts.room(request, tokenizer)

    def make(indices: Sequence[int], shots: int) -> list[Continued]:
        asked = [questions[index] for index in indices]
        return likelihood.encode(
            tokenizer,
            [(form.prompt(q, solved.get(q.subject, [])[:shots]), form.ends(q)) for q in asked],
        )

    made, fewer = prompts.with_examples_that_fit(
        len(questions), request.settings.shots, room, make, lambda one: one.longest
    )
    found = [likelihood.shortened(one, room) for one in made]
    cut = sum(a is not b for a, b in zip(made, found, strict=True))
    if fewer:
        request.notes.append(f"{fewer:,} questions have fewer than the examples asked for: no room")
    if cut:
        request.notes.append(f"{cut:,} questions lose their beginning: the model takes {room:,}")
    if not all(len(one.context) for one in found):
        raise BadData(the_data(request), f"an option has more than the {room:,} tokens there are")
    tokenizer.check([one.context for one in found], request.model_kind.vocabulary)
    return found, {
        "sequence_length": room,
        "questions_with_fewer_examples": fewer,
        "questions_cut": cut,
    }
