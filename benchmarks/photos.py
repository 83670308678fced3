"""Fetch 50 photographs, and cut each into six squares.

    python benchmarks/photos.py     prints the folder; they are fetched first if they are not there

They come in the package ``tabler-ui`` that npm downloads by name and version; its SHA-256 is pinned
here. Nothing is installed and none of its code runs. They show landscapes for the most part, also
towns, animals and people, and are 1500 x 1000 pixels. The squares have 500 pixels a side and do not
overlap; as they are, they go into PNG files.

Every second photograph, by name, is *held out*: quality is measured on its squares (``heldout``),
and those of the other 25 may be calibrated on (``calibration``).
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

from PIL import Image

import packages

PACKAGE = "tabler-ui@0.0.34"
SHA256 = "04167737bbd743dc4f504b5a0f38bf0afe3e79b75352f057c22dbd79d276c899"
_PHOTO = re.compile(r"package/dist/demo/photos/([a-z0-9-]+)-1500\.jpg")
SIDE = 500


def squares(photo: Image.Image) -> list[Image.Image]:
    """Squares that do not overlap, row by row from the upper left; what is left over is dropped."""
    corners = [
        (left, top)
        for top in range(0, photo.height - SIDE + 1, SIDE)
        for left in range(0, photo.width - SIDE + 1, SIDE)
    ]
    return [photo.crop((left, top, left + SIDE, top + SIDE)) for left, top in corners]


def unpack(archive: Path, target: Path) -> None:
    """Write the squares as ``heldout/NAME-NUMBER.png`` or ``calibration/NAME-NUMBER.png``."""
    with tarfile.open(archive) as package:
        members = {match[1]: one for one in package if (match := _PHOTO.fullmatch(one.name))}
        for index, (name, member) in enumerate(sorted(members.items())):
            folder = target / ("heldout", "calibration")[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            file = package.extractfile(member)
            assert file is not None
            with Image.open(io.BytesIO(file.read()), formats=["JPEG"]) as photo:
                for number, square in enumerate(squares(photo)):
                    square.save(folder / f"{name}-{number}.png")


def fetch() -> Path:
    """The folder that holds ``heldout`` and ``calibration``."""
    return packages.fetch("photos", PACKAGE, SHA256, unpack)


if __name__ == "__main__":
    print(fetch())
