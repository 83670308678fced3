"""A checkpoint as described by its headers: the source of every command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prunectl.checkpoint.reader import TensorReader, WeightReader
from prunectl.checkpoint.roles import RoleMap
from prunectl.checkpoint.stored import StoredTensor, WeightFile
from prunectl.documents import parse_json, read_regular
from prunectl.errors import BadCheckpoint, FileChanged

_ROLES_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model's weights and side files, from headers alone; compared by identity.

    Attributes:
        model: the user's argument.
        kind: ``hub``, ``folder``, ``file``, or ``demo`` for the embedded model.
        folder: of the files.
        format: ``safetensors`` or ``pickle``; ``compressed`` for the stored parts of an export.
        files: the weight files, sorted by name.
        tensors: in *file order*: files by name, then the order of bytes (safetensors) or of the
            state dict (pickle). Ties between equal magnitudes are resolved in this order.
        aliases: other names of tensors whose bytes are stored once -> the name in ``tensors``.
        side_files: everything else that belongs to the model, relative to ``folder``.
        repo_id, revision, commit: set if it came from the Hub.
        quantization: the quantization method, from the config or the tensors' names, or ''.
        trust_remote_code: whether the model's own Python code may run to build its module tree.
        notes: sentences to the user on the opening, for example that the Hub did not answer.
        metadata: the ``__metadata__`` of each header, by file name.
        opener: makes the reader, for a checkpoint whose tensors are decoded on reading.
        digests: BLAKE3 of the bytes of tensors, by name, as stated in headers.
    """

    model: str
    kind: str
    folder: Path
    format: str
    files: tuple[WeightFile, ...]
    tensors: tuple[StoredTensor, ...]
    aliases: dict[str, str]
    side_files: tuple[str, ...]
    repo_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    quantization: str = ""
    trust_remote_code: bool = False
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    opener: Callable[[], TensorReader] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def roles(self) -> RoleMap:
        """Roles of all tensors, from the module tree if possible; built once, on first use."""
        # with several threads, cached_property would build it several times
        with _ROLES_LOCK:
            return self._roles

    @cached_property
    def _roles(self) -> RoleMap:
        from prunectl.checkpoint.role_cache import load_roles

        return load_roles(self)

    @cached_property
    def by_name(self) -> dict[str, StoredTensor]:
        """The tensors by name, in file order."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def by_any_name(self) -> dict[str, StoredTensor]:
        """The tensors by all their names, including other names of tied tensors."""
        own = self.by_name
        return own | {alias: own[name] for alias, name in self.aliases.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed config.json, or an empty dict; read once."""
        return read_config(self.folder)

    def open(self, *, once: bool = False) -> TensorReader:
        """A reader of the weight bytes; close it, or use it in a ``with`` block.

        Args:
            once: nothing is read again soon, so the page cache need not keep it.
        """
        return WeightReader(self.folder, once=once) if self.opener is None else self.opener()

    def check_unchanged(self) -> None:
        """Refuse to finish if files changed since they were opened.

        Compares size and time of the weights files, and the contents of config.json, which decides
        what is prunable.

        Raises:
            FileChanged: a file changed or is gone.
        """
        changed = [file.name for file in self.files if not _is_as_opened(self.folder, file)]
        try:  # compared as text: a NaN is not equal to itself
            is_same = repr(read_config(self.folder)) == repr(self.config)
        except BadCheckpoint:
            is_same = False
        if not is_same:
            changed.append("config.json")
        if changed:
            raise FileChanged(
                self.folder / changed[0],
                "changed since it was opened",
                hint="repeat the command when nothing writes to the file anymore",
            )

    def identity(self) -> dict[str, Any]:
        """Identifies the exact checkpoint: the commit, or path, size and mtime of every file."""
        if self.commit:
            return {
                "repo_id": self.repo_id,
                "commit": self.commit,
                "files": [[file.name, file.size] for file in self.files],
            }
        return {
            "folder": str(self.folder.resolve()),
            "files": [[file.name, file.size, file.mtime_ns] for file in self.files],
        }


def _is_as_opened(folder: Path, file: WeightFile) -> bool:
    try:
        status = (folder / file.name).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict; empty if it is missing or not an object.

    Raises:
        BadCheckpoint: it exists but cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():  # reading a pipe would never end
        return {}
    try:
        config = parse_json(read_regular(path))
    except OSError as error:
        raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from None
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
