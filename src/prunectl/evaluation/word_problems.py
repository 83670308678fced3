"""Word problems with a number as the answer, in the shapes of MAWPS, ASDiv and SVAMP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from prunectl.data.errors import BadData
from prunectl.data.tables import Table, column, has_column
from prunectl.evaluation.numerals import numbers_in, result_of, written

QUESTION = ("question", "original_text", "sQuestion", "problem", "text")
BODY = ("body",)
ANSWER = ("answer", "ans", "lSolutions", "solution", "final_ans", "result", "target", "label")
EQUATION = ("equation", "lEquations", "formula")
NUMBERS = ("numbers",)
KIND = ("type", "solution_type", "Solution-Type")

_PLACEHOLDER = re.compile(r"\bnumber(\d+)\b")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in words, its answer, and what kind it is of, where the data say so."""

    text: str
    answer: Fraction
    kind: str | None = None


def answers_of(table: Table) -> Sequence[str]:
    """Names that the column of answers may have: an equation stands for its result."""
    return ANSWER if has_column(table, ANSWER) else EQUATION


def columns_of(table: Table) -> list[str]:
    """The columns that problems are made of.

    Raises:
        MissingColumn: there are no questions or no answers.
    """
    names = [column(table, None, QUESTION), column(table, None, answers_of(table))]
    return names + [column(table, None, one) for one in (BODY, NUMBERS, KIND)
                    if has_column(table, one)]  # fmt: skip


def problems_of(table: Table) -> list[Problem]:
    """The problems of a table, in its order.

    A body stands before the question, unless the question begins with it. Placeholders ``number0``,
    ``number1`` ... (the CSV files of SVAMP's repository) are filled in.

    Raises:
        MissingColumn: there are no questions or no answers.
        BadData: a row without a question, or with an answer that is no number.
    """
    question, answer = columns_of(table)[:2]
    by_equation = not has_column(table, ANSWER)
    body, numbers, kind = (
        column(table, None, one) if has_column(table, one) else None
        for one in (BODY, NUMBERS, KIND)
    )
    found = []
    for at, row in enumerate(table.rows, 1):
        text = _text(row, question, body)
        if not text:
            raise BadData(table.name, f"row {at:,} has no '{question}'")
        if numbers:
            text = _filled(text, row.get(numbers))
        value = _number(row.get(answer), by_equation)
        if value is None:
            raise BadData(
                table.name, f"row {at:,}: '{str(row.get(answer))[:40]}' in '{answer}' is no number"
            )
        found.append(Problem(text, value, str(row[kind]) if kind and row.get(kind) else None))
    return found


def _text(row: dict[str, Any], question: str, body: str | None) -> str:
    asked = str(row.get(question) or "").strip()
    told = str(row.get(body) or "").strip() if body else ""
    if not told or asked.startswith(told):
        return asked
    return f"{told} {asked}" if asked else ""


def _filled(text: str, numbers: Any) -> str:
    given = numbers if isinstance(numbers, list) else str(numbers or "").split()
    known = [found[0] for found in (numbers_in(str(one)) for one in given) if found]

    def fill(match: re.Match[str]) -> str:
        place = int(match[1][:3])
        return written(known[place]) if place < len(known) else match[0]

    return _PLACEHOLDER.sub(fill, text)


def _number(value: Any, is_equation: bool) -> Fraction | None:
    """An answer: a number, a list of one, or text that begins with one (``9 (apples)``)."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if value is None or isinstance(value, bool):
        return None
    if is_equation:
        return result_of(str(value))
    found = numbers_in(repr(value) if isinstance(value, float) else str(value).strip())
    # Worked solutions (GSM8K) end with the answer behind four hashes.
    if isinstance(value, str) and "####" in value:
        found = numbers_in(value.rpartition("####")[2])
    return found[0] if found else None
