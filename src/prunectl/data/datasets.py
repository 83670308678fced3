"""Datasets on the Hub and on disk, read by the optional library ``datasets``.

Rows are streamed: only the rows that are needed are fetched, and none are copied to a cache. No
code of a dataset's repository is run. Images are not decoded.
"""

from __future__ import annotations

import os
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

TEXT_COLUMNS = ("text", "sentence", "content", "document", "article", "body", "passage", "prompt",
                "question", "premise")  # fmt: skip
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")

_BUFFER = 1_000
"""Size of the buffer of rows that a shuffle draws from; the order of files is shuffled too."""
_STEP = 1_000
"""Number of rows between two progress events."""
_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")
"""Protocols in ``datasets``' paths of files inside an archive."""
_NO_ANSWER = ("OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ReadTimeout",
              "HfHubHTTPError", "UnsupportedProtocol")  # fmt: skip
_COMMIT = re.compile(r"@([0-9a-f]{40})\b")
_SECRET = re.compile(r"hf_\w+|\w+://\S+|\?\S+=\S+")


@dataclass(frozen=True, slots=True)
class Rows:
    """One column of one split of a dataset.

    Attributes:
        rows: an ``IterableDataset``, shuffled if there is a seed.
        columns: names of all columns.
        column: name of the column to read.
        split: name of the split.
        revision: the commit on the Hub; None for local data.
    """

    rows: Any
    columns: tuple[str, ...]
    column: str
    split: str
    revision: str | None

    def facts(self) -> dict[str, Any]:
        """The split, column and commit that are used, for the record."""
        facts = {"split": self.split, "column": self.column, "revision": self.revision}
        return {key: value for key, value in facts.items() if value}


# --- opening ------------------------------------------------------------------------------------


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    # For a folder that may not be read, os.path returns False where Path raises.
    is_single = all(os.path.isfile(path / name) for name in ("state.json", "dataset_info.json"))  # noqa: PTH113
    return is_single or os.path.isfile(path / "dataset_dict.json")  # noqa: PTH113


def open_splits(source: DataSource) -> tuple[dict[str, Any], str | None]:
    """Open a dataset on the Hub, a local folder or file, or a folder that ``save_to_disk`` wrote.

    Returns an ``IterableDataset`` for each split by name, and the commit on the Hub or None.

    Raises:
        MissingLibrary: ``datasets`` is not installed.
        BadData: the dataset or config does not exist, or cannot be opened.
        AccessDenied, HubUnreachable: as for a model.
    """
    local = source.local_dataset
    revision = None
    with dataset_errors(source) as datasets:
        if local is not None and is_saved(local):
            found = datasets.load_from_disk(str(local))
            if not isinstance(found, dict):
                found = {found.split or "train": found}
            splits = {name: one.to_iterable_dataset() for name, one in found.items()}
        else:
            builder = _builder(datasets, source, local)
            splits = builder.as_streaming_dataset()
            if local is None and (at := _COMMIT.search(str(builder.base_path))):
                revision = at[1]
        # Text formats have no features yet, and nothing to decode. A cast to encoded images would
        # not keep the library's threads from decoding images of the Hub.
        splits = {name: one.decode(False) if one.features else one for name, one in splits.items()}
    return {str(name): one for name, one in splits.items()}, revision


def _builder(datasets: Any, source: DataSource, local: Path | None) -> Any:
    if local is None or local.is_dir():
        path = str(local.resolve()) if local else source.dataset
        return datasets.load_dataset_builder(path, source.config)
    suffix = local.suffix.lower()
    if not local.is_file():  # a pipe or a device may never end
        raise BadData(source.name, "it is not a regular file")
    if suffix not in _FORMATS:
        raise BadData(source.name, f"files that end in '{local.suffix}' are not supported")
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    return datasets.load_dataset_builder(
        _FORMATS[suffix], source.config, data_files=str(local.resolve()), **options
    )


def open_rows(source: DataSource, seed: int | None, known: Sequence[str]) -> Rows:
    """Open one split: the one that the source names, else ``train``, else the first.

    Args:
        seed: seed of a shuffle of the rows; None keeps their order.
        known: names of columns, for a source that names none: the first that exists is read. A
            single column is read whatever its name.

    Raises:
        MissingColumn: the named column is missing, or none is named and no known one exists.
        MissingLibrary, BadData, AccessDenied, HubUnreachable: see :func:`open_splits`.
    """
    splits, revision = open_splits(source)
    if not splits:
        raise BadData(source.name, "it has no splits")
    split = source.split or ("train" if "train" in splits else next(iter(splits)))
    if split not in splits:
        raise BadData(
            source.name,
            f"no split '{split}'; it has {', '.join(splits)}",
            hint="name one of them: hf:DATASET:CONFIG:SPLIT, where CONFIG may be empty",
        )
    rows = splits[split]
    with dataset_errors(source):
        columns = tuple(rows.column_names or next(iter(rows), ()))
        if seed is not None:
            # With several files at once, the library's threads for Parquet take 5 seconds to end.
            rows = rows.shuffle(seed=seed, buffer_size=_BUFFER, max_buffer_input_shards=1)
    if not columns:
        raise BadData(source.name, f"split '{split}' has no rows")
    only = columns if len(columns) == 1 else ()
    wanted = [source.column] if source.column else [*known, *only]
    column = next((name for name in wanted if name in columns), None)
    if column is None:
        hint = (
            "name the column: hf:DATASET:CONFIG:SPLIT:COLUMN, where CONFIG and SPLIT may be empty"
        )
        raise MissingColumn(source.name, wanted if source.column else (), columns, hint)
    return Rows(rows, columns, column, split, revision)


