"""Rows of CSV, TSV, JSONL and JSON files, and which split a file is of."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from prunectl.data.errors import BadData
from prunectl.data.source import TABLES
from prunectl.data.text import LINE

Row = dict[str, Any]
Note = Callable[[str], None]

DOCUMENT = 256 << 20
"""Bytes at most of a JSON document, which is read as a whole."""
_BAD_SHARE = 100
"""One row of so many may have too few or too many cells, as in some sets of GLUE."""

_SPLITS = {"train": "train", "training": "train", "test": "test", "dev": "dev",
           "val": "validation", "valid": "validation", "validation": "validation"}  # fmt: skip
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_WORDS = re.compile(r"[-_. ]+")
_VARIANTS = ("matched", "mismatched")
_LISTS = ("data", "rows", "examples", "instances")
_LETTERS = ("A", "B", "C", "D")


def split_of(path: Path) -> str | None:
    """The split that a file is of by its first or last word, or the folder it is in.

    ``dev_matched.tsv`` (MNLI) is ``validation_matched``.
    """
    words = _WORDS.split(_SHARD.sub("", path.stem).casefold())
    if words[0] in _SPLITS:
        split = _SPLITS[words[0]]
        if words[1:2] and words[1] in _VARIANTS:
            return f"{'validation' if split == 'dev' else split}_{words[1]}"
        return split
    return _SPLITS.get(words[-1]) or _SPLITS.get(path.parent.name.casefold())


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Files of tables in a folder by their splits: on top, and in folders that are named for one.

    A folder ``data`` is looked into where there is nothing else. Empty where there are no tables.

    Raises:
        BadData: it cannot be read, or which file is of which split is not clear.
    """
    try:
        inside = sorted(folder.iterdir())
        folders = [one for one in inside if one.is_dir() and one.name.casefold() in _SPLITS]
        tables = _tables(inside) + [path for one in folders for path in _tables(one.iterdir())]
    except OSError as error:
        raise BadData(str(folder), f"cannot be read: {error.strerror}") from None
    if not tables and not folders and (folder / "data").is_dir():
        return find_splits(folder / "data")
    found: dict[str, list[Path]] = {}
    for path in tables:
        if split := split_of(path):
            found.setdefault(split, []).append(path)
    if tables and not found:
        if len(tables) > 1:
            names = ", ".join(path.name for path in tables[:4])
            raise BadData(
                str(folder),
                f"which of its tables is meant? {names}",
                hint="name the file, or call files train.csv, validation.csv and test.csv",
            )
        found["all"] = tables
    for split, files in found.items():
        kinds = {path.suffix.lower() for path in files}
        if len(kinds) > 1:
            raise BadData(str(folder), f"its split '{split}' is there as {' and as '.join(kinds)}")
    return found


def _tables(paths: Any) -> list[Path]:
    return sorted(one for one in paths if one.suffix.lower() in TABLES and one.is_file())


def rows_of(path: Path, note: Note) -> Iterator[Row]:
    """Rows of a file in its order; ``note`` is told of what was left out.

    In a TSV, quotes are characters like others.

    Raises:
        BadData: it is not the table that its name says, or is too large.
    """
    kind = path.suffix.lower()
    if not path.is_file():  # a pipe would never end
        raise BadData(str(path), "no regular file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind in (".csv", ".tsv"):
                yield from _cells(file, path, note)
            elif kind == ".jsonl":
                yield from _json_lines(file, path)
            elif kind == ".json":
                yield from _document(file, path)
            else:
                raise BadData(str(path), f"a file that ends in '{path.suffix}' is no table")
    except OSError as error:
        raise BadData(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadData(
            str(path),
            f"not UTF-8 text (byte {error.object[error.start]:#04x})",
            hint="convert it: iconv -f ENCODING -t UTF-8 FILE",
        ) from None
    except (ValueError, RecursionError) as error:
        first = str(error).split("\n")[0]
        raise BadData(str(path), f"not a table that can be read: {first[:200]}") from None


def _json_lines(file: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(file, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise BadData(str(path), f"line {number:,} is no JSON: {why[:200]}") from None
        yield _an_object(row, path, f"line {number:,}")


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LINE + 1):
        if len(line) > LINE:
            raise BadData(str(path), f"it has a line of more than {LINE:,} characters")
        if "\0" in line:
            raise BadData(str(path), "not text: it holds zero bytes")
        yield line


def _cells(file: TextIO, path: Path, note: Note) -> Iterator[Row]:
    is_tsv = path.suffix.lower() == ".tsv"
    reader = csv.reader(
        _lines(file, path),
        delimiter="\t" if is_tsv else ",",
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    more: Row = {}
    good, bad, first = 0, 0, 0
    for cells in _records(reader, path):
        if not cells:
            continue
        if not header and _is_bare(cells):
            header, more = ["question", *_LETTERS, "answer"], {"subject": _subject(path)}
        elif not header:
            header = [one.strip() for one in cells]
            twice = {one for one in header if header.count(one) > 1}
            if twice:
                raise BadData(str(path), f"it has several columns '{min(twice)}'")
            continue
        if len(cells) == len(header):
            good += 1
            yield dict(zip(header, cells, strict=True)) | more
        else:
            bad, first = bad + 1, first or reader.line_num
    if bad * _BAD_SHARE > good:
        raise BadData(
            str(path), f"line {first:,} has another number of cells than the header's {len(header)}"
        )
    if bad:
        note(f"{path.name}: {bad:,} rows with too few or too many cells are left out")


def _records(reader: Any, path: Path) -> Iterator[list[str]]:
    """What csv reads, with the line that it fails at."""
    begun = 0
    try:
        for cells in reader:
            yield cells
            begun = reader.line_num
    except csv.Error as error:
        where = f"the row that begins in line {begun + 1:,}"
        raise BadData(str(path), f"{where} cannot be read: {error}") from None


def _is_bare(cells: list[str]) -> bool:
    """Whether the first row is a question of MMLU's own files, which have no header."""
    return len(cells) == 6 and cells[5] in _LETTERS and not {"A", "B"} <= set(cells)


def _subject(path: Path) -> str:
    name = path.stem
    for split in _SPLITS:
        name = name.removesuffix(f"_{split}")
    return name


def _document(file: TextIO, path: Path) -> Iterator[Row]:
    if path.stat().st_size > DOCUMENT:
        raise BadData(
            str(path),
            f"larger than {DOCUMENT:,} bytes, which is too much for one JSON document",
            hint="write it as JSONL: an object a line",
        )
    document = json.load(file)
    if isinstance(document, dict):
        found = next((document[key] for key in _LISTS if isinstance(document.get(key), list)), None)
        if found is None:
            raise BadData(str(path), "a JSON object without a list of rows (such as 'data')")
        document = found
    if not isinstance(document, list):
        raise BadData(str(path), "not a list of objects")
    for number, row in enumerate(document, 1):
        yield _an_object(row, path, f"entry {number:,}")


def _an_object(row: Any, path: Path, where: str) -> Row:
    if not isinstance(row, dict):
        raise BadData(str(path), f"{where} is no object: a row is an object with its columns")
    return row
