"""Tables: rows of the splits of a file, a folder or a dataset.

No code of a dataset runs, and no more than ``ROWS`` rows or ``BYTES`` of a split are held.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from blake3 import blake3

from prunectl.data import datasets, images, table_files
from prunectl.data.errors import BadData, MissingColumn, file_errors
from prunectl.data.source import DataSource, SourceKind, parse_source
from prunectl.data.table_files import Note, Row
from prunectl.errors import InvalidOption
from prunectl.events import OnEvent, ignore_events

ROWS = 500_000
"""Rows of a split that are read at most; MNLI, among the largest, has 392,702."""
BYTES = 1 << 30
"""Bytes of values in a split that are read at most."""

TABLE_FORMS = (
    "a CSV, TSV, JSONL, JSON or Parquet file, a folder with such files, or "
    "hf:DATASET[:CONFIG[:SPLIT]]"
)
"""What names a table, for messages and help."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one split.

    Attributes:
        name: what messages call it.
        columns: names of all columns that a row has, in order.
        rows: values by column; cells of a CSV are text, an image is a path or the bytes of its
            file. A JSON row has only the columns that it names.
        facts: for a metric's record: what was named (``kind``, ``files``, ``dataset`` ...),
            ``split``, ``rows``, and, where they are known, ``revision`` and, of columns of classes,
            ``classes``.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[Row]
    facts: dict[str, Any] = field(default_factory=dict)


def read_splits(
    text: str,
    option: str,
    *,
    skip: Collection[str] = (),
    note: Note = lambda text: None,
    on_event: OnEvent = ignore_events,
) -> dict[str, Table]:
    """Read all splits of the data that ``text`` names.

    ``text`` is one of:

    - a CSV, TSV, JSONL, JSON or Parquet file: the split that its name says (``train.csv``,
      ``dev-v1.1.json``), else ``all``;
    - a folder with such files, or with folders of them named for splits;
    - a folder of images with a folder for each class, or with such folders for each split;
    - ``hf:DATASET[:CONFIG[:SPLIT]]``.

    Files named ``val`` or ``valid`` are of the split ``validation``, and so are those named
    ``dev``, unless there are both.

    Args:
        option: what messages call it: ``--data``.
        skip: names of splits to leave unread.

    Raises:
        InvalidOption: a form that is not known, or a file that is not there.
        BadData: it cannot be read, or has no rows.
        MissingLibrary: ``datasets`` is not installed, which reads Parquet and the Hub.
        AccessDenied, HubUnreachable: as for a model.
    """
    is_dataset = text.startswith("hf:")
    source = parse_source(text if is_dataset else f"hf:{text}", option)
    path = source.local_dataset
    if source.column or (path is not None and source.config) or not (is_dataset or path):
        is_path = ":" not in text
        why = "there is no such file or folder" if is_path else "it names no table"
        raise InvalidOption(f"{option} {text}: {why}", hint=f"it takes {TABLE_FORMS}")
    if path is None or datasets.is_saved(path):
        found = _of_dataset(source, skip, note, on_event)
    elif not path.is_dir():
        found = {table_files.split_of(path) or "all": _of_files(text, [path], note)}
    else:
        found = _of_folder(text, path, skip, note)
    if source.split:
        if source.split not in found:
            raise BadData(text, f"no split '{source.split}'; it has {', '.join(found)}")
        found = {source.split: found[source.split]}
    if "dev" in found and "validation" not in found:
        found["validation"] = found.pop("dev")
    for name, one in found.items():
        one.facts.update(split=name, rows=len(one.rows))
    return found


def _of_dataset(
    source: DataSource, skip: Collection[str], note: Note, on_event: OnEvent
) -> dict[str, Table]:
    splits, revision = datasets.open_splits(source)
    found = {}
    for split, rows in splits.items():
        if split != source.split if source.split else split in skip:
            continue
        facts = source.to_json()
        if revision:
            facts["revision"] = revision
        if classes := datasets.classes_of(rows):
            facts["classes"] = classes
        each = datasets.table_rows(rows, source, split, on_event)
        found[split] = _gather(f"{source.name} ({split})", each, facts, note)
    if not found:
        wanted = source.split or "of use"
        raise BadData(source.name, f"no split '{wanted}'; it has {', '.join(splits)}")
    return found