# --- reading ------------------------------------------------------------------------------------


def read_rows(
    rows: Rows,
    source: DataSource,
    budget: int,
    on_event: OnEvent = ignore_events,
    *,
    blank: bool = False,
) -> Documents:
    """Read rows until their texts have ``budget`` bytes: one document for each row.

    Args:
        blank: whether to keep blank rows, such as the empty lines of WikiText.

    Raises:
        BadData: the column holds something other than text, or a file is broken.
    """
    on_event(PhaseStarted(READING, budget))
    texts: list[str] = []
    read, is_all = 0, True
    for row in _each(rows.rows, source):
        value = row[rows.column]
        if value is None:
            continue
        if not isinstance(value, str):
            raise _wrong_column(rows, source, f"{type(value).__name__}, not text")
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
    """Yield the bytes of each row's image file; b"" if its path may not be read.

    Raises:
        BadData: the column does not hold images.
    """
    # Text is not read as paths: it could name any file of the user.
    if rows.column not in _image_columns(rows.rows):
        raise _wrong_column(rows, source, "no images")
    for row in _each(rows.rows, source):
        value = row[rows.column]
        if value is not None:
            yield image_bytes(value, source)


def _wrong_column(rows: Rows, source: DataSource, content: str) -> BadData:
    return BadData(
        source.name,
        f"column '{rows.column}' holds {content}; its columns are {', '.join(rows.columns)}",
        hint="name another: hf:DATASET:CONFIG:SPLIT:COLUMN",
    )


def table_rows(
    rows: Any, source: DataSource, split: str, on_event: OnEvent = ignore_events
) -> Iterator[dict[str, Any]]:
    """Yield all columns of a split, row by row; an image is the bytes of its file.

    Raises:
        BadData: a file is broken, or a row has no image.
    """
    images = _image_columns(rows)
    known = (rows.info.splits or {}).get(split)
    total = int(getattr(known, "num_examples", 0) or 0)
    if total:
        on_event(PhaseStarted(READING, total, "rows"))
    try:
        for number, row in enumerate(_each(rows, source), 1):
            for name in images:
                row[name] = image_bytes(row[name] or {}, source)
                if not row[name]:
                    raise BadData(source.name, "a row has no image")
            yield row
            if total and not number % _STEP:
                on_event(Advanced(READING, _STEP, split))
    finally:  # also if the caller stops early
        if total:
            on_event(PhaseDone(READING))


def _image_columns(rows: Any) -> list[str]:
    import datasets

    features = rows.features or {}
    return [name for name, one in features.items() if isinstance(one, datasets.Image)]


def classes_of(rows: Any) -> dict[str, list[str]]:
    """The names of classes, for each column that holds class numbers."""
    named = {name: getattr(one, "names", None) for name, one in (rows.features or {}).items()}
    return {name: list(names) for name, names in named.items() if names}


def image_bytes(value: Mapping[str, Any], source: DataSource) -> bytes:
    """The bytes of an image file, from the row or its path; b"" if the path may not be read.

    A row is untrusted: its path could name a private file of the user, or a server that only the
    user can reach. So a path in a Hub dataset must be on the Hub, and a path in a local dataset
    must not be a URL.
    """
    import fsspec

    data, path = value.get("bytes"), value.get("path")
    if data or not path:
        return bytes(data or b"")
    # "zip://inside.png::hf://datasets/..." names a file in an archive on the Hub.
    *archives, target = str(path).split("::")
    known = all(one.partition("://")[0] in _ARCHIVES for one in archives)
    allowed = "://" not in target if source.local_dataset else target.startswith("hf://datasets/")
    if not (known and allowed):
        return b""
    with dataset_errors(source), fsspec.open(path, "rb") as file:
        read: bytes = file.read()
    return read


def _each(rows: Any, source: DataSource) -> Iterator[dict[str, Any]]:
    """Yield the rows; logging and progress bars are silenced only while a row is fetched."""
    iterator = iter(rows)
    while True:
        with dataset_errors(source):
            row: dict[str, Any] | None = next(iterator, None)
        if row is None:
            return
        yield row


# --- the library --------------------------------------------------------------------------------


@contextmanager
def dataset_errors(source: DataSource) -> Iterator[Any]:
    """Yield the module ``datasets``, silenced, and convert its errors to errors of prunectl.

    Addresses and tokens are removed from messages.

    Raises:
        MissingLibrary: ``datasets`` is not installed.
    """
    try:
        import datasets
        from datasets.utils import logging
    except ImportError:
        raise MissingLibrary("datasets", f"data {source.name}") from None
    hub = getLogger("huggingface_hub")  # logs a warning for each retry
    levels = logging.get_verbosity(), hub.level
    had_bars = not datasets.are_progress_bars_disabled()
    logging.set_verbosity(CRITICAL + 1)
    hub.setLevel(CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        with quiet_transformers():
            yield datasets
    except (PrunectlError, MemoryError):
        raise
    except Exception as error:  # each file format has a library with other errors
        raise _translated(error, source) from None
    finally:
        logging.set_verbosity(levels[0])
        hub.setLevel(levels[1])
        if had_bars:
            datasets.enable_progress_bars()


def _translated(error: Exception, source: DataSource) -> PrunectlError:
    name, text = type(error).__name__, str(error)
    inner = error.__cause__ or error.__context__  # the error that the library has wrapped
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
    if isinstance(error, StopIteration):  # an empty file
        return BadData(source.name, "it has no rows")
    if name == "DatasetGenerationError" and inner is not None:
        text = str(inner) or text
    return BadData(source.name, (" ".join(_SECRET.sub("...", text).split()) or name)[:300])
