"""Word problems with a number as the answer, in the shapes of MAWPS, ASDiv, SVAMP and GSM8K.

An answer is read from the data as people write numbers, and written as the model is to write it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypedDict

from prunectl.data.errors import BadData
from prunectl.data.tables import Table, column, has_column

QUESTION = ("question", "original_text", "sQuestion", "problem", "text")
BODY = ("body",)
ANSWER = ("answer", "ans", "lSolutions", "solution", "final_ans", "result", "target", "label")
EQUATION = ("equation", "lEquations", "formula")
NUMBERS = ("numbers",)
KIND = ("type", "solution_type", "Solution-Type")

_PLACEHOLDER = re.compile(r"\bnumber(\d+)\b")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_ENDS = r"(?!\d|\.\d)"  # a point may end the sentence
_NUMBER = re.compile(
    # A minus after a word or a number is a subtraction, and no sign.
    r"(?P<sign>(?<![\w)\]])[-\u2212])?\$?(?P<minus>(?<=\$)-)?"
    rf"(?:(?P<mixed>\d+)[ ](?P<over>\d+)/(?P<under>\d+){_ENDS}"
    rf"|(?P<top>{_WHOLE})/(?P<bottom>\d+){_ENDS}"
    rf"|(?P<plain>{_WHOLE}(?:\.\d+)?(?:[eE][-+]?\d{{1,2}}(?![\d\w]))?|\.\d+))"
)
_LONGEST = 40
"""Characters; a longer number is no answer, and takes long to read."""
_DO: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Problem(TypedDict):
    """A problem as the harness' templates take it; ``kind`` is None where the data do not say."""

    question: str
    answer: str
    kind: str | None


def columns_of(table: Table) -> list[str]:
    """The columns that problems are made of.

    Raises:
        MissingColumn: there are no questions or no answers.
    """
    answer = ANSWER if has_column(table, ANSWER) else EQUATION
    others = [one for one in (BODY, NUMBERS, KIND) if has_column(table, one)]
    return [column(table, None, one) for one in (QUESTION, answer, *others)]


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
        named = str(row[kind]) if kind and row.get(kind) else None
        found.append(Problem(question=text, answer=written(value), kind=named))
    return found


def _text(row: dict[str, Any], question: str, body: str | None) -> str:
    asked = str(row.get(question) or "").strip()
    story = str(row.get(body) or "").strip() if body else ""
    if not story or asked.startswith(story):
        return asked
    return f"{story} {asked}" if asked else ""


def _filled(text: str, numbers: Any) -> str:
    given = numbers if isinstance(numbers, list) else str(numbers or "").split()
    known = [one for one in map(first_number, map(str, given)) if one is not None]

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
    text = repr(value) if isinstance(value, float) else str(value).strip()
    # Worked solutions (GSM8K) end with the answer after four hashes.
    return first_number(text.rpartition("####")[2])


def first_number(text: str) -> Fraction | None:
    """The first number of a text, as people write them: 1,234  $5  -2  3/4  1 1/2  .5  1e3."""
    for match in _NUMBER.finditer(text):
        if len(match[0]) > _LONGEST or not int(match["under"] or match["bottom"] or 1):
            continue
        if match["plain"]:
            value = Fraction(match["plain"].replace(",", ""))
        elif match["top"]:
            value = Fraction(int(match["top"].replace(",", "")), int(match["bottom"]))
        else:
            value = int(match["mixed"]) + Fraction(int(match["over"]), int(match["under"]))
        return -value if match["sign"] or match["minus"] else value
    return None


def written(value: Fraction) -> str:
    """A number as an answer shows it: 5, 0.75."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def result_of(equation: str) -> Fraction | None:
    """The result of a sum such as ``( 8.0 - 3.0 )`` or ``X=((22.0-14.0)/4.0)``; None of others."""
    text = re.sub(r"^\s*[A-Za-z]\s*=|=\s*[A-Za-z]\s*$", "", equation).strip()
    try:
        return _result(ast.parse(text[:1000], mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None  # the last two: nested too deep for ast


def _result(node: ast.expr) -> Fraction | None:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _result(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.BinOp) and type(node.op) in _DO:
        first, second = _result(node.left), _result(node.right)
        if first is not None and second is not None:
            return _DO[type(node.op)](first, second)
    return None
