"""Errors of data that a model is to read, raised on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prunectl.errors import PrunectlError

TOKENIZER = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights"


class BadData(PrunectlError):
    """Data that cannot be read, or that nothing can be made of."""

    def __init__(self, source: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"data {source}: {why}", hint=hint)
        self.source, self.why = source, why


class MissingColumn(BadData):
    """A table or dataset without a column that is needed; ``wanted`` is empty where any known name
    would do."""

    def __init__(
        self,
        source: str,
        wanted: Sequence[str],
        columns: Sequence[str],
        hint: str = "rename a column, or name it with the option for it",
    ) -> None:
        names = " or ".join(f"'{one}'" for one in wanted) or "that is known to hold the data"
        super().__init__(
            source, f"no column {names}; it has {', '.join(columns) or 'none'}", hint=hint
        )
        self.wanted, self.columns = tuple(wanted), tuple(columns)


class BadTokenizer(PrunectlError):
    """A checkpoint whose tokenizer is missing or does not load."""

    def __init__(self, model: str, why: str, *, hint: str = TOKENIZER) -> None:
        super().__init__(f"{model}: text needs the model's tokenizer, {why}", hint=hint)
        self.model, self.why = model, why


class WrongTokenizer(PrunectlError):
    """A tokenizer that belongs to another model.

    Attributes:
        largest: the largest token id that it made.
        vocabulary: how many ids the model has.
        unknown: share of the text's tokens that it does not know, 0..1.
    """

    def __init__(self, model: str, *, largest: int, vocabulary: int, unknown: float) -> None:
        if largest >= vocabulary:
            why = f"it makes token id {largest:,} and the model's vocabulary has {vocabulary:,}"
        else:
            why = f"it does not know {unknown:.0%} of the text's tokens"
        super().__init__(
            f"{model}: the wrong tokenizer, or text that it was not made for: {why}",
            hint="put the model's own tokenizer beside the weights, or give text in its language",
        )
        self.model, self.largest, self.vocabulary, self.unknown = (
            model,
            largest,
            vocabulary,
            unknown,
        )


def first_line(error: Exception) -> str:
    """What a library said, in short; the name of the error where it said nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


@contextmanager
def other_data(forms: str) -> Iterator[None]:
    """Where data are of no use, and no better hint is known, say what may be given instead."""
    try:
        yield
    except BadData as error:
        error.hint = error.hint or forms
        raise
