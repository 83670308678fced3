"""Open a checkpoint: from the user's argument to checked headers."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from prunectl import demo
from prunectl.checkpoint.checkpoint import Checkpoint, read_config
from prunectl.checkpoint.headers import check_headers, shard_names
from prunectl.checkpoint.index import (
    COMPRESSED_SUFFIX,
    PICKLE_SUFFIXES,
    WeightSet,
    find_weights,
    read_index,
)
from prunectl.checkpoint.model_kind import quantization_of
from prunectl.checkpoint.safetensors_file import read_safetensors
from prunectl.checkpoint.sidefiles import (
    beside_weights,
    is_own_file,
    link_notes,
    list_folder,
    side_files,
    side_files_beside,
)
from prunectl.checkpoint.stored import StoredTensor, WeightFile
from prunectl.checkpoint.torch_file import read_torch_file
from prunectl.errors import (
    BadCheckpoint,
    InvalidOption,
    ModelNotFound,
    NoWeights,
    UnsupportedCheckpoint,
)
from prunectl.events import OnEvent
from prunectl.hub.snapshot import HubSnapshot, fetch, is_repo_id, split_revision
from prunectl.userdirs import expanded

_SHA256 = re.compile("[0-9a-f]{64}")


def open_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    on_event: OnEvent | None = None,
) -> Checkpoint:
    """Open a checkpoint by Hub id or path.

    Of local files, only headers are read. For a Hub id, missing weights and side files are
    downloaded into the cache first; ``Checkpoint.notes`` states when the Hub did not answer and the
    cache was used instead.

    Args:
        model: a Hub id (``org/name``, ``org/name@revision``), a folder, one weights file, or
            ``demo``, the model that is part of prunectl.
        revision: branch, tag or commit on the Hub.
        token: for private and gated repositories; default: the one stored by ``hf auth login``.
        cache_dir: the Hub cache to use; default: huggingface_hub's own.
        trust_remote_code: let the model's own code build its module tree.
        on_event: receives the progress of a download; None shows huggingface_hub's bars.

    Raises:
        SourceError: the source cannot be opened; its subclasses tell why.
        InvalidOption: a revision with a local path.
    """
    found = open_stored(
        model,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
        on_event=on_event,
    )
    if found.format == "compressed":
        raise compressed_error(found.model)
    return found


def compressed_error(model: str) -> UnsupportedCheckpoint:
    """The error for a compressed checkpoint where only a dense one will do."""
    return UnsupportedCheckpoint(
        model,
        "a compressed prunectl folder",
        hint=f"make it dense first: prunectl export {shlex.quote(model)} --layout dense -o DIR",
    )


def open_stored(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    on_event: OnEvent | None = None,
) -> Checkpoint:
    """Open like :func:`open_checkpoint`, but a compressed folder as its stored parts."""
    text = os.fspath(model)
    if model == demo.NAME:  # not a Path, which is always local
        return _open_demo(revision, trust_remote_code=trust_remote_code)
    path = local_path(text)
    if path is not None and revision:
        raise InvalidOption(
            f"--revision {revision} is for Hub ids, and {text} is a local path",
            hint="leave --revision out",
        )
    if path is not None and path.is_dir():
        return _open_folder(text, "folder", path, trust_remote_code=trust_remote_code)
    if path is not None:
        return _open_file(text, path, trust_remote_code=trust_remote_code)
    repo_id, revision = hub_id(text, revision)
    snapshot = fetch(
        repo_id,
        revision,
        partial(_wanted, text),
        token=token,
        cache_dir=Path(cache_dir) if cache_dir else None,
        on_event=on_event,
    )
    return _open_folder(text, "hub", snapshot.folder, snapshot, trust_remote_code=trust_remote_code)


def _wanted(model: str, names: Sequence[str], get: Callable[[str], Path]) -> list[str]:
    """Files of a repository that make up a checkpoint; see :data:`prunectl.hub.snapshot.Select`."""
    weights = find_weights(names, model)
    index = read_index(get(weights.index)) if weights.index else {}
    shards = sorted(set(index.values())) or weights.files
    return [*shards, *beside_weights(names, weights)]


def hub_id(text: str, revision: str | None) -> tuple[str, str | None]:
    """The repository and revision, from ``org/name@revision`` and ``--revision``.

    Raises:
        ModelNotFound: not a Hub id, or two revisions.
    """
    repo_id, inline = split_revision(text)
    if inline and revision and inline != revision:
        raise ModelNotFound(text, f"names revision {inline}, --revision says {revision}")
    if not is_repo_id(repo_id) or text.endswith((".safetensors", *PICKLE_SUFFIXES)):
        raise ModelNotFound(
            text,
            "no such file or folder, nor a Hub id",
            hint="give org/name, a folder with a checkpoint, or one weights file",
        )
    return repo_id, revision or inline


def _open_demo(revision: str | None, *, trust_remote_code: bool) -> Checkpoint:
    """The embedded model. No folder of the same name hides it."""
    if revision:
        raise InvalidOption(
            f"--revision {revision} is for Hub ids, and {demo.NAME} is the embedded model",
            hint="leave --revision out",
        )
    # it has no code of its own, but tasks that it is evaluated on may
    folder = demo.model_folder()
    found = _open_folder(demo.NAME, "demo", folder, trust_remote_code=trust_remote_code)
    if not os.path.exists(demo.NAME):  # noqa: PTH110
        return found
    note = f"{demo.NAME} is the embedded model; for the local folder, give ./{demo.NAME}"
    return replace(found, notes=(note, *found.notes))


def local_path(text: str) -> Path | None:
    """The folder or file of ``text``, or None; an empty text is not the current folder."""
    try:
        path = expanded(text)
        return path if text and (path.is_dir() or path.is_file()) else None
    except OSError as error:
        raise ModelNotFound(text[:200], f"cannot be accessed: {error.strerror}") from None


def _open_folder(
    model: str,
    kind: str,
    folder: Path,
    snapshot: HubSnapshot | None = None,
    *,
    trust_remote_code: bool,
) -> Checkpoint:
    try:
        top = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise BadCheckpoint(folder, f"cannot be read: {error.strerror}") from None
    if not top:
        raise NoWeights(str(folder), "the folder is empty")
    # find weights before listing anything below: the folder may be a home directory
    weights = find_weights(top, str(folder))
    sides = side_files(list_folder(folder))
    return _assemble(model, kind, folder, weights, sides, snapshot, trust_remote_code)


def _open_file(model: str, path: Path, *, trust_remote_code: bool) -> Checkpoint:
    if path.suffix == ".gguf":
        raise UnsupportedCheckpoint(
            path,
            "GGUF is quantized for llama.cpp",
            hint="use the safetensors checkpoint from which it was made",
        )
    if path.name.endswith(".index.json"):
        return _open_index(model, path, trust_remote_code=trust_remote_code)
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        raise NoWeights(str(path), "its name is not that of a weights file")
    format = _format_of([path.name])
    beside = side_files_beside(e.name for e in path.parent.iterdir() if is_own_file(path.parent, e))
    weights = WeightSet(format, (path.name,))
    return _assemble(model, "file", path.parent, weights, beside, None, trust_remote_code)


def _open_index(model: str, path: Path, *, trust_remote_code: bool) -> Checkpoint:
    names = set(read_index(path).values())
    weights = WeightSet(_format_of(names), (), path.name)
    sides = side_files(list_folder(path.parent))
    return _assemble(model, "folder", path.parent, weights, sides, None, trust_remote_code)


def _format_of(names: Collection[str]) -> str:
    if all(name.endswith(COMPRESSED_SUFFIX) for name in names):
        return "compressed"
    return "pickle" if all(name.endswith(PICKLE_SUFFIXES) for name in names) else "safetensors"


def _assemble(
    model: str,
    kind: str,
    folder: Path,
    weights: WeightSet,
    sides: tuple[str, ...],
    snapshot: HubSnapshot | None,
    trust_remote_code: bool,
) -> Checkpoint:
    names, weight_map = shard_names(folder, folder, weights, lambda n: (folder / n).is_file())
    files = tuple(_weight_file(folder, name, from_hub=snapshot is not None) for name in names)
    headers = {name: _read_header(folder, name, weights.format) for name in names}
    tensors, aliases = check_headers(folder, weights, weight_map, headers)
    notes = link_notes(folder, names) if kind in ("folder", "hub") else ()
    return Checkpoint(
        model, kind, folder, weights.format, files, tensors, aliases, sides,
        repo_id=snapshot.repo_id if snapshot else None,
        revision=snapshot.revision if snapshot else None,
        commit=snapshot.commit if snapshot else None,
        quantization=quantization_of(read_config(folder), [t.name for t in tensors]),
        trust_remote_code=trust_remote_code,
        notes=(*snapshot.notes, *notes) if snapshot else notes,
        metadata={name: metadata for name, (_, metadata) in headers.items()},
    )  # fmt: skip


def _weight_file(folder: Path, name: str, *, from_hub: bool) -> WeightFile:
    try:
        status = (folder / name).stat()
    except OSError as error:
        raise BadCheckpoint(folder / name, f"cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadCheckpoint(folder / name, "not a regular file", hint="put the file itself there")
    # in the cache, a blob is named by sha256 if the Hub keeps it in LFS or Xet, else by git's sha1
    blob = (folder / name).resolve().name if from_hub else ""
    sha256 = blob if _SHA256.fullmatch(blob) else None
    return WeightFile(name, status.st_size, status.st_mtime_ns, sha256)


def _read_header(folder: Path, name: str, format: str) -> tuple[list[StoredTensor], dict[str, str]]:
    """A file's tensors, and the metadata of its header."""
    try:
        if format == "pickle":
            return read_torch_file(folder / name, name), {}
        return read_safetensors(folder / name, name)
    except OSError as error:
        raise BadCheckpoint(folder / name, f"cannot be read: {error.strerror}") from None
