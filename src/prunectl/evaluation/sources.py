"""What ``--data`` means: a text, or a table with its splits."""

from __future__ import annotations

from collections.abc import Collection

from blake3 import blake3

from prunectl import demo
from prunectl.data import datasets, text
from prunectl.data.errors import BadData, other_data
from prunectl.data.source import DataSource, SourceKind, parse_source
from prunectl.data.tables import TABLE_FORMS, Table, read_splits
from prunectl.errors import InvalidOption
from prunectl.evaluation.errors import NoData
from prunectl.evaluation.metric import Request

_ALL = 1 << 62
"""Bytes to read: all there are."""


def source_of(request: Request, *, own: bool = False) -> DataSource:
    """The data that were named, or else the demo model's held-out text.

    Args:
        own: whether models with the demo model's tokenizer need no data: they get its text.

    Raises:
        NoData: none are named.
        InvalidOption: a form that is not known, or a file that is not there.
    """
    given = request.settings.data
    reads_demo = own and demo.has_its_tokenizer(request.checkpoint.folder)
    if given == (demo.NAME,) or (not given and reads_demo):
        return DataSource(SourceKind.DEMO, (demo.heldout_text(),))
    if not given:
        raise NoData(request.settings.metric, request.checkpoint.model)
    return parse_source(given, "--data")


def the_data(request: Request) -> str:
    """The one table that a metric was given.

    Raises:
        NoData, InvalidOption: there is none, or there are several.
    """
    given = request.settings.data
    if not given:
        raise NoData(
            request.settings.metric, request.checkpoint.model, f"--data takes {TABLE_FORMS}"
        )
    if len(given) > 1:
        raise InvalidOption(
            f"--data {' and '.join(given[:3])}: --metric {request.settings.metric} takes one",
            hint="put several tables into a folder, a file for each split",
        )
    return given[0]


def splits_of(
    request: Request, text: str, option: str = "--data", *, skip: Collection[str] = ()
) -> dict[str, Table]:
    """All splits that ``text`` names; see :func:`prunectl.data.tables.read_splits`."""
    note = request.notes.append
    with other_data(f"{option} takes {TABLE_FORMS}"):
        return read_splits(text, option, skip=skip, note=note, on_event=request.on_event)


def read_text(request: Request, source: DataSource, needed: int) -> tuple[str, ...]:
    """The documents of a source, in its own order.

    Of a dataset, rows in their own order, blank ones included, until there are ``needed``
    bytes: the lines of WikiText are such rows. Of files all of it.

    Raises:
        BadData: it cannot be read, or holds no text.
        InvalidOption: a source of something else than text.
    """
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
        raise InvalidOption(f"--data {source.kind} is not text", hint="text:FILE or hf:DATASET is")
    if not any(one.strip() for one in found.texts):
        raise BadData(source.name, "it holds no text")
    return found.texts


def digest(texts: tuple[str, ...]) -> str:
    """BLAKE3 of documents in order, each as UTF-8 with a zero byte after it."""
    hasher = blake3()
    for one in texts:
        hasher.update(one.encode("utf-8", "surrogatepass") + b"\0")
    return hasher.hexdigest()
