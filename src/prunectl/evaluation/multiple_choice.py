"""Multiple choice: how often the option that the model finds likeliest is the right one.

Protocol ``letters`` is that of MMLU (Hendrycks et al., arXiv 2009.03300): the options are listed
after A, B, C and D, and the likeliest letter is the model's answer. Protocol ``text`` shows no
options: the log likelihood of each option's own text, divided by its characters, decides. The
questions become tasks of lm-evaluation-harness, one for each subject, with the prompts of its
``mmlu`` (``acc``), ``arc`` and ``hellaswag`` (``acc_norm``).
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
"""Splits of MMLU that nothing is taken from."""

_SCORED = {
    "acc": "log likelihood of ' A', ' B', ...",
    "acc_norm": "log likelihood of ' ' and the option, divided by the option's characters",
}
_ANY = Question(
    question="{question}",
    choices=["{option}"] * 2,
    letters=["A", "B"],
    answer=0,
    subject="{subject}",
)
"""Stands for all questions in a record."""


def prepare(request: Request) -> HarnessMetric:
    """Read the questions, and make tasks of them.

    Raises:
        MetricMismatch: the model does not continue text.
        MissingLibrary: lm-evaluation-harness is not installed.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    prompts.continues_text(request)
    with quiet_harness(request.settings.metric):
        return _prepared(request)


def _prepared(request: Request) -> HarnessMetric:
    settings, name = request.settings, the_data(request)
    splits = splits_of(request, name, skip=_SKIPPED)
    table = prompts.scored_split(splits, ANSWER, name)
    shape = shape_of(table)
    every = questions_of(table, shape)
    prompts.enough(len(every), "questions", table.name)
    questions, counts = prompts.taken(request, every, "questions")
    by_letters = _by_letters(shape, table, settings.protocol)
    score = "acc" if by_letters else "acc_norm"

    def posed(question: Question) -> dict[str, Any]:
        return _posed(question, by_letters=by_letters, continues=shape.continues)

    record: dict[str, Any] = {
        **facts_of(table),
        "blake3": digest_rows(table.rows, shape.columns),
        "protocol": "letters" if by_letters else "text",
        "scored": _SCORED[score],
        "prompt": "{head}{asked}".format(**posed(_ANY)),
        "shots": settings.shots,
    }
    examples: dict[str, list[Question]] = defaultdict(list)
    if settings.shots:
        source = prompts.examples_split(splits, table, name)
        examples = _examples(source, questions, settings.shots)
        record["examples"] = f"the first of the same subject in {source.facts['split']}"
        record["examples_blake3"] = digest_rows(source.rows, shape_of(source).columns)
    # All of these are names of columns: texts of the data are never taken for templates.
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
            own_task(config, list(map(posed, rows)), list(map(posed, examples[subject]))),
            score,
            (group_of(subject) if subject else None,) * len(rows),
        )
        for subject, rows in by_subject.items()
    }
    answers = [one["answer"] for one in questions]
    return own_metric(request, "questions", parts, answers, record | counts, order=GROUPS)


def _posed(question: Question, *, by_letters: bool, continues: bool) -> dict[str, Any]:
    """A question with the texts of its prompt: what is asked, and the ``head`` before all examples.

    Args:
        by_letters: the options are listed and named by letters; else their texts are scored.
        continues: the options end the question's text.
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
    if protocol != "auto":
        return protocol == "letters"
    # Endings, and options with labels of their own (ARC), are scored by their text.
    has_labels = isinstance(table.rows[0].get(shape.choices[0]), dict)
    return not (shape.continues or has_labels)


def _examples(source: Table, questions: list[Question], shots: int) -> dict[str, list[Question]]:
    """The first ``shots`` questions of each subject.

    Raises:
        BadData: a subject has fewer.
    """
    found: dict[str, list[Question]] = {one["subject"]: [] for one in questions}
    for one in questions_of(source, shape_of(source)):
        if len(found.get(one["subject"], ())) < shots and one["subject"] in found:
            found[one["subject"]].append(one)
    for subject, solved in found.items():
        if len(solved) < shots:
            of = f" of subject '{subject}'" if subject else ""
            raise BadData(
                source.name, f"it has {len(solved)} examples{of}, and --shots asks for {shots}"
            )
    return found
