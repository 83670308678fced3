"""Where data come from: a source, as users name it; and the samples that are made of it."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.errors import InvalidOption
from prunectl.hub.snapshot import is_repo_id
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    import torch

FORMS = (
    "text:FILE[,FILE...], hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]], images:FOLDER, pairs:FILE, demo "
    "or random"
)
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow")
PAIRS = (".csv", ".tsv", ".jsonl")
SPLITS = {"train": "train", "training": "train", "test": "test", "dev": "dev",
          "val": "validation", "valid": "validation", "validation": "validation"}  # fmt: skip
"""Splits by the words that name them in files and folders."""
_PATHS = ("/", "./", "../", "~")
"""A text that begins with one of these is a path, even of a file that does not exist."""


class SourceKind(StrEnum):
    """Where data come from."""

    TEXT = "text"
    """Files of UTF-8 text."""
    HF = "hf"
    """A dataset of the Hub, or a local folder or file, that the library ``datasets`` reads."""
    RANDOM = "random"
    """Random tokens or pixels, which stand in for data."""
    IMAGES = "images"
    """A folder of images."""
    PAIRS = "pairs"
    """A file with two columns of text."""
    DEMO = "demo"
    """The text that is part of prunectl."""


@dataclass(frozen=True, slots=True)
class DataSource:
    """Data that a user has named.

    Attributes:
        kind: which of the fields below are set.
        files: of text; or the one folder of images; or the one file of pairs.
        dataset: a Hub id, or the path of a local folder or file, as the user wrote it.
        config, split, column: of the dataset; None means its default.
    """

    kind: SourceKind
    files: tuple[Path, ...] = field(default=())
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    column: str | None = None

    @property
    def name(self) -> str:
        """As the user would write it, for messages."""
        if self.kind is SourceKind.HF:
            parts = ("hf", self.dataset or "", self.config or "", self.split or "")
            return ":".join(parts).rstrip(":")
        if not self.files:
            return str(self.kind)
        more = f" and {len(self.files) - 1:,} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"

    @property
    def local_dataset(self) -> Path | None:
        """The folder or file of a local dataset; None for a dataset of the Hub."""
        path = expanded(self.dataset) if self.dataset else None
        return path if path is not None and path.exists() else None

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, without the folders of the user's machine."""
        local = self.local_dataset
        fields = {
            "kind": str(self.kind),
            "files": [path.name for path in self.files],
            "dataset": local.resolve().name if local else self.dataset,
            "config": self.config,
            "split": self.split,
            "column": self.column,
        }
        return {key: value for key, value in fields.items() if value}


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Samples that a model is run on to gather statistics.

    Attributes:
        inputs: arguments of ``model.forward``, one sample each, of batch size 1 on the CPU:
            ``input_ids`` (1, tokens) int64 and what else the model takes of its tokenizer;
            ``decoder_input_ids`` (1, tokens) int64; ``pixel_values`` (1, channels, height, width)
            float32. Nothing is padded, so there is no mask; lengths may differ.
        record: for the manifest, ready for JSON: ``kind``, what was read (names without folders),
            ``samples``, ``sequence_length``, ``tokens``, ``seed`` and ``blake3``
            (:func:`prunectl.calibration.samples.digest`).
        notes: sentences for people on what differs from what was asked for.
    """

    inputs: tuple[dict[str, torch.Tensor], ...]
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


# --- parsing ------------------------------------------------------------------------------------


def parse_source(texts: Sequence[str] | str, option: str) -> DataSource:
    """The source that one text names, or several ``text:`` in the order given.

    Args:
        option: what messages call it: ``--calibration``.

    Raises:
        InvalidOption: a form that is not known, a file that is not there, or kinds that are mixed.
    """
    given = [texts] if isinstance(texts, str) else list(texts)
    if not given:
        raise InvalidOption("no data given", hint=f"{option} takes {FORMS}")
    sources = [_parse_one(text.strip(), option) for text in given]
    if len(sources) == 1:
        return sources[0]
    if any(source.kind is not SourceKind.TEXT for source in sources):
        raise InvalidOption(
            f"{option} {' and '.join(given[:3])} cannot be combined",
            hint="only text: may be given several times",
        )
    files = dict.fromkeys(path for source in sources for path in source.files)
    return replace(sources[0], files=tuple(files))


def without_folders(text: str) -> str:
    """A source or a path as text, without the folders of the user's machine."""

    def short(name: str) -> str:
        return Path(name).name or Path(name).resolve().name

    kind, colon, rest = text.partition(":")
    if colon and kind in ("text", "images", "pairs"):
        names = [rest] if _exists(rest) else rest.split(",")
        return f"{kind}:{','.join(map(short, names))}"
    if colon and kind == SourceKind.HF:
        dataset, *others = rest.split(":")
        return ":".join([kind, short(dataset) if _exists(dataset) else dataset, *others])
    return short(text) if text.startswith(_PATHS) or _exists(text) else text


