"""Folders of images, in a folder a class, as rows of ``image`` and ``label``."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunectl.data.errors import BadData
from prunectl.data.images import images_in

_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
           "validation": "validation", "dev": "validation", "test": "test"}  # fmt: skip
_ANNOTATIONS = "val_annotations.txt"
"""Tiny-ImageNet's labels of its validation images: a file name and a class a line."""
_HINT = "name a table, or a folder that has a folder of images for each class"


def find_splits(folder: Path) -> dict[str, Iterator[dict[str, Any]]]:
    """Rows (``image``: a path, ``label``: the name of its folder) by split.

    The split is ``all`` where the folders on top are those of the classes. Images without a class,
    as in Tiny-ImageNet's ``test``, are left out.

    Raises:
        BadData: there are no images in folders of their classes.
    """
    try:
        folders = [one for one in sorted(folder.iterdir()) if one.is_dir()]
    except OSError as error:
        raise BadData(str(folder), f"cannot be read: {error.strerror}") from None
    named: dict[str, list[Path]] = {}
    for one in folders:
        if split := _SPLITS.get(one.name.casefold()):
            named.setdefault(split, []).append(one)
    found = {
        name: [row for one in inside for row in _rows(one)]
        for name, inside in (named or {"all": [folder]}).items()
    }
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        raise BadData(
            str(folder), "it holds neither tables nor images in folders of classes", hint=_HINT
        )
    return {name: iter(rows) for name, rows in found.items()}


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    annotations = folder / _ANNOTATIONS
    if annotations.is_file():
        yield from _annotated(folder, annotations)
        return
    for one in sorted(folder.iterdir()):
        if one.is_dir() and one.name != "images":
            for path in images_in(one):
                yield {"image": path, "label": one.name}


def _annotated(folder: Path, annotations: Path) -> Iterator[dict[str, Any]]:
    try:
        with annotations.open(encoding="utf-8", newline="") as file:
            for cells in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                # A name of somebody else's must not lead out of the folder.
                if len(cells) >= 2 and Path(cells[0]).name == cells[0]:
                    yield {"image": folder / "images" / cells[0], "label": cells[1]}
    except (OSError, ValueError, csv.Error) as error:
        raise BadData(str(annotations), f"cannot be read: {error}"[:200]) from None
