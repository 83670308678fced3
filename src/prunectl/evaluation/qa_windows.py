"""Questions and windows of their texts as sequences of tokens, and answers as spans of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.data.tokens import Tokenizer
from prunectl.errors import InvalidOption
from prunectl.evaluation.inputs import AT_ONCE, Floats, Ints, Tokens, check, rows_of
from prunectl.evaluation.metric import Request
from prunectl.evaluation.squad import Question

QUESTION = 64
"""Tokens of a question at most, as in BERT's own program."""
ANSWER = 30
"""Tokens of an answer at most."""
LEAST = 16


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A question and a part of its text.

    Attributes:
        question: number of the question.
        tokens: of the sequence.
        first: the first token that is of the text.
        offsets: int64 [tokens of the text, 2], where each begins and ends, in characters of it.
        begin: the token that begins the sequence.
    """

    question: int
    tokens: Tokens
    first: int
    offsets: Ints
    begin: int

    def span(self, question: Question) -> tuple[int, int]:
        """The first and last token of the answer, in the sequence; both are the token that begins
        the sequence where this window does not hold the whole answer."""
        assert question.start is not None
        start, end = question.start, question.start + len(question.answers[0])
        starts, ends = self.offsets[:, 0], self.offsets[:, 1]
        if not (starts[0] <= start and ends[-1] >= end):
            return self.begin, self.begin
        low = int(np.searchsorted(starts, start, side="right")) - 1
        high = int(np.searchsorted(ends, end, side="left"))
        return self.first + low, self.first + max(low, high)

    def best(self, starts: Floats, ends: Floats) -> tuple[float, int, int]:
        """The span of the text with the largest sum of scores: the sum, and where it begins and
        ends, in characters.

        Args:
            starts, ends: [tokens of the sequence or more], scores of each to be the first and the
                last of the answer.
        """
        count = len(self.offsets)
        starts, ends = (one[self.first : self.first + count] for one in (starts, ends))
        # Rows: the first token; columns: how many tokens follow it.
        later = np.arange(count)[:, None] + np.arange(min(ANSWER, count))[None]
        sums = np.where(
            later < count, starts[:, None] + ends[np.minimum(later, count - 1)], -np.inf
        )
        low, more = np.unravel_index(int(sums.argmax()), sums.shape)
        return (
            float(sums[low, more]),
            int(self.offsets[low, 0]),
            int(self.offsets[low + more, 1]),
        )


def windows_of(
    request: Request,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    length: int,
    accepted: frozenset[str],
) -> list[Window]:
    """The windows of all texts, in order; windows of one text overlap by a third of ``length``.

    Raises:
        InvalidOption: windows are too short.
        MetricMismatch: the tokenizer does not say where in the text a token is.
        BadTokenizer, WrongTokenizer: it fails, or is another model's.
    """
    if length < LEAST:
        raise InvalidOption(f"--sequence-length {length} is too short for --metric qa: {LEAST}")
    if not tokenizer.inner.is_fast:
        why = "its tokenizer does not say where in a text its tokens are"
        raise request.mismatch(why)
    found: list[Window] = []
    for at in range(0, len(questions), AT_ONCE):
        some = questions[at : at + AT_ONCE]
        made = tokenizer(
            _cut(tokenizer, [one.question for one in some], min(QUESTION, length // 3)),
            [one.context for one in some],
            truncation="only_second",
            max_length=length,
            stride=length // 3,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners = made.pop("overflow_to_sample_mapping")
        offsets = made.pop("offset_mapping")
        for row, tokens in enumerate(rows_of(made, accepted)):
            of = np.array([one == 1 for one in made.sequence_ids(row)])
            first, count = int(of.argmax()), int(of.sum())
            if count:
                place = np.array(offsets[row][first : first + count], np.int64).reshape(-1, 2)
                begin = _begin(tokenizer.inner, tokens["input_ids"])
                found.append(Window(at + owners[row], tokens, first, place, begin))
    check(request, tokenizer, [one.tokens for one in found])
    return found


def _cut(tokenizer: Tokenizer, texts: list[str], most: int) -> list[str]:
    """The texts, cut to so many tokens."""
    made = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=True,
        max_length=most,
        return_offsets_mapping=True,
    )
    ends = [one[-1][1] if one else 0 for one in made["offset_mapping"]]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def _begin(inner: Any, ids: NDArray[np.int32]) -> int:
    """Where the token is that stands for the whole sequence; 0 where there is none."""
    found = [] if inner.cls_token_id is None else np.flatnonzero(ids == inner.cls_token_id).tolist()
    return int(found[0]) if found else 0
