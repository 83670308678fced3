"""Fetch news items: 1,225 pairs with how alike people find the two of each, and 300 others.

    python benchmarks/lee.py        prints the folder; they are fetched first if they are not there

Lee, Pincombe and Welsh ("An empirical evaluation of models of text document similarity", 2005) had
each pair of 50 items of Australian broadcast news judged by 8 to 12 students. Items and mean
judgements come as test data in the package ``gensim`` that pip downloads by name and version; its
SHA-256 is pinned here. Nothing is installed and none of its code runs.

``test.csv`` has the columns ``sentence1``, ``sentence2`` and ``score`` (0 to 1). An item is in 49
pairs, so that the pairs tell less than 1,225 of items of their own would. ``background.txt`` has
the 300 items that the authors gathered beside these, apart by empty lines.
"""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import packages

PACKAGE = "gensim==4.4.0"
SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
DATA = "gensim/test/test_data"


def unpack(archive: Path, target: Path) -> None:
    """Write ``test.csv`` and ``background.txt``."""
    with zipfile.ZipFile(archive) as package:
        items = package.read(f"{DATA}/lee.cor").decode("latin-1").splitlines()
        others = package.read(f"{DATA}/lee_background.cor").decode("latin-1").splitlines()
        judged = package.read(f"{DATA}/similarities0-1.txt").decode("ascii").splitlines()
    scores = [[float(one) for one in line.split()] for line in judged]
    target.mkdir()
    with (target / "test.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sentence1", "sentence2", "score"])
        for first, row in enumerate(scores):
            for second in range(first + 1, len(row)):
                rows.writerow([items[first], items[second], row[second]])
    text = "\n\n".join(one.strip() for one in others)
    (target / "background.txt").write_text(text + "\n", encoding="utf-8")


def fetch() -> Path:
    """The folder that holds ``test.csv`` and ``background.txt``."""
    return packages.fetch("lee-news", PACKAGE, SHA256, unpack)


if __name__ == "__main__":
    print(fetch())
