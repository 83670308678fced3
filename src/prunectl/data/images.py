"""Image files: found in folders, opened safely, and turned into the inputs of a model."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import ModelKind, accepted_inputs
from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.errors import BadData, file_errors, first_line
from prunectl.data.source import SPLITS
from prunectl.errors import MissingLibrary

if TYPE_CHECKING:
    from PIL.Image import Image

Process = Callable[["Image"], dict[str, NDArray[Any]]]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened, by content; PIL starts programs for some of the others."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ANNOTATIONS = "val_annotations.txt"
"""Labels of Tiny-ImageNet's validation images: a file name, a class and a box on each line."""


def find_images(folder: Path) -> list[Path]:
    """Paths of image files, by their names, in a folder and those below, in order.

    Raises:
        BadData: there are none, or a folder cannot be read.
    """
    found = _images_in(folder)
    if not found:
        raise BadData(
            str(folder),
            f"the folder holds no images ({', '.join(SUFFIXES)})",
            hint="name a folder of images",
        )
    return found


def _images_in(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:  # without this, os.walk passes over the folder
        raise error

    with file_errors(folder):
        inside = [
            Path(base, name) for base, _, names in os.walk(folder, onerror=refuse) for name in names
        ]
        images = [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(images, key=lambda path: path.parts)


def find_classes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows (``image``: a path, ``label``: the name of its class's folder) by split.

    The folders in ``folder`` are named for splits, or else for classes of the split ``all``. Images
    without a class, as in the test split of Tiny-ImageNet, are left out. ``imagefolder`` of
    ``datasets`` takes no labels from such folders by default, drops images whose names say another
    split, does not know Tiny-ImageNet's annotations, and takes 100 times as long to list 4,000.

    Raises:
        BadData: a folder cannot be read, or there are no images in folders of classes.
    """
    named: dict[str, list[Path]] = {}
    with file_errors(folder):
        for one in sorted(folder.iterdir()):
            if one.is_dir() and (split := SPLITS.get(one.name.casefold())):
                named.setdefault("validation" if split == "dev" else split, []).append(one)
        found = {
            split: [row for one in inside for row in _rows(one)]
            for split, inside in (named or {"all": [folder]}).items()
        }
    found = {split: rows for split, rows in found.items() if rows}
    if not found:
        raise BadData(
            str(folder),
            "it holds neither tables nor images in folders of classes",
            hint="name a table, or a folder that has a folder of images for each class",
        )
    return found


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    annotations = folder / _ANNOTATIONS
    if not annotations.is_file():
        for one in sorted(folder.iterdir()):
            if one.is_dir() and one.name != "images":
                for path in _images_in(one):
                    yield {"image": path, "label": one.name}
        return
    with file_errors(annotations):
        for line in annotations.read_text(encoding="utf-8").split("\n"):
            name, *cells = line.split("\t")
            # The file is somebody else's: a name must not lead out of the folder.
            if cells and Path(name).name == name:
                yield {"image": folder / "images" / name, "label": cells[0]}


def open_image(source: Path | bytes, channels: int) -> Image | None:
    """The first frame of an image, turned as its EXIF data says; None if it is broken.

    An image with more pixels than PIL considers safe counts as broken.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=_FORMATS) as image:
                turned = ImageOps.exif_transpose(image)
                return turned.convert(_MODES.get(channels, "RGB"))
    except MemoryError:
        raise
    except Exception:  # PIL's decoders raise anything: SyntaxError, struct.error, ZeroDivisionError
        return None


def load_processor(checkpoint: Checkpoint, model_kind: ModelKind) -> tuple[Process, str]:
    """A function from an image to a model's inputs, arrays of batch size 1; and a note, or "".

    Raises:
        MissingLibrary: PIL is not installed.
        BadData: the folder's image processor does not load.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise MissingLibrary("pillow", "images") from None
    if not (checkpoint.folder / "preprocessor_config.json").is_file():
        assert model_kind.image is not None
        _, height, width = model_kind.image
        note = (
            f"{checkpoint.model} has no preprocessor_config.json: images are resized to "
            f"{height}x{width} and scaled to -1..1"
        )
        return _plain(model_kind.image), note
    try:
        with quiet_transformers():
            from transformers import AutoImageProcessor

            inner = AutoImageProcessor.from_pretrained(
                checkpoint.folder,
                local_files_only=True,
                trust_remote_code=checkpoint.trust_remote_code,
            )
    except Exception as error:  # transformers may raise anything at all
        raise _broken(checkpoint, error, "does not load") from None
    return _own(checkpoint, inner), ""


def _plain(size: tuple[int, int, int]) -> Process:
    """Resized (bicubic), scaled to -1..1: float32 (1, channels, height, width)."""
    _, height, width = size

    def process(image: Image) -> dict[str, NDArray[Any]]:
        from PIL.Image import Resampling

        small = image.resize((width, height), Resampling.BICUBIC)
        pixels = np.asarray(small, np.float32) / np.float32(127.5) - 1
        channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return {"pixel_values": np.ascontiguousarray(channels_first)[None]}

    return process


def _own(checkpoint: Checkpoint, inner: Any) -> Process:
    accepted = accepted_inputs(
        checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code
    ) | {"pixel_values"}

    def process(image: Image) -> dict[str, NDArray[Any]]:
        try:
            with quiet_transformers():
                made = inner(images=image, return_tensors="np")
        except Exception as error:  # as above
            raise _broken(checkpoint, error, "fails") from None
        return {name: np.asarray(value) for name, value in made.items() if name in accepted}

    return process


def _broken(checkpoint: Checkpoint, error: Exception, what: str) -> BadData:
    return BadData(
        "images",
        f"the image processor of {checkpoint.model} {what}: {first_line(error)}",
        hint="repair its preprocessor_config.json",
    )
