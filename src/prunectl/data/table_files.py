"""Rows of local CSV, TSV, JSONL and JSON files, pairs of texts in them, and the splits of a folder.

``datasets`` reads these formats too, and is not used, as it changes what a file holds: a CSV row
with too few cells is filled up and one with too many shifts its columns, the text "02" becomes a
number and "2020-01-02" a time, a long line is held in memory several times, and JSON that is nested
20,000 deep ends the process.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from prunectl.data.errors import BadData, file_errors, first_line
from prunectl.data.source import SPLITS, TABLES
from prunectl.documents import parse_json

Row = dict[str, Any]
Note = Callable[[str], None]

LINE = 16 << 20
"""Characters of a line of a table at most."""
DOCUMENT = 256 << 20
"""Bytes at most of a JSON document, which is read as a whole."""
# A limit of the whole process: 131,072 characters of a cell, unless it is raised.
csv.field_size_limit(max(LINE, csv.field_size_limit()))

_BAD_SHARE = 100
"""One row of so many may have too few or too many cells, as in some sets of GLUE."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_SEPARATORS = re.compile(r"[-_. ]+")
_WORD = re.compile(r"[A-Za-z_][\w-]{0,40}")
_VARIANTS = ("matched", "mismatched")
_LISTS = ("data", "rows", "examples", "instances")
_LETTERS = ("A", "B", "C", "D")


# --- splits -------------------------------------------------------------------------------------


