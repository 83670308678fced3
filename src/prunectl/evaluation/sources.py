"""What ``--data`` means: text that is read, with the words of an evaluation where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blake3 import blake3

from prunectl import demo
from prunectl.calibration import datasets, text
from prunectl.calibration.errors import BadCalibration, BadTokenizer
from prunectl.calibration.source import CalibrationSource, SourceKind, parse_calibration
from prunectl.errors import InvalidOption
from prunectl.evaluation.errors import FORMS, BadData, NoData
from prunectl.evaluation.metric import Request

_TOKENIZER = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights"
_ALL = 1 << 62
"""Bytes to read: all there are."""


@contextmanager
def data_errors() -> Iterator[None]:
    """What is wrong with calibration data is said of the data of an evaluation."""
    try:
        yield
    except BadCalibration as error:
        hint = error.hint if "--calibration" not in error.hint else FORMS
        raise BadData(error.source, error.why, hint=hint) from None
    except BadTokenizer as error:
        if "--calibration" in error.hint:
            error.hint = _TOKENIZER
        raise


def source_of(request: Request, *, own: bool = False) -> CalibrationSource:
    """The data that were named; where none are, the demo model's held-out text, if ``own``.

    Raises:
        NoData: none are named.
        InvalidOption: a form that is not known, or a file that is not there.
    """
    given = request.settings.data
    if given == (demo.NAME,) or (not given and own and request.checkpoint.kind == "demo"):
        return CalibrationSource(SourceKind.DEMO, (demo.heldout_text(),))
    if not given:
        raise NoData(request.settings.metric, request.checkpoint.model)
    return parse_calibration(given, "--data")


def read_text(request: Request, source: CalibrationSource, needed: int) -> tuple[str, ...]:
    """The documents of a source, in its own order.

    Of a dataset, rows in their own order, blank ones included, until there are ``needed``
    bytes: the lines of WikiText are such rows. Of files all of it.

    Raises:
        BadData: it cannot be read, or holds no text.
        InvalidOption: a source of something else than text.
    """
    with data_errors():
        if source.kind is SourceKind.HF:
            rows = datasets.open_rows(source, None, datasets.TEXT_COLUMNS)
            request.facts |= rows.facts()
            found = datasets.read_rows(rows, source, needed, request.on_event, blank=True)
            if not found.is_all:
                request.notes.append(
                    f"{source.name}: only its first {len(found.texts):,} rows are read"
                )
        elif source.kind in (SourceKind.TEXT, SourceKind.DEMO):
            found = text.read_files(source.files, _ALL, request.settings.seed, request.on_event)
        else:
            raise InvalidOption(
                f"--data {source.kind} is not text", hint="text:FILE or hf:DATASET is"
            )
    if not any(one.strip() for one in found.texts):
        raise BadData(source.name, "it holds no text")
    return found.texts


def digest(texts: tuple[str, ...]) -> str:
    """BLAKE3 of documents in order, each as UTF-8 with a zero byte behind it."""
    hasher = blake3()
    for one in texts:
        hasher.update(one.encode("utf-8", "surrogatepass") + b"\0")
    return hasher.hexdigest()
