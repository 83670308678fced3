"""Questions about a text that holds the answer, as in SQuAD 1.1, and its scores of answers.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (arXiv 1606.05250).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.tables import Table, column, has_column
from prunectl.evaluation.metric import Request

ANSWERS = ("answers", "paragraphs")
"""Columns that hold the answers: of rows, and of SQuAD's own JSON."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a text.

    Attributes:
        answers: texts that are right, one at least.
        start: where the first answer begins in ``context``, in characters; None if it is not there.
    """

    question: str
    context: str
    answers: tuple[str, ...]
    start: int | None


def questions_of(request: Request, table: Table) -> list[Question]:
    """The questions that have an answer: of SQuAD's own JSON, or of rows with ``question``,
    ``context`` and ``answers`` (texts, or texts with ``answer_start``).

    Raises:
        MissingColumn: a column is not there.
        BadData: no question has an answer, or a cell holds something else.
    """
    rows = list(_rows(table))
    found = [one for row in rows if (one := _question(table, row)) is not None]
    if not found:
        raise BadData(table.name, f"none of its {len(rows):,} questions has an answer")
    if lost := len(rows) - len(found):
        request.notes.append(f"{table.name}: {lost:,} questions without an answer are left out")
    return found


def _rows(table: Table) -> Iterator[dict[str, Any]]:
    """A row a question."""
    if not has_column(table, ["paragraphs"]):
        names = [column(table, None, [name]) for name in ("question", "context", "answers")]
        for row in table.rows:
            yield dict(zip(("question", "context", "answers"), map(row.get, names), strict=True))
        return
    for article in table.rows:
        for paragraph in _objects(table, article, "paragraphs"):
            for one in _objects(table, paragraph, "qas"):
                yield {**one, "context": paragraph.get("context")}


def _objects(table: Table, holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = holder.get(name)
    if found is None:
        raise MissingColumn(table.name, [name], list(holder))
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadData(table.name, f"'{name}' is no list of objects")
    return found


def _question(table: Table, row: dict[str, Any]) -> Question | None:
    question, context = row.get("question"), row.get("context")
    if not isinstance(question, str) or not isinstance(context, str):
        wrong = "context" if isinstance(question, str) else "question"
        raise BadData(table.name, f"'{wrong}' holds {row.get(wrong)!r:.40}, not text")
    texts, starts = _answers(table, row.get("answers"))
    if not texts or not question.strip() or not context.strip():
        return None
    first = texts[0]
    start = starts[0] if starts else context.find(first)
    is_there = type(start) is int and start >= 0 and context[start : start + len(first)] == first
    return Question(question.strip(), context, tuple(texts), start if is_there else None)


def _answers(table: Table, value: Any) -> tuple[list[str], list[Any]]:
    """Texts, and where each begins; no places where the data name none."""
    texts: Any = value
    starts: Any = []
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start") or []
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        texts = [one.get("text") for one in value]
        starts = [one.get("answer_start") for one in value]
    texts = [texts] if isinstance(texts, str) else texts
    if texts is None:
        return [], []
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise BadData(
            table.name,
            f"'answers' holds {value!r:.40}, not texts",
            hint='answers are {"text": [...], "answer_start": [...]}, or a list of texts',
        )
    return texts, starts if isinstance(starts, list) and len(starts) == len(texts) else []


# --- the official scores --------------------------------------------------------------------------


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, answers: Sequence[str]) -> float:
    """1 if an answer equals a right one, when both are normalized."""
    return float(any(normalized(answer) == normalized(one) for one in answers))


def f1(answer: str, answers: Sequence[str]) -> float:
    """The largest F1 of the words that an answer shares with a right one, 0..1."""
    return max(_f1(normalized(answer).split(), normalized(one).split()) for one in answers)


def _f1(answer: list[str], right: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(right)).values())
    return 2 * shared / (len(answer) + len(right)) if shared else 0.0