def split_of(path: Path) -> str | None:
    """The split that the first or last word of a file's name says, else its folder's name.

    ``dev_matched.tsv`` (MNLI) is ``validation_matched``.
    """
    words = _SEPARATORS.split(_SHARD.sub("", path.stem).casefold())
    if words[0] in SPLITS:
        split = SPLITS[words[0]]
        if words[1:2] and words[1] in _VARIANTS:
            return f"{'validation' if split == 'dev' else split}_{words[1]}"
        return split
    return SPLITS.get(words[-1]) or SPLITS.get(path.parent.name.casefold())


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Tables of a folder by split: those in the folder, and in folders named for a split.

    If there are neither, the folder ``data`` in it is searched. Empty without tables.

    Raises:
        BadData: it cannot be read, or which file is of which split is not clear.
    """
    with file_errors(folder):
        inside = sorted(folder.iterdir())
        folders = [one for one in inside if one.is_dir() and one.name.casefold() in SPLITS]
        tables = _tables(inside) + [path for one in folders for path in _tables(one.iterdir())]
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
        suffixes = dict.fromkeys(path.suffix.lower() for path in files)
        if len(suffixes) > 1:
            raise BadData(
                str(folder), f"its split '{split}' is there as {' and as '.join(suffixes)}"
            )
    return found


def _tables(paths: Any) -> list[Path]:
    return sorted(one for one in paths if one.suffix.lower() in TABLES and one.is_file())


# --- rows ---------------------------------------------------------------------------------------


def rows_of(path: Path, note: Note) -> Iterator[Row]:
    """Rows of a file in its order; cells of a CSV or TSV are text.

    Quotes in a TSV are plain characters.

    Raises:
        BadData: the file is not the table that its name says, or is too large.
    """
    kind = path.suffix.lower()
    with _opened(path) as file:
        if kind in (".csv", ".tsv"):
            yield from _table(file, path, note)
        elif kind in (".jsonl", ".json"):
            values = _json_lines(file, path) if kind == ".jsonl" else _document(file, path)
            for where, value in values:
                if not isinstance(value, dict):
                    why = f"{where} is no object: a row is an object with its columns"
                    raise BadData(str(path), why)
                yield value
        else:
            raise BadData(str(path), f"a file that ends in '{path.suffix}' is no table")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if not path.is_file():  # a pipe or a device may have no end
        raise BadData(str(path), "no regular file")
    try:
        with file_errors(path), path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except ValueError as error:
        raise BadData(str(path), f"not a table that can be read: {first_line(error)}") from None


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LINE + 1):
        if len(line) > LINE:
            raise BadData(str(path), f"it has a line of more than {LINE:,} characters")
        if "\0" in line:
            raise BadData(str(path), "not text: it holds zero bytes")
        yield line


def _json_lines(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Values of a JSONL file, each with its place."""
    for number, line in enumerate(_lines(file, path), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise BadData(str(path), f"line {number:,} is no JSON: {why[:200]}") from None
        yield f"line {number:,}", value


def _document(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Values of the list that a JSON document is or holds, each with its place."""
    if path.stat().st_size > DOCUMENT:
        raise BadData(
            str(path),
            f"larger than {DOCUMENT:,} bytes, which is too much for one JSON document",
            hint="write it as JSONL: an object a line",
        )
    document = parse_json(file.read())
    if isinstance(document, dict):
        found = next((document[key] for key in _LISTS if isinstance(document.get(key), list)), None)
        if found is None:
            raise BadData(str(path), "a JSON object without a list of rows (such as 'data')")
        document = found
    if not isinstance(document, list):
        raise BadData(str(path), "not a list of objects")
    return ((f"entry {number:,}", value) for number, value in enumerate(document, 1))


def _table(file: TextIO, path: Path, note: Note) -> Iterator[Row]:
    quoting = csv.QUOTE_NONE if path.suffix.lower() == ".tsv" else csv.QUOTE_MINIMAL
    header: list[str] = []
    more: Row = {}
    good, bad, first = 0, 0, 0
    for line, cells in _cells(file, path, quoting=quoting, strict=True):
        if not header:
            # MMLU's own files have no header: a question, four choices and a letter.
            if len(cells) == 6 and cells[5] in _LETTERS and not {"A", "B"} <= set(cells):
                header, more = ["question", *_LETTERS, "answer"], {"subject": _subject(path)}
            else:
                header = [one.strip() for one in cells]
                twice = {one for one in header if header.count(one) > 1}
                if twice:
                    raise BadData(str(path), f"it has several columns '{min(twice)}'")
                continue
        if len(cells) == len(header):
            good += 1
            yield dict(zip(header, cells, strict=True)) | more
        else:
            bad, first = bad + 1, first or line
    if bad * _BAD_SHARE > good:
        raise BadData(
            str(path), f"line {first:,} has another number of cells than the header's {len(header)}"
        )
    if bad:
        note(f"{path.name}: {bad:,} rows with too few or too many cells are left out")


def _cells(file: TextIO, path: Path, **options: Any) -> Iterator[tuple[int, list[str]]]:
    """Cells of each row that is not empty, and the line that the row ends in."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(_lines(file, path), delimiter=delimiter, **options)
    ended = 0
    try:
        for cells in reader:
            ended = reader.line_num
            if cells:
                yield ended, cells
    except csv.Error as error:
        where = f"the row that begins in line {ended + 1:,}"
        raise BadData(str(path), f"{where} cannot be read: {error}") from None


def _subject(path: Path) -> str:
    name = path.stem
    for split in SPLITS:
        name = name.removesuffix(f"_{split}")
    return name


# --- pairs --------------------------------------------------------------------------------------


def read_pairs(path: Path, count: int, seed: int) -> tuple[list[tuple[str, str]], int]:
    """Up to ``count`` pairs of texts of a table, in its order, and how many pairs it has.

    A pair are the first two columns that hold text, no numbers, in the first row. A first row of
    single words in a CSV or TSV is a header. Rows that lack one of the two texts are left out.

    Args:
        seed: draws the pairs, if there are more than ``count``.

    Raises:
        BadData: the table cannot be read, or has no two columns of text.
    """
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, tuple[str, str]]] = []
    seen = 0
    for pair in _all_pairs(path):
        # Reservoir sampling: every row is kept with the same chance, in one pass.
        at = seen if seen < count else int(rng.integers(0, seen + 1))
        if at < count:
            kept[at:at + 1] = [(seen, pair)]  # fmt: skip
        seen += 1
    if not kept:
        raise BadData(str(path), "it holds no pair of texts")
    return [pair for _, pair in sorted(kept)], seen


def _all_pairs(path: Path) -> Iterator[tuple[str, str]]:
    columns: list[Any] = []
    for row in _bare_rows(path):
        if not columns:
            columns = [key for key, value in row.items() if _is_text(value)][:2]
            if len(columns) < 2:
                raise BadData(
                    str(path),
                    "its first row has no two columns of text",
                    hint="a pair is two columns of a CSV, TSV or JSONL",
                )
        first, second = (row.get(column) for column in columns)
        if _is_text(first) and _is_text(second):
            yield str(first), str(second)


def _bare_rows(path: Path) -> Iterator[dict[Any, Any]]:
    """Rows of a table that need not have a header: columns of a CSV are numbers."""
    with _opened(path) as file:
        if path.suffix.lower() == ".jsonl":
            for _, value in _json_lines(file, path):
                yield value if isinstance(value, dict) else {}
            return
        for number, (_, cells) in enumerate(_cells(file, path)):
            if number or not all(_WORD.fullmatch(cell) for cell in cells):
                yield dict(enumerate(cells))


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
