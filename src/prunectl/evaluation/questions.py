"""Multiple choice questions of a table, whatever its columns are called, and MMLU's subjects."""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.tables import Table, column, has_column
from prunectl.documents import parse_json

QUESTION = ("question", "ctx", "query", "goal", "stem", "prompt", "sentence", "text")
CHOICES = ("choices", "options", "endings")
ANSWER = ("answer", "answerKey", "label", "gold", "target", "correct")
SUBJECT = ("subject",)
LETTERS = string.ascii_uppercase


_GROUPS = {
    "humanities": """formal_logic high_school_european_history high_school_us_history
        high_school_world_history international_law jurisprudence logical_fallacies moral_disputes
        moral_scenarios philosophy prehistory professional_law world_religions""",
    "social sciences": """econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology
        human_sexuality professional_psychology public_relations security_studies sociology
        us_foreign_policy""",
    "STEM": """abstract_algebra astronomy college_biology college_chemistry
        college_computer_science college_mathematics college_physics computer_security
        conceptual_physics electrical_engineering elementary_mathematics high_school_biology
        high_school_chemistry high_school_computer_science high_school_mathematics
        high_school_physics high_school_statistics machine_learning""",
    "other": """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging
        management marketing medical_genetics miscellaneous nutrition professional_accounting
        professional_medicine virology""",
}
"""MMLU's authors' own map (``categories.py``); the harness counts anatomy as STEM."""

GROUP_OF = {subject: group for group, names in _GROUPS.items() for subject in names.split()}
"""The group of each of MMLU's 57 subjects."""
GROUPS = tuple(_GROUPS)


def group_of(subject: str) -> str:
    """The group of a subject of MMLU; any other subject is a group of its own."""
    return GROUP_OF.get("_".join(subject.casefold().split()), subject)


class Question(TypedDict):
    """A question.

    Attributes:
        letters: the names of the choices. answer: position of the right one.
        subject: '' where there is none.
    """

    question: str
    choices: list[str]
    letters: list[str]
    answer: int
    subject: str


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of a table of questions.

    Attributes:
        question, answer: their names. choices: the one that holds a list, or those called A, B ...
        subject: None where there is none.
    """

    question: str
    choices: tuple[str, ...]
    answer: str
    subject: str | None

    @property
    def columns(self) -> list[str]:
        """All of them."""
        found = [self.question, *self.choices, self.answer, self.subject]
        return [one for one in found if one is not None]

    @property
    def is_lettered(self) -> bool:
        """Whether each option has a column."""
        return len(self.choices) > 1

    @property
    def continues(self) -> bool:
        """Whether the options complete the question's text instead of answering it."""
        return self.choices[0].casefold() == "endings"


def shape_of(table: Table) -> Shape:
    """Which columns a table of questions has.

    Raises:
        MissingColumn: one is not there.
    """
    question = column(table, None, QUESTION)
    if has_column(table, CHOICES):
        choices: tuple[str, ...] = (column(table, None, CHOICES),)
    else:
        choices = tuple(one for one in LETTERS if one in table.columns)
        if choices[:2] != ("A", "B"):
            raise MissingColumn(table.name, [*CHOICES, "A, B, C, D"], table.columns)
    subject = column(table, None, SUBJECT) if has_column(table, SUBJECT) else None
    return Shape(question, choices, column(table, None, ANSWER), subject)


def questions_of(table: Table, shape: Shape) -> list[Question]:
    """The questions of a table, in its order.

    An answer is the label of an option (ARC), its number from 0, its letter, or its text: the first
    of these that fits all rows.

    Raises:
        BadData: a row without a question, with fewer than two options, or with an answer that is
            none of them.
    """
    rows = []
    for number, row in enumerate(table.rows, 1):
        text = str(row.get(shape.question) or "").strip()
        if not text:
            raise BadData(table.name, f"row {number:,} has no '{shape.question}'")
        labels, options = _options(table, shape, row, number)
        rows.append((text, labels, options, row))
    answers = [_plain(row.get(shape.answer)) for _, _, _, row in rows]
    tried = [
        [find(answer, labels, options) for answer, (_, labels, options, _) in zip(
            answers, rows, strict=True)]
        for find in _WAYS
    ]  # fmt: skip
    found = next((one for one in tried if None not in one), None)
    if found is None:
        # The reading that fits most rows is the one that was meant.
        number = min(tried, key=lambda one: one.count(None)).index(None)
        raise BadData(
            table.name,
            f"row {number + 1:,}: answer '{answers[number][:40]}' is none of its "
            f"{len(rows[number][2])} options",
            hint="an answer is an option's number from 0, its letter or its text, the same way in "
            "all rows",
        )
    return [
        Question(
            question=text,
            choices=options,
            letters=list(LETTERS[: len(options)]),
            answer=answer,
            subject=str((row.get(shape.subject) if shape.subject else None) or "").strip(),
        )
        for (text, _, options, row), answer in zip(rows, found, strict=True)
        if answer is not None
    ]


def _options(
    table: Table, shape: Shape, row: dict[str, Any], number: int
) -> tuple[tuple[str, ...], list[str]]:
    """The labels and the texts of a row's options; no labels where the data give none."""
    labels: tuple[str, ...] = ()
    found: Any = [row.get(one) for one in shape.choices]
    if not shape.is_lettered:
        found = _parsed(found[0])
        if isinstance(found, dict) and isinstance(found.get("text"), list):
            if isinstance(found.get("label"), list):
                labels = tuple(_plain(one) for one in found["label"])
            found = found["text"]
    if not isinstance(found, list | tuple):
        raise BadData(
            table.name,
            f"row {number:,}: '{shape.choices[0]}' is no list of options",
            hint='write them as a JSON list, ["one", "two"], or in columns A, B, C and D',
        )
    options = ["" if one is None else str(one) for one in found]
    if shape.is_lettered:  # a question may have fewer than the others
        while options and not options[-1].strip():
            options = options[:-1]
    if not 2 <= len(options) <= len(LETTERS):
        what = f"{len(options)} options, and 2 to {len(LETTERS)} are needed"
        raise BadData(table.name, f"row {number:,} has {what}")
    if not all(one.strip() for one in options):
        raise BadData(table.name, f"row {number:,} has an empty option")
    return labels, options


def _parsed(value: Any) -> Any:
    """A list that a CSV holds as text: JSON, or as Python writes it."""
    if not isinstance(value, str):
        return value
    readers: tuple[Callable[[str], Any], ...] = (parse_json, ast.literal_eval)
    for read in readers:
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # nested too deep for ast
            continue
    return None


def _plain(value: Any) -> str:
    """An answer as text; 2.0, as some tools write a column of numbers, is 2."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _by_label(answer: str, labels: Sequence[str], options: Sequence[str]) -> int | None:
    return labels.index(answer) if answer in labels else None


def _by_number(answer: str, labels: Sequence[str], options: Sequence[str]) -> int | None:
    is_number = answer.isascii() and answer.isdigit() and len(answer) < 3
    return int(answer) if is_number and int(answer) < len(options) else None


def _by_letter(answer: str, labels: Sequence[str], options: Sequence[str]) -> int | None:
    known = LETTERS[: len(options)]
    return known.index(answer.upper()) if len(answer) == 1 and answer.upper() in known else None


def _by_text(answer: str, labels: Sequence[str], options: Sequence[str]) -> int | None:
    stripped = [one.strip() for one in options]
    return stripped.index(answer) if answer in stripped else None


_WAYS = (_by_label, _by_number, _by_letter, _by_text)
