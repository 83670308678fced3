"""Numbers in text, as people and models write them: 1,234  $5  -2  3/4  1 1/2  .5  5.0  1e3."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

TOLERANCE = 1e-4
"""Numbers are equal that differ by less than this, relative to the larger one if that is above 1,
but whole numbers only if they are the same. Answers of the known sets are rounded."""

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_ENDS = r"(?!\d|\.\d)"  # a point may end the sentence
_NUMBER = re.compile(
    # A minus behind a word or a number takes away, and is no sign.
    r"(?P<sign>(?<![\w)\]])[-\u2212])?\$?(?P<minus>(?<=\$)-)?"
    rf"(?:(?P<mixed>\d+)[ ](?P<over>\d+)/(?P<under>\d+){_ENDS}"
    rf"|(?P<top>{_WHOLE})/(?P<bottom>\d+){_ENDS}"
    rf"|(?P<plain>{_WHOLE}(?:\.\d+)?(?:[eE][-+]?\d{{1,2}}(?![\d\w]))?|\.\d+))"
)
_LONGEST = 40
"""Digits; more are no answer, and take long to read."""

_DO: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def numbers_in(text: str) -> list[Fraction]:
    """All numbers of a text, in order; exact."""
    found = (_value(one) for one in _NUMBER.finditer(text))
    return [one for one in found if one is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST:
        return None
    if match["mixed"]:
        if not int(match["under"]):
            return None
        value = int(match["mixed"]) + Fraction(int(match["over"]), int(match["under"]))
    elif match["top"]:
        if not int(match["bottom"]):
            return None
        value = Fraction(int(match["top"].replace(",", "")), int(match["bottom"]))
    else:
        value = Fraction(match["plain"].replace(",", ""))
    return -value if match["sign"] or match["minus"] else value


def equal(first: Fraction, second: Fraction) -> bool:
    """Whether two numbers are the same but for rounding, which whole numbers are not subject to."""
    if first.denominator == second.denominator == 1:
        return first == second
    return abs(first - second) <= Fraction(TOLERANCE) * max(Fraction(1), abs(first), abs(second))


def written(value: Fraction) -> str:
    """A number as an answer shows it: 5, 0.75."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def result_of(equation: str) -> Fraction | None:
    """The result of a sum such as ``( 8.0 - 3.0 )`` or ``X=((22.0-14.0)/4.0)``; None of others."""
    text = re.sub(r"^\s*[A-Za-z]\s*=|=\s*[A-Za-z]\s*$", "", equation).strip()
    try:
        return _result(ast.parse(text[:1000], mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


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
