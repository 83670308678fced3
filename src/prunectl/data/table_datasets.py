"""Rows of all splits of a dataset, by the optional library ``datasets``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunectl.data.datasets import commit_of, dataset_errors, image_bytes, library
from prunectl.data.errors import BadData
from prunectl.data.source import DataSource, SourceKind
from prunectl.data.text import READING
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted

BINARY = {".parquet": "parquet", ".arrow": "arrow"}
"""Formats of files that only the library reads."""

_STEP = 1_000


@dataclass(slots=True)
class Splits:
    """Datasets by the names of their splits, and their commit on the Hub."""

    splits: dict[str, Any]
    revision: str | None


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    # Where it cannot be looked into, it is no such folder to these, and Path's would raise.
    one = all(os.path.isfile(path / name) for name in ("state.json", "dataset_info.json"))  # noqa: PTH113
    return one or os.path.isfile(path / "dataset_dict.json")  # noqa: PTH113


def open_splits(source: DataSource) -> Splits:
    """A dataset of the Hub, or what ``save_to_disk`` wrote; no row is read.

    Raises:
        MissingLibrary: ``datasets`` is not installed.
        BadData, AccessDenied, HubUnreachable: it cannot be opened.
    """
    datasets = library(source.name)
    with dataset_errors(source):
        local = source.local_dataset
        if local is not None:
            found = datasets.load_from_disk(str(local))
            if not isinstance(found, dict):
                found = {str(found.split or "train"): found}
            return Splits({str(key): one.to_iterable_dataset() for key, one in found.items()}, None)
        builder = datasets.load_dataset_builder(source.dataset, source.config)
        splits = {str(key): one for key, one in builder.as_streaming_dataset().items()}
    return Splits(splits, commit_of(builder))


def file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet or Arrow file.

    Raises:
        MissingLibrary: ``datasets`` is not installed.
        BadData: it cannot be read.
    """
    source = DataSource(SourceKind.HF, (), str(path))
    datasets = library(path.name)
    with dataset_errors(source):
        kind = BINARY[path.suffix.lower()]
        builder = datasets.load_dataset_builder(kind, data_files=str(path.resolve()))
        rows = next(iter(builder.as_streaming_dataset().values()))
    yield from _each(rows, source)


def rows_of(
    rows: Any, source: DataSource, split: str, on_event: OnEvent
) -> Iterator[dict[str, Any]]:
    """Rows of a split; images are not decoded.

    Raises:
        BadData: a file is broken.
    """
    known = (rows.info.splits or {}).get(split)
    total = int(getattr(known, "num_examples", 0) or 0)
    if total:
        on_event(PhaseStarted(READING, total, "rows"))
    try:
        for number, row in enumerate(_each(rows, source), 1):
            yield row
            if total and not number % _STEP:
                on_event(Advanced(READING, _STEP, split))
    finally:  # also where no more are wanted
        if total:
            on_event(PhaseDone(READING))


def classes_of(rows: Any) -> dict[str, list[str]]:
    """Names of classes of the columns that hold a class by its number."""
    features = getattr(rows, "features", None) or {}
    named = {name: getattr(one, "names", None) for name, one in features.items()}
    return {name: list(names) for name, names in named.items() if names}


def _each(rows: Any, source: DataSource) -> Iterator[dict[str, Any]]:
    import datasets

    features = rows.features or {}
    images = [name for name, one in features.items() if isinstance(one, datasets.Image)]
    with dataset_errors(source):
        for name in images:
            rows = rows.cast_column(name, datasets.Image(decode=False))
    iterator = iter(rows)
    while True:
        with dataset_errors(source):
            row = next(iterator, None)
            if row is None:
                return
            row |= {name: _image(row[name], source) for name in images}
        yield row


def _image(value: dict[str, Any] | None, source: DataSource) -> bytes:
    """The bytes of an image file; a row leads to no file of the user's, and to no server."""
    data = image_bytes(value or {}, source)
    if not data:
        raise BadData(source.name, "a row has no image")
    return data
