"""The text of the demo model: the King James Bible out of a Debian package, or any text files.

The package is fetched with ``apt-get download``, checked against its SHA-256, and unpacked with
``dpkg-deb``: nothing is installed and none of its code runs. Its one data file holds the text in
windows, each a stream of ``compress`` (LZW) without the magic bytes, behind a table of offsets.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "bible-kjv-text=4.39"
SHA256 = "5b5acbab20b8ea6927a6bcfd9718cad7c1ae8530c393e6319e2179cc25a84fbb"
DATA_FILE = "usr/lib/bible.data"

HELDOUT_BOOK = "John"
CALIBRATION_BOOK = "Jdgs"

SHARE_OF_FILES = 20
"""Of text files, the last 1/20 of the lines is held out, and the 1/20 before it calibrates."""

_COMPRESS_MAGIC = b"\x1f\x9d\x90"
_VERSE = re.compile(r"(?P<book>\d?[A-Za-z]+)(?P<chapter>\d+):\d+ (?P<text>.*)")


@dataclass(frozen=True)
class Splits:
    """Training documents, and two texts that share no line with them or with each other."""

    training: list[str]
    heldout: str
    calibration: str
    removed: int
    """Lines taken out of the training and calibration text, because they are held-out too."""


def lines_of(text: str) -> set[str]:
    """The lines of a text, without blank ones."""
    return {line.strip() for line in text.splitlines()} - {""}


def _without(text: str, banned: set[str]) -> tuple[str, int]:
    kept = [line for line in text.splitlines() if line.strip() not in banned]
    return "".join(f"{line}\n" for line in kept), len(text.splitlines()) - len(kept)


def disjoint(training: list[str], heldout: str, calibration: str) -> Splits:
    """Take out of the calibration text what is held out, and both out of the training text."""
    calibration, removed = _without(calibration, lines_of(heldout))
    banned = lines_of(heldout) | lines_of(calibration)
    cleaned = [_without(text, banned) for text in training]
    removed += sum(count for _, count in cleaned)
    splits = Splits([text for text, _ in cleaned if text], heldout, calibration, removed)
    assert not lines_of(splits.heldout) & lines_of(splits.calibration)
    for text in splits.training:
        assert not lines_of(text) & banned, "the model would train on what it is measured on"
    return splits


def split_files(paths: list[Path]) -> Splits:
    """Cut the held-out and calibration text off the end of the files, taken as one text."""
    texts = [path.read_text(encoding="utf-8") for path in paths]
    tail = max(1, sum(len(text.splitlines()) for text in texts) // SHARE_OF_FILES)
    last: list[str] = []
    while len(last) < 2 * tail and texts:
        lines = texts.pop().splitlines(keepends=True)
        missing = 2 * tail - len(last)
        last = lines[-missing:] + last
        if len(lines) > missing:
            texts.append("".join(lines[:-missing]))
    if not texts:
        raise SystemExit("the text is too short to hold anything out")
    return disjoint(texts, "".join(last[-tail:]), "".join(last[:-tail]))


def split_books(books: dict[str, str]) -> Splits:
    """Hold two whole books of the Bible out, and train on the others."""
    training = [
        text for name, text in books.items() if name not in {HELDOUT_BOOK, CALIBRATION_BOOK}
    ]
    return disjoint(training, books[HELDOUT_BOOK], books[CALIBRATION_BOOK])


def decompress(data: bytes) -> str:
    """The whole text in the data file: a table of big-endian u32 offsets, then the windows.

    Bytes 0x58 to 0x5c hold the number of windows; the offset of each and of the end follow.
    """
    (count,) = struct.unpack_from(">I", data, 0x58)
    offsets = struct.unpack_from(f">{count + 1}I", data, 0x5C)
    text = b""
    for start, end in itertools.pairwise(offsets):
        window = _COMPRESS_MAGIC + data[start:end]
        text += subprocess.run(["gzip", "-dc"], input=window, stdout=-1, check=True).stdout
    return text.decode("ascii")


def books_of(text: str) -> dict[str, str]:
    """Book -> its verses, one a line without their numbers, chapters parted by a blank line."""
    books: dict[str, str] = {}
    chapters: dict[str, str] = {}
    for line in text.splitlines()[1:]:  # the first line is a title
        verse = _VERSE.fullmatch(line)
        if verse is None:
            raise SystemExit(f"not a verse: {line[:60]!r}")
        book, chapter = verse["book"], verse["chapter"]
        new_chapter = chapters.get(book, chapter) != chapter
        books[book] = books.get(book, "") + "\n" * new_chapter + verse["text"].strip() + "\n"
        chapters[book] = chapter
    return books


def fetch_bible() -> dict[str, str]:
    """Download the package with apt, check its hash, and return the books in order."""
    with tempfile.TemporaryDirectory(prefix="train-demo-") as temporary:
        work = Path(temporary)
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=work, check=True)
        (package,) = work.glob("*.deb")
        found = hashlib.sha256(package.read_bytes()).hexdigest()
        if found != SHA256:
            raise SystemExit(f"{package.name}: SHA-256 is {found}, expected {SHA256}")
        subprocess.run(["dpkg-deb", "-x", package.name, "files"], cwd=work, check=True)
        return books_of(decompress((work / "files" / DATA_FILE).read_bytes()))
