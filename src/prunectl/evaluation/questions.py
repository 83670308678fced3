"""Multiple choice questions of a table, whatever its columns are called."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.tables import Table, column, has_column

QUESTION = ("question", "ctx", "query", "goal", "stem", "prompt", "sentence", "text")
CHOICES = ("choices", "options", "endings")
ANSWER = ("answer", "answerKey", "label", "gold", "target", "correct")
SUBJECT = ("subject",)
LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its options, which of them is right (0 is the first), and what it is about."""

    text: str
    options: tuple[str, ...]
    answer: int
    subject: str | None = None


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
        """Whether options end the question's text, and do not answer it."""
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
    of these that holds for all rows.

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
        # The way that holds for most rows is the one that was meant.
        number = min(tried, key=lambda one: one.count(None)).index(None)
        raise BadData(
            table.name,
            f"row {number + 1:,}: answer '{answers[number][:40]}' is none of its "
            f"{len(rows[number][2])} options",
            hint="an answer is an option's number from 0, its letter or its text, the same way in "
            "all rows",
        )
    subjects = [_subject(row, shape) for _, _, _, row in rows]
    return [
        Question(text, options, answer, subject)
        for (text, _, options, _), answer, subject in zip(rows, found, subjects, strict=True)
        if answer is not None
    ]


def _options(
    table: Table, shape: Shape, row: dict[str, Any], number: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels and the texts of a row's options; no labels where they have none of their own."""
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
    options = tuple("" if one is None else str(one) for one in found)
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
    """A list that a CSV holds as text: of JSON, or as Python writes it."""
    if not isinstance(value, str):
        return value
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for read in readers:
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
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


def _subject(row: dict[str, Any], shape: Shape) -> str | None:
    value = row.get(shape.subject) if shape.subject else None
    return None if value is None else str(value).strip()
