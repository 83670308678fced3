"""Rows of a dataset, by the optional library ``datasets``: of the Hub, or local files.

Rows are streamed: no more of them are fetched than are needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from prunectl.checkpoint.module_tree import quiet_transformers
from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.source import DataSource
from prunectl.data.text import READING, Documents
from prunectl.errors import AccessDenied, HubUnreachable, MissingLibrary, PrunectlError
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted, ignore_events

SHUFFLED = 1_000
"""Rows that are held to be drawn from; files ("shards") are shuffled as a whole."""

TEXT_COLUMNS = ("text", "sentence", "content", "document", "article", "body", "passage", "prompt",
                "question", "premise")  # fmt: skip
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
_NO_ANSWER = ("OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ReadTimeout",
              "HfHubHTTPError", "UnsupportedProtocol")  # fmt: skip
_COMMIT = re.compile(r"@([0-9a-f]{40})\b")
_SECRET = re.compile(r"hf_\w+|\w+://\S+|\?\S+=\S+")


@dataclass(frozen=True, slots=True)
class Rows:
    """A dataset that is open.

    Attributes:
        rows: an ``IterableDataset``, shuffled by the seed if there was one.
        columns: their names.
        column: the one that holds the data.
        split: the one that is read.
        revision: commit on the Hub; None for local data.
    """

    rows: Any
    columns: tuple[str, ...]
    column: str
    split: str
    revision: str | None

    def facts(self) -> dict[str, Any]:
        """What was taken where the user named nothing; unset fields are left out."""
        facts = {"split": self.split, "column": self.column, "revision": self.revision}
        return {key: value for key, value in facts.items() if value}


def open_rows(source: DataSource, seed: int | None, known: Sequence[str]) -> Rows:
    """Open a dataset; the split is ``train``, or the first, where none is named.

    Args:
        seed: of the order; None leaves rows in their own.
        known: names of columns that are taken where none is named, the first that is there.

    Raises:
        MissingLibrary: ``datasets`` is not installed.
        BadData: no such dataset, config or split, or it cannot be read.
        MissingColumn: the column is missing; or none is named and none is known.
        AccessDenied, HubUnreachable: as for a model.
    """
    with dataset_errors(source):
        rows, split, revision = _open(source)
        columns = tuple(rows.column_names or next(iter(rows), ()))
    if not columns:
        raise BadData(source.name, f"split '{split}' has no rows")
    if seed is not None:
        with dataset_errors(source):
            # With files read side by side, threads are waited for: 5 seconds more for Parquet.
            rows = rows.shuffle(seed=seed, buffer_size=SHUFFLED, max_buffer_input_shards=1)
    wanted = [source.column] if source.column else known
    column = next((name for name in wanted if name in columns), None)
    if column is None and not source.column and len(columns) == 1:
        column = columns[0]
    if column is None:
        hint = (
            "name the column: hf:DATASET:CONFIG:SPLIT:COLUMN, where CONFIG and SPLIT may be empty"
        )
        raise MissingColumn(source.name, wanted if source.column else (), columns, hint)
    return Rows(rows, columns, column, split, revision)


def _open(source: DataSource) -> tuple[Any, str, str | None]:
    """The dataset, the name of its split, and its commit."""
    datasets = library(source.name)
    local = source.local_dataset
    if local is not None and (splits := _saved(local)) is not None:
        return *_split_of(splits, source), None
    options: dict[str, Any] = {}
    path = str(local.resolve()) if local else source.dataset
    if local is not None and local.is_file():
        if local.suffix.lower() not in _FORMATS:
            raise BadData(source.name, f"a file that ends in '{local.suffix}' is no dataset")
        path, options = _FORMATS[local.suffix.lower()], {"data_files": path}
        if local.suffix.lower() == ".tsv":
            options["sep"] = "\t"
    builder = datasets.load_dataset_builder(path, source.config, **options)
    rows, split = _split_of(builder.as_streaming_dataset(), source)
    return rows, split, None if local else commit_of(builder)


def library(name: str) -> Any:
    """The module ``datasets``, for data of this name.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingLibrary("datasets", f"data {name}") from None
    return datasets


def commit_of(builder: Any) -> str | None:
    """The commit on the Hub that a dataset's builder reads; None where there is none."""
    found = _COMMIT.search(str(builder.base_path))
    return found[1] if found else None


def _saved(folder: Path) -> dict[str, Any] | None:
    """The splits of what ``save_to_disk`` wrote; None for any other folder."""
    import datasets

    if (folder / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(folder))
        return {name: one.to_iterable_dataset() for name, one in found.items()}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        found = datasets.load_from_disk(str(folder))
        return {str(found.split or "train"): found.to_iterable_dataset()}
    return None


def _split_of(splits: dict[str, Any], source: DataSource) -> tuple[Any, str]:
    if not splits:
        raise BadData(source.name, "it has no splits")
    name = source.split or ("train" if "train" in splits else next(iter(splits)))
    if name not in splits:
        raise BadData(
            source.name,
            f"no split '{name}'; it has {', '.join(map(str, splits))}",
            hint="name one of them: hf:DATASET:CONFIG:SPLIT, where CONFIG may be empty",
        )
    return splits[name], name