def _parse_one(text: str, option: str) -> DataSource:
    if text in (SourceKind.RANDOM, SourceKind.DEMO):
        return DataSource(SourceKind(text))
    kind, colon, rest = text.partition(":")
    if colon and kind in ("text", "hf", "images", "pairs"):
        if not rest:
            raise InvalidOption(f"{option} {text} names nothing", hint=f"it takes {FORMS}")
        parse = {"text": _text, "hf": _dataset, "images": _images, "pairs": _pairs}[kind]
        return parse(rest, option)
    if _exists(text):
        if Path(text).suffix.lower() in TABLES:
            raise InvalidOption(
                f"{option} {text} could mean a table or its characters",
                hint=f"say hf:{text} for its rows, pairs:{text} for two columns, or text:{text}",
            )
        return _text(text, option)
    looks_like_id = is_repo_id(text) and text.count("/") == 1
    raise InvalidOption(
        f"{option} {text or repr(text)} is neither a file nor a form that is known",
        hint=f"a dataset of the Hub is hf:{text}" if looks_like_id else f"it takes {FORMS}",
    )


def _exists(text: str) -> bool:
    try:
        return bool(text) and expanded(text).exists()
    except (OSError, ValueError):  # too long, a NUL
        return False


def _text(rest: str, option: str) -> DataSource:
    # A name may hold a comma or a bracket, so a file of the whole name comes first.
    names = [rest] if _exists(rest) else [name for name in rest.split(",") if name]
    files = dict.fromkeys(path for name in names for path in _text_files(name, option))
    if not files:
        raise InvalidOption(f"{option} text:{rest} names no file")
    return DataSource(SourceKind.TEXT, tuple(files))


def _text_files(name: str, option: str) -> list[Path]:
    if not _exists(name):
        pattern = str(expanded(name)) if name.startswith("~") else name
        found = [Path(one) for one in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
        found = [one for one in found if one.is_file()]
        if not found:
            raise InvalidOption(
                f"{option} text:{name}: there is no such file", hint="check the path"
            )
        return found
    path = expanded(name)
    if not path.is_dir():
        return [path]
    try:
        inside = sorted(o for o in path.iterdir() if o.name.endswith(".txt") and o.is_file())
    except OSError as error:
        raise InvalidOption(
            f"{option} text:{name}: cannot be read: {error.strerror}", hint="check the path"
        ) from None
    if not inside:
        raise InvalidOption(
            f"{option} text:{name}: the folder holds no *.txt",
            hint=f"name the files, for example 'text:{name}/*.md'",
        )
    return inside


def _dataset(rest: str, option: str) -> DataSource:
    parts = [part.strip() for part in rest.split(":")]
    if len(parts) > 4:
        raise InvalidOption(
            f"{option} hf:{rest} has more than four parts",
            hint="hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]; a slice of a split cannot be given",
        )
    dataset, config, split, column = [*parts, "", "", ""][:4]
    if not _exists(dataset) and not is_repo_id(dataset):
        raise InvalidOption(
            f"{option} hf:{rest}: '{dataset}' is neither a path nor the name of a dataset",
            hint="give org/name, or a local folder, CSV, JSONL or Parquet file",
        )
    return DataSource(SourceKind.HF, (), dataset, config or None, split or None, column or None)


def _images(rest: str, option: str) -> DataSource:
    if not _exists(rest) or not expanded(rest).is_dir():
        raise InvalidOption(f"{option} images:{rest}: there is no such folder")
    return DataSource(SourceKind.IMAGES, (expanded(rest),))


def _pairs(rest: str, option: str) -> DataSource:
    if not _exists(rest) or not expanded(rest).is_file():
        raise InvalidOption(f"{option} pairs:{rest}: there is no such file")
    if Path(rest).suffix.lower() not in PAIRS:
        raise InvalidOption(
            f"{option} pairs:{rest} is not a table by its name",
            hint=f"one of {', '.join(PAIRS)}",
        )
    return DataSource(SourceKind.PAIRS, (expanded(rest),))
