"""Multiple choice: how often the option that is likeliest under the model is the right one.

Protocol ``letters`` is that of MMLU (Hendrycks et al., arXiv 2009.03300): the options are listed
after A, B, C and D, and the likeliest letter is the model's answer. Protocol ``text`` shows no
options: the answer is the option whose text has the highest log likelihood per character. The
questions become tasks of lm-evaluation-harness, one for each subject, with the prompts and scores
of its ``mmlu`` (letters: ``acc``), ``arc`` and ``hellaswag`` (text: ``acc_norm``).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from prunectl.data.errors import BadData
from prunectl.data.tables import Table, digest_rows
from prunectl.evaluation import prompts
from prunectl.evaluation.examples import facts_of
from prunectl.evaluation.harness_run import (
    HarnessMetric,
    Part,
    own_metric,
    own_task,
    quiet_harness,
)
from prunectl.evaluation.metric import Request
from prunectl.evaluation.questions import (
    ANSWER,
    GROUPS,
    Question,
    Shape,
    group_of,
    questions_of,
    shape_of,
)
from prunectl.evaluation.sources import splits_of, the_data

_SKIPPED = ("auxiliary_train",)
"""Splits of MMLU that are not used."""

_SCORED = {
    "acc": "log likelihood of ' A', ' B', ...",
    "acc_norm": "log likelihood of ' ' and the option, divided by the option's characters",
}
_PLACEHOLDERS = Question(
    question="{question}",
    choices=["{option}"] * 2,
    letters=["A", "B"],
    answer=0,
    subject="{subject}",
)
"""A question with placeholders, whose prompt is recorded as the template of all prompts."""


def prepare(request: Request) -> HarnessMetric:
    """Read the questions and make tasks from them.

    Raises:
        MetricMismatch: the model is not a language model that continues text.
        MissingLibrary: lm-evaluation-harness is not installed.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see
            :mod:`prunectl.data.errors` and :mod:`prunectl.evaluation.errors`.
    """
    prompts.continues_text(request)
    with quiet_harness(request.settings.metric):
        return _make_metric(request)


def _make_metric(request: Request) -> HarnessMetric:
    settings, name = request.settings, the_data(request)
    splits = splits_of(request, name, skip=_SKIPPED)
    table = prompts.scored_split(splits, ANSWER, name)
    shape = shape_of(table)
    available = questions_of(table, shape)
    prompts.enough(len(available), "questions", table.name)
    questions, counts = prompts.taken(request, available, "questions")
    by_letters = _by_letters(shape, table, settings.protocol)
    score = "acc" if by_letters else "acc_norm"

    def with_prompt(question: Question) -> dict[str, Any]:
        return _with_prompt(question, by_letters=by_letters, continues=shape.continues)

    record: dict[str, Any] = {
        **facts_of(table),
        "blake3": digest_rows(table.rows, shape.columns),
        "protocol": "letters" if by_letters else "text",
        "scored": _SCORED[score],
        "prompt": "{head}{asked}".format(**with_prompt(_PLACEHOLDERS)),
        "shots": settings.shots,
    }
    examples: dict[str, list[Question]] = defaultdict(list)
    if settings.shots:
        source = prompts.examples_split(splits, table, name)
        examples = _examples(source, questions, settings.shots)
        record["examples"] = f"the first of the same subject in {source.facts['split']}"
        record["examples_blake3"] = digest_rows(source.rows, shape_of(source).columns)
    # These values are names of columns: text from the data is never used as a template.
    config = {
        "output_type": "multiple_choice",
        "description": "head",
        "doc_to_text": "asked",
        "doc_to_choice": "letters" if by_letters else "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": score, "aggregation": "mean", "higher_is_better": True}],
    }
    by_subject: dict[str, list[Question]] = defaultdict(list)
    for one in questions:
        by_subject[one["subject"]].append(one)
    parts = {
        subject: Part(
            own_task(
                config, list(map(with_prompt, rows)), list(map(with_prompt, examples[subject]))
            ),
            score,
            (group_of(subject) if subject else None,) * len(rows),
        )
        for subject, rows in by_subject.items()
    }
    answers = [one["answer"] for one in questions]
    return own_metric(request, "questions", parts, answers, record | counts, order=GROUPS)


def _with_prompt(question: Question, *, by_letters: bool, continues: bool) -> dict[str, Any]:
    """A question with its prompt (``asked``) and the ``head`` that precedes all examples.

    Args:
        by_letters: whether the options are listed after letters; otherwise their texts are scored.
        continues: whether the options continue the question's text.
    """
    head, asked = "", question["question"]
    if by_letters:
        about = f" about {question['subject'].replace('_', ' ')}" if question["subject"] else ""
        head = f"The following are multiple choice questions (with answers){about}.\n\n"
        named = zip(question["letters"], question["choices"], strict=True)
        asked = "\n".join([asked, *(f"{name}. {one}" for name, one in named), "Answer:"])
    elif not continues:
        asked = f"Question: {asked}\nAnswer:"
    return {**question, "head": head, "asked": asked}


def _by_letters(shape: Shape, table: Table, protocol: str) -> bool:
    """Whether the protocol is ``letters``; ``auto`` decides by the shape of the questions."""
    if protocol != "auto":
        return protocol == "letters"
    # Continuations (HellaSwag), and options whose data name labels (ARC), are scored by their text.
    has_labels = isinstance(table.rows[0].get(shape.choices[0]), dict)
    return not (shape.continues or has_labels)


def _examples(source: Table, questions: list[Question], shots: int) -> dict[str, list[Question]]:
    """The first ``shots`` questions of each subject."""
    found: dict[str, list[Question]] = {one["subject"]: [] for one in questions}
    for one in questions_of(source, shape_of(source)):
        if len(found.get(one["subject"], ())) < shots and one["subject"] in found:
            found[one["subject"]].append(one)
    for subject, solved in found.items():
        if len(solved) < shots:
            where = f" of subject '{subject}'" if subject else ""
            raise BadData(
                source.name, f"it has {len(solved)} examples{where}, and --shots asks for {shots}"
            )
    return found
