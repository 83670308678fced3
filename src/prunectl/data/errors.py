"""Errors of data, raised on purpose; and what turns the errors of files and libraries into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prunectl.errors import PrunectlError

TOKENIZER = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) next to the weights"


class BadData(PrunectlError):
    """Data that cannot be read, or that no sample can be made of."""

    def __init__(self, source: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"data {source}: {why}", hint=hint)
        self.source, self.why = source, why


class MissingColumn(BadData):
    """A table without a column that is needed; ``wanted`` is empty if any known name would do."""

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
            hint="put the model's own tokenizer next to the weights, or give text in its language",
        )
        self.model, self.largest = model, largest
        self.vocabulary, self.unknown = vocabulary, unknown


def first_line(error: Exception) -> str:
    """The first line of a library's message, cut to 200 characters; else the error's name."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Raise :class:`BadData` where a file or folder cannot be read, or is not UTF-8 text."""
    try:
        yield
    except OSError as error:
        raise BadData(str(error.filename or path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadData(
            str(path),
            f"not UTF-8 text (byte {error.object[error.start]:#04x})",
            hint="convert it: iconv -f ENCODING -t UTF-8 FILE",
        ) from None


@contextmanager
def other_data(forms: str) -> Iterator[None]:
    """Name the forms that data may have in each :class:`BadData` that has no hint."""
    try:
        yield
    except BadData as error:
        error.hint = error.hint or forms
        raise
