"""Tables: files, folders, datasets; each split of them as rows.

Only what is data is read: no code of a dataset runs, and of each split no more than ``ROWS`` rows
or ``BYTES`` of text are held.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from prunectl.data import table_datasets, table_files, table_images
from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.source import DataSource, SourceKind, parse_source
from prunectl.data.table_files import Note
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
"""What names a table."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that were read.

    Attributes:
        name: what messages call it.
        columns: all names that a row has, in order.
        rows: by column; cells of a CSV are text. A column that a row lacks is not in it. Images
            are a path, or the bytes of an image file.
        facts: for a metric's record: what was named (``kind``, ``files``, ``dataset`` ...),
            ``split``, ``rows``, and, where they are known, ``revision`` and, of columns of classes,
            ``classes``.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def read_splits(
    text: str,
    option: str,
    *,
    skip: Collection[str] = (),
    note: Note = lambda text: None,
    on_event: OnEvent = ignore_events,
) -> dict[str, Table]:
    """All splits that ``text`` names, by their names.

    ``all`` is a split whose name does not say what it is for.

    ``text`` is a CSV, TSV, JSONL, JSON or Parquet file, which is a split of
    its own name (``train.csv``, ``dev-v1.1.json``), else ``all``; a folder with such files, or with
    folders of them named for splits; a folder of images, in a folder a class, with folders of the
    splits above them or not; or ``hf:DATASET[:CONFIG[:SPLIT]]``. Files named ``val`` or ``valid``
    are of ``validation``, and so are those named ``dev``, unless there are both.

    Args:
        option: what messages call it: ``--data``.
        skip: names of splits that are not wanted, and left unread.
        note: told of what is left out.

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
    if path is None or table_datasets.is_saved(path):
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


def pick(splits: Mapping[str, Table], wanted: Sequence[str], name: str) -> Table:
    """The first split that is there of those wanted, or the only one.

    Raises:
        BadData: several are there, and none of them is wanted.
    """
    found = next((splits[one] for one in wanted if one in splits), None)
    if found is None and len(splits) != 1:
        raise BadData(name, f"no split {' or '.join(wanted)}; it has {', '.join(splits)}")
    return found or next(iter(splits.values()))


def column(table: Table, wanted: str | None, known: Sequence[str]) -> str:
    """The column that was asked for, or the first that is there of those ``known``.

    Upper and lower case are one where no name is the same to the letter.

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
    """BLAKE3 of rows in order: each the JSON list of its cells, with a line feed behind it.

    An image is stood for by the hash of its file.
    """
    hasher = blake3()
    for row in rows:
        cells = [row.get(one) for one in columns]
        text = json.dumps(cells, ensure_ascii=False, default=_stand_in)
        hasher.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return hasher.hexdigest()


def _stand_in(value: Any) -> str:
    """What JSON does not know, as text."""
    if isinstance(value, Path):
        try:
            value = value.read_bytes()
        except OSError as error:
            raise BadData(str(value), f"cannot be read: {error.strerror}") from None
    return blake3(value).hexdigest() if isinstance(value, bytes) else str(value)


def _of_files(name: str, files: Sequence[Path], note: Note) -> Table:
    facts = {"kind": "table", "files": [path.name for path in files]}

    def rows() -> Iterable[dict[str, Any]]:
        for path in files:
            if path.suffix.lower() in table_datasets.BINARY:
                yield from table_datasets.file_rows(path)
            else:
                yield from table_files.rows_of(path, note)

    return _gather(name, rows(), facts, note)


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
        for split, rows in table_images.find_splits(folder).items()
        if split not in skip
    }


def _of_dataset(
    source: DataSource, skip: Collection[str], note: Note, on_event: OnEvent
) -> dict[str, Table]:
    assert source.kind is SourceKind.HF
    opened = table_datasets.open_splits(source)
    if source.split:
        opened.splits = {key: one for key, one in opened.splits.items() if key == source.split}
    found = {}
    for split, rows in opened.splits.items():
        if split in skip and split != source.split:
            continue
        facts = source.to_json()
        if opened.revision:
            facts["revision"] = opened.revision
        if classes := table_datasets.classes_of(rows):
            facts["classes"] = classes
        name = f"{source.name} ({split})"
        each = table_datasets.rows_of(rows, source, split, on_event)
        found[split] = _gather(name, each, facts, note)
    if not found:
        raise BadData(source.name, f"no split '{source.split or 'of use'}'")
    return found


def _gather(name: str, rows: Iterable[dict[str, Any]], facts: dict[str, Any], note: Note) -> Table:
    """Rows up to the caps.

    Raises:
        BadData: there are none.
    """
    kept: list[dict[str, Any]] = []
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
    """Bytes of texts and files in a value, others as 8 each.

    Raises:
        UnicodeEncodeError: a text that is none.
    """
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(str(key)) + _size(one) for key, one in value.items())
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8