def _of_folder(name: str, folder: Path, skip: Collection[str], note: Note) -> dict[str, Table]:
    splits = table_files.find_splits(folder)
    if splits:
        return {
            split: _of_files(f"{name} ({split})", files, note)
            for split, files in splits.items()
            if split not in skip
        }
    facts = {"kind": "images", "folder": folder.resolve().name}
    return {
        split: _gather(f"{name} ({split})", rows, dict(facts), note)
        for split, rows in images.find_classes(folder).items()
        if split not in skip
    }


def _of_files(name: str, files: Sequence[Path], note: Note) -> Table:
    facts = {"kind": "table", "files": [path.name for path in files]}
    rows = chain.from_iterable(_rows_of_file(path, note) for path in files)
    return _gather(name, rows, facts, note)


def _rows_of_file(path: Path, note: Note) -> Iterator[Row]:
    if path.suffix.lower() not in (".parquet", ".arrow"):
        return table_files.rows_of(path, note)
    source = DataSource(SourceKind.HF, (), str(path))
    splits, _ = datasets.open_splits(source)
    return datasets.table_rows(splits["train"], source, "train")  # as a single file is called


def _gather(name: str, rows: Iterable[Row], facts: dict[str, Any], note: Note) -> Table:
    """Rows up to the limits."""
    kept: list[Row] = []
    columns: dict[str, None] = {}
    size = 0
    for row in rows:
        try:
            size += _size(row)
        except UnicodeEncodeError:  # JSON can write halves of characters, which no tokenizer takes
            raise BadData(
                name, f"row {len(kept) + 1:,} holds half of a surrogate pair, which is no text"
            ) from None
        if len(kept) == ROWS or size > BYTES:
            note(f"{name}: only its first {len(kept):,} rows are read")
            break
        columns |= dict.fromkeys(row)
        kept.append(row)
    if not kept:
        raise BadData(name, "it has no rows")
    return Table(name, tuple(columns), kept, facts)


def _size(value: Any) -> int:
    """Bytes of texts and files in a value, others as 8 each."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(str(key)) + _size(one) for key, one in value.items())
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8


# --- what metrics ask of tables -----------------------------------------------------------------


def pick(splits: Mapping[str, Table], wanted: Sequence[str], name: str) -> Table:
    """The first split of those ``wanted`` that is there, or the only split.

    Raises:
        BadData: there are several splits, and none of them is wanted.
    """
    found = next((splits[one] for one in wanted if one in splits), None)
    if found is None and len(splits) != 1:
        raise BadData(name, f"no split {' or '.join(wanted)}; it has {', '.join(splits)}")
    return found or next(iter(splits.values()))


def column(table: Table, wanted: str | None, known: Sequence[str]) -> str:
    """The column that is asked for, or the first that is there of those ``known``.

    Case is ignored where no name matches exactly.

    Raises:
        MissingColumn: there is none.
    """
    names = [wanted] if wanted else list(known)
    folded = {one.casefold(): one for one in reversed(table.columns)}
    for name in names:
        if name in table.columns:
            return name
        if name.casefold() in folded:
            return folded[name.casefold()]
    raise MissingColumn(table.name, names, table.columns)


def has_column(table: Table, known: Sequence[str]) -> bool:
    """Whether :func:`column` finds one."""
    return bool({one.casefold() for one in known} & {one.casefold() for one in table.columns})


def digest_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """BLAKE3 of rows in order: of each, the JSON list of its cells and a line feed.

    In place of an image stands the hash of its file.
    """
    hasher = blake3()
    for row in rows:
        cells = [row.get(one) for one in columns]
        text = json.dumps(cells, ensure_ascii=False, default=_stand_in)
        hasher.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return hasher.hexdigest()


def _stand_in(value: Any) -> str:
    """Text for a value that JSON has no form for."""
    if isinstance(value, Path):
        with file_errors(value):
            value = value.read_bytes()
    return blake3(value).hexdigest() if isinstance(value, bytes) else str(value)
