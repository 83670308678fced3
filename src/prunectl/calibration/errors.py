"""Errors of calibration data, raised on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from prunectl.errors import PrunectlError

_SOURCES = "give other data: --calibration text:FILE, hf:DATASET, or random"


class BadCalibration(PrunectlError):
    """Calibration data that cannot be read, or that no sample can be made of."""

    def __init__(self, source: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"calibration data {source}: {why}", hint=hint or _SOURCES)
        self.source, self.why = source, why


class NoSuchColumn(BadCalibration):
    """A dataset without the column that was asked for, or without one that is known."""

    def __init__(self, source: str, column: str | None, columns: Sequence[str]) -> None:
        asked = f"no column '{column}'" if column else "no column that is known to hold the data"
        super().__init__(
            source,
            f"{asked}; it has {', '.join(columns) or 'none'}",
            hint="name the column: hf:DATASET:CONFIG:SPLIT:COLUMN, where CONFIG and SPLIT may "
            "be empty",
        )
        self.column, self.columns = column, tuple(columns)


class BadTokenizer(PrunectlError):
    """A checkpoint whose tokenizer is missing or does not load."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"{model}: text needs the model's tokenizer, {why}",
            hint="put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the "
            "weights, or use --calibration random",
        )
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
