"""Errors of calibration, raised on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunectl.device import is_out_of_memory
from prunectl.errors import CalibrationFailed, PrunectlError, UnknownArchitecture

if TYPE_CHECKING:
    import torch

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

    def __init__(self, model: str, why: str, *, hint: str = "") -> None:
        super().__init__(
            f"{model}: text needs the model's tokenizer, {why}",
            hint=hint
            or "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the "
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


class DeviceFull(CalibrationFailed):
    """A device's memory does not hold what one block needs.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        what: it was to hold.
        dtype: that the model runs in.
    """

    def __init__(self, device: str, what: str, dtype: str) -> None:
        where = "this machine" if device == "cpu" else device
        less = "a lower --sequence-length takes less"
        if device == "cpu":
            hint = f"{less}, and so does --method wanda"
        else:
            other = f"--device cpu --dtype {dtype}"
            hint = f"the same command with {other} goes on from the finished blocks; {less}"
        super().__init__(f"{where} has too little free memory for {what}", hint=hint)
        self.device, self.what, self.dtype = device, what, dtype


@contextmanager
def memory_errors(device: torch.device, dtype: torch.dtype, what: str) -> Iterator[None]:
    """Turn torch's ways to say that there is no memory into :class:`DeviceFull`."""
    try:
        yield
    except (RuntimeError, MemoryError, UnknownArchitecture) as error:
        if not is_out_of_memory(error.__cause__ or error):
            raise
        raise DeviceFull(str(device), what, str(dtype).removeprefix("torch.")) from error
