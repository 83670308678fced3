"""Text of files, whole or in pieces; paragraphs of it; and tables of pairs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunectl.data.errors import BadData
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted, ignore_events

READING = "reading data"
PIECE = 1 << 16
"""Bytes of a piece, where files are too large to be read whole."""

LINE = 16 << 20
"""Characters of a line of a table at most."""
# The library's own limit, of all of Python, is 131,072 for a cell.
csv.field_size_limit(max(LINE, csv.field_size_limit()))

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_WORD = re.compile(r"[A-Za-z_][\w-]{0,40}")
_BREAK = b"\n"


@dataclass(frozen=True, slots=True)
class Documents:
    """Text that was read.

    Attributes:
        texts: documents, or pieces of them, in the order of the source.
        is_all: whether the source holds nothing else.
        read: bytes of the source that were read (of rows: bytes of their text).
        total: bytes that it has; None where only reading would tell.
    """

    texts: tuple[str, ...]
    is_all: bool
    read: int
    total: int | None = None


def read_files(
    files: Sequence[Path], budget: int, seed: int, on_event: OnEvent = ignore_events
) -> Documents:
    """The text of UTF-8 files: all of it, or pieces of 64 KiB drawn by ``seed`` where it is more.

    Args:
        files: each is a document of its own.
        budget: bytes that are enough; the pieces that are read come to about that.

    Raises:
        BadData: a file that cannot be read or that is not UTF-8 text.
    """
    sizes = [_size_of(path) for path in files]
    total = sum(sizes)
    pieces = [(path, at) for path, size in zip(files, sizes, strict=True)
              for at in range(0, size, PIECE)]  # fmt: skip
    count = min(len(pieces), -(-budget // PIECE))
    # Between two pieces a line is lost: all of them are not all of the text.
    is_all = total <= budget or count == len(pieces)
    on_event(PhaseStarted(READING, total if is_all else budget))
    if is_all:
        texts = [_decode(path, _read(path, 0, None, on_event)) for path in files]
    else:
        chosen = np.random.default_rng(seed).choice(len(pieces), count, replace=False)
        drawn = [pieces[int(index)] for index in np.sort(chosen)]
        texts = [_piece(path, at, on_event) for path, at in drawn]
    on_event(PhaseDone(READING))
    read = total if is_all else min(total, count * PIECE)
    return Documents(tuple(text for text in texts if text.strip()), is_all, read, total)


def _size_of(path: Path) -> int:
    if not path.is_file():  # a pipe would never end
        raise BadData(str(path), "no regular file")
    try:
        return path.stat().st_size
    except OSError as error:
        raise BadData(str(path), f"cannot be read: {error.strerror}") from None


def _read(path: Path, start: int, count: int | None, on_event: OnEvent) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read() if count is None else file.read(count)
    except OSError as error:
        raise BadData(str(path), f"cannot be read: {error.strerror}") from None
    on_event(Advanced(READING, len(data), path.name))
    return data


def _piece(path: Path, start: int, on_event: OnEvent) -> str:
    """Whole lines of a piece, or, of a line that is longer, whole characters."""
    data = _read(path, start, PIECE, on_event)
    if start:
        _, newline, rest = data.partition(_BREAK)
        # Bytes 10xxxxxx go on with a character that began before.
        data = rest if newline else data.lstrip(bytes(range(0x80, 0xC0)))
    lines, newline, _ = data.rpartition(_BREAK)
    if newline and len(lines) > len(data) // 2:
        return _decode(path, lines)
    # The last character may have lost its end: up to three bytes.
    for cut in range(4):
        try:
            return _decode(path, data[: len(data) - cut])
        except BadData:
            if cut == 3:
                raise
    raise AssertionError


def _decode(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(
            str(path),
            f"not UTF-8 text (byte {data[error.start]:#04x})",
            hint="convert it: iconv -f ENCODING -t UTF-8 FILE",
        ) from None
    if "\0" in text:
        raise BadData(str(path), "not text: it holds zero bytes")
    return text.replace("\r\n", "\n")


def paragraphs(texts: Iterable[str]) -> list[str]:
    """What stands between blank lines."""
    parts = (part.strip() for text in texts for part in _BLANK_LINE.split(text))
    return [part for part in parts if part]


def lines(texts: Iterable[str]) -> list[str]:
    """Lines that hold something."""
    parts = (part.strip() for text in texts for part in text.split("\n"))
    return [part for part in parts if part]


def read_pairs(path: Path, count: int, seed: int) -> tuple[list[tuple[str, str]], int]:
    """Up to ``count`` pairs of a table, drawn by ``seed``, in its order; and how many it has.

    The pairs are the first two columns that hold text (no numbers) in the first row; a first row
    of single words in a CSV or TSV is a header. A JSONL file has an object a line. Rows that lack
    one of the two texts are left out.

    Raises:
        BadData: it cannot be read, or has no two columns of text.
    """
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, tuple[str, str]]] = []
    seen = 0
    try:
        for pair in _all_pairs(path):
            # Reservoir sampling: every row is kept with the same chance, in one pass.
            at = seen if seen < count else int(rng.integers(0, seen + 1))
            if at < count:
                kept[at:at + 1] = [(seen, pair)]  # fmt: skip
            seen += 1
    except OSError as error:
        raise BadData(str(path), f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error, ValueError, RecursionError) as error:
        first = str(error).split("\n")[0]
        raise BadData(str(path), f"not a table that can be read: {first[:200]}") from None
    if not kept:
        raise BadData(str(path), "it holds no pair of texts")
    return [pair for _, pair in sorted(kept)], seen


def _all_pairs(path: Path) -> Iterator[tuple[str, str]]:
    columns: list[Any] | None = None
    for row in _rows(path):
        if columns is None:
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


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _rows(path: Path) -> Iterator[dict[Any, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            for line in file:
                if line.strip():
                    row = json.loads(line)
                    yield row if isinstance(row, dict) else {}
            return
        table = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        first = True
        for cells in table:
            is_header = first and all(_WORD.fullmatch(cell) for cell in cells)
            first = False
            if cells and not is_header:
                yield dict(enumerate(cells))
