"""Errors of calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunectl.data.errors import TOKENIZER, BadTokenizer, other_data
from prunectl.device import is_out_of_memory
from prunectl.errors import CalibrationFailed, UnknownArchitecture
from prunectl.methods.spec import Needs
from prunectl.methods.table import needing
from prunectl.numbers import listed

if TYPE_CHECKING:
    import torch

_SOURCES = "give other data: --calibration text:FILE, hf:DATASET, or random"


@contextmanager
def data_errors() -> Iterator[None]:
    """Add to an error about data what else a calibration accepts, such as random samples."""
    try:
        with other_data(_SOURCES):
            yield
    except BadTokenizer as error:
        if error.hint == TOKENIZER:
            error.hint += ", or use --calibration random"
        raise


class DeviceFull(CalibrationFailed):
    """A device's memory does not hold what one block needs.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        what: that did not fit.
        dtype: of the forward.
    """

    def __init__(self, device: str, what: str, dtype: str) -> None:
        where = "this machine" if device == "cpu" else device
        less = "a lower --sequence-length takes less"
        if device == "cpu":
            norms = listed(needing(Needs.NORMS))
            hint = f"{less}, and so does --method {norms}; --reconstruct takes the most"
        else:
            other = f"--device cpu --dtype {dtype}"
            hint = f"the same command with {other} goes on from the finished blocks; {less}"
        super().__init__(f"{where} has too little free memory for {what}", hint=hint)
        self.device, self.what, self.dtype = device, what, dtype


def not_finite(block: str) -> CalibrationFailed:
    """The error of a block whose outputs hold NaN or Inf."""
    return CalibrationFailed(
        f"block {block} puts out NaN or Inf",
        hint="--dtype float32 has more range; is the checkpoint damaged?",
    )


def in_short(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters; its type if there is none."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


@contextmanager
def memory_errors(device: torch.device, dtype: torch.dtype, what: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into :class:`DeviceFull`."""
    try:
        yield
    except (RuntimeError, MemoryError, UnknownArchitecture) as error:
        if not is_out_of_memory(error.__cause__ or error):
            raise
        raise DeviceFull(str(device), what, str(dtype).removeprefix("torch.")) from error