def read_rows(
    rows: Rows,
    source: DataSource,
    budget: int,
    on_event: OnEvent = ignore_events,
    *,
    blank: bool = False,
) -> Documents:
    """Texts of rows, one document each, until there are ``budget`` bytes of them.

    Args:
        blank: whether rows count that hold no text, such as the empty lines of WikiText.

    Raises:
        BadData: the column holds something else than text, or a file is broken.
    """
    on_event(PhaseStarted(READING, budget))
    texts: list[str] = []
    read, is_all = 0, True
    for row in _each(rows.rows, source):
        value = row[rows.column]
        if value is None:
            continue
        if not isinstance(value, str):
            raise BadData(
                source.name,
                f"column '{rows.column}' holds {type(value).__name__}, not text; "
                f"its columns are {', '.join(rows.columns)}",
                hint="name another: hf:DATASET:CONFIG:SPLIT:COLUMN",
            )
        if not blank and not value.strip():
            continue
        texts.append(value)
        size = len(value.encode("utf-8", "surrogatepass"))
        read += size
        on_event(Advanced(READING, size))
        if read >= budget:
            is_all = False
            break
    on_event(PhaseDone(READING))
    return Documents(tuple(texts), is_all, read, read if is_all else None)


def read_images(rows: Rows, source: DataSource) -> Iterator[bytes]:
    """The bytes of image files, row by row; they are not decoded here, and b"" is none.

    Raises:
        BadData: the column holds no images.
    """
    import datasets

    # A dataset of somebody else's may hold text that is the path of a file of the user's.
    if not isinstance((rows.rows.features or {}).get(rows.column), datasets.Image):
        raise BadData(
            source.name,
            f"column '{rows.column}' holds no images; its columns are {', '.join(rows.columns)}",
            hint="name another: hf:DATASET:CONFIG:SPLIT:COLUMN",
        )
    with dataset_errors(source):
        undecoded = rows.rows.cast_column(rows.column, datasets.Image(decode=False))
    for row in _each(undecoded, source):
        value = row[rows.column]
        if value is not None:
            yield image_bytes(value, source)


def image_bytes(value: Mapping[str, Any], source: DataSource) -> bytes:
    """What an image's file holds: the bytes of a row, or what its path leads to; b"" if neither.

    A row is somebody else's: of a dataset of the Hub, only a path that leads there is followed, and
    of a local one only a path that is no address. Any other could name a file of the user's, or a
    server that only the user can reach.
    """
    import fsspec

    data, path = value.get("bytes"), value.get("path")
    if data or not path:
        return bytes(data or b"")
    # "zip://inside.png::hf://datasets/..." is a file in an archive that is there.
    *archives, place = str(path).split("::")
    known = all(one.partition("://")[0] in _ARCHIVES for one in archives)
    here = "://" not in place if source.local_dataset else place.startswith("hf://datasets/")
    if not (known and here):
        return b""
    with dataset_errors(source), fsspec.open(path, "rb") as file:
        read: bytes = file.read()
    return read


_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")
"""Protocols by which ``datasets`` names a file inside of another."""


def _each(rows: Any, source: DataSource) -> Iterator[dict[str, Any]]:
    """Row by row; what silences the library is not held while somebody works on a row."""
    iterator = iter(rows)
    while True:
        with dataset_errors(source):
            row: dict[str, Any] | None = next(iterator, None)
        if row is None:
            return
        yield row


@contextmanager
def dataset_errors(source: DataSource) -> Iterator[None]:
    """Turn what ``datasets`` raises into ours, without addresses or tokens, and keep it quiet."""
    try:
        with quiet_transformers(), _quiet():
            yield
    except (PrunectlError, MemoryError):
        raise
    except Exception as error:  # it reads files of many formats, each with its own library
        raise _translated(error, source) from None


@contextmanager
def _quiet() -> Iterator[None]:
    try:
        import datasets
        from datasets.utils import logging
    except ImportError:
        yield
        return
    hub = getLogger("huggingface_hub")  # which warns of each retry
    levels, had_bars = (
        (logging.get_verbosity(), hub.level),
        not datasets.are_progress_bars_disabled(),
    )
    logging.set_verbosity(CRITICAL + 1)
    hub.setLevel(CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.setLevel(levels[1])
        if had_bars:
            datasets.enable_progress_bars()


def _translated(error: Exception, source: DataSource) -> PrunectlError:
    name, text = type(error).__name__, str(error)
    # The library wraps what it met; the innermost error says what that was.
    inner = error.__cause__ or error.__context__
    if source.local_dataset is None:
        if name == "DatasetNotFoundError" and ("gated" in text or "401" in f"{inner}"):
            return AccessDenied(source.name, "not on the Hub, or private or gated")
        if name == "DatasetNotFoundError":
            return BadData(
                source.name,
                "no such dataset on the Hub, or it is private",
                hint="check the spelling; for a private one run 'hf auth login' or set HF_TOKEN",
            )
        if isinstance(error, ConnectionError | TimeoutError) or name in _NO_ANSWER:
            offline = "Offline" in text or name == "OfflineModeIsEnabled"
            why = "offline mode is on (HF_HUB_OFFLINE)" if offline else "the Hub cannot be reached"
            return HubUnreachable(source.name, why)
    if isinstance(error, StopIteration):  # of an empty file
        return BadData(source.name, "it has no rows")
    first = " ".join(_SECRET.sub("...", text).split()) or name
    if name == "DatasetGenerationError" and inner is not None:
        first = " ".join(_SECRET.sub("...", str(inner)).split()) or first
    return BadData(source.name, first[:300])
