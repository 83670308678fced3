"""Text files, read whole or in pieces, and the paragraphs and lines of a text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunectl.data.errors import BadData, file_errors
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted, ignore_events

READING = "reading data"
PIECE = 1 << 16
"""Bytes of a piece of a file that is too large to be read whole."""

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True, slots=True)
class Documents:
    """Text that was read.

    Attributes:
        texts: documents, or pieces of documents, in the order of the source.
        is_all: whether the source holds nothing else.
        read: bytes of the source that were read; of a dataset, bytes of its rows' text.
        total: bytes that the source has; None if they are not known.
    """

    texts: tuple[str, ...]
    is_all: bool
    read: int
    total: int | None = None


def read_files(
    files: Sequence[Path], budget: int, seed: int, on_event: OnEvent = ignore_events
) -> Documents:
    """Read UTF-8 files whole, or draw pieces of 64 KiB if they have more than ``budget`` bytes.

    Args:
        budget: bytes that are enough; the pieces have about as many.
        seed: draws the pieces, which stay in the order of the files.

    Raises:
        BadData: a file cannot be read or is not UTF-8 text.
    """
    sizes = [_size_of(path) for path in files]
    total = sum(sizes)
    pieces = [(path, at) for path, size in zip(files, sizes, strict=True)
              for at in range(0, size, PIECE)]  # fmt: skip
    count = min(len(pieces), -(-budget // PIECE))
    # Each piece drops the line that it begins in, so all pieces are less than all of the text.
    is_all = total <= budget or count == len(pieces)
    on_event(PhaseStarted(READING, total if is_all else budget))
    if is_all:
        texts = [_decode(path, _read(path, 0, -1, on_event)) for path in files]
    else:
        chosen = np.random.default_rng(seed).choice(len(pieces), count, replace=False)
        drawn = [pieces[int(index)] for index in np.sort(chosen)]
        texts = [_piece(path, at, on_event) for path, at in drawn]
    on_event(PhaseDone(READING))
    read = total if is_all else min(total, count * PIECE)
    return Documents(tuple(text for text in texts if text.strip()), is_all, read, total)


def _size_of(path: Path) -> int:
    if not path.is_file():  # a pipe or a device may have no end
        raise BadData(str(path), "no regular file")
    with file_errors(path):
        return path.stat().st_size


def _read(path: Path, start: int, count: int, on_event: OnEvent) -> bytes:
    with file_errors(path), path.open("rb") as file:
        file.seek(start)
        data = file.read(count)
    on_event(Advanced(READING, len(data), path.name))
    return data


def _piece(path: Path, start: int, on_event: OnEvent) -> str:
    """The whole lines of a piece; of a line that is longer than the piece, whole characters."""
    data = _read(path, start, PIECE, on_event)
    if start:
        _, newline, rest = data.partition(b"\n")
        # Bytes 10xxxxxx belong to a character that began in the piece before.
        data = rest if newline else data.lstrip(bytes(range(0x80, 0xC0)))
    lines, newline, _ = data.rpartition(b"\n")
    if newline and len(lines) > len(data) // 2:
        return _decode(path, lines)
    return _decode(path, data, is_whole=False)


def _decode(path: Path, data: bytes, *, is_whole: bool = True) -> str:
    """UTF-8 as text; a last character that is cut off is dropped unless ``is_whole``."""
    with file_errors(path):
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=is_whole)
    if "\0" in text:
        raise BadData(str(path), "not text: it holds zero bytes")
    return text.replace("\r\n", "\n")


def paragraphs(texts: Iterable[str]) -> list[str]:
    """The parts of texts between blank lines, stripped; empty ones are left out."""
    parts = (part.strip() for text in texts for part in _BLANK_LINE.split(text))
    return [part for part in parts if part]


def lines(texts: Iterable[str]) -> list[str]:
    """The lines of texts, stripped; empty ones are left out."""
    parts = (part.strip() for text in texts for part in text.split("\n"))
    return [part for part in parts if part]
