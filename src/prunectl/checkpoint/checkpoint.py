"""A checkpoint as its headers describe it: the source of every command."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prunectl.checkpoint.reader import TensorReader, WeightReader
from prunectl.checkpoint.roles import RoleMap
from prunectl.checkpoint.stored import StoredTensor, WeightFile
from prunectl.errors import BadCheckpoint, FileChanged

_ROLES_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model's weights and side files, known from headers alone; equal to itself only.

    Attributes:
        model: as the user named it.
        kind: ``hub``, ``folder``, ``file``, or ``demo`` for the embedded model.
        folder: where the files are.
        format: ``safetensors`` or ``pickle``; ``compressed`` for the stored parts of an export.
        files: the weight files, sorted by name.
        tensors: in *file order*: files by name, then the order of bytes (safetensors) or of the
            state dict (pickle). Ties between equal magnitudes are resolved in this order.
        aliases: further names of tensors whose bytes are stored once -> the name in ``tensors``.
        side_files: everything else that belongs to the model, relative to ``folder``.
        repo_id, revision, commit: set if it came from the Hub.
        quantization: what the config or the tensors' names say of quantization, or ''.
        trust_remote_code: whether the model's own Python code may run to build its module tree.
        notes: what the user should know of how it was opened, such as that the Hub did not answer.
        metadata: what the header of each file says besides its tensors, by file name.
        opener: makes the reader of a checkpoint whose tensors are decoded as they are read.
        digests: BLAKE3 of the bytes of tensors, by name, where a header states it.
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
        """What each tensor is. Built once, at the first use, from the module tree if possible."""
        # Several threads may ask at once, and cached_property lets each of them build.
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
        """The tensors by every name they have, further names of tied ones included."""
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
            once: whether nothing is read a second time soon: then memory need not keep it.
        """
        return WeightReader(self.folder, once=once) if self.opener is None else self.opener()

    def check_unchanged(self) -> None:
        """Refuse to finish what was made from files that changed since they were opened.

        Size and time of the weights files are compared, and the contents of config.json, which
        decides what is prunable.

        Raises:
            FileChanged: a file is another one than it was, or is gone.
        """
        changed = [file.name for file in self.files if not _is_as_opened(self.folder, file)]
        try:  # by their texts: a NaN is not equal to itself
            is_same = repr(read_config(self.folder)) == repr(self.config)
        except BadCheckpoint:
            is_same = False
        if not is_same:
            changed.append("config.json")
        if changed:
            raise FileChanged(
                self.folder / changed[0],
                "changed since it was opened",
                hint="repeat the command when nothing writes to it any more",
            )

    def identity(self) -> dict[str, Any]:
        """What makes this very checkpoint: the commit, or path, size and mtime of every file."""
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
    """The folder's config.json as a dict; empty where it is missing or not an object.

    Raises:
        BadCheckpoint: it is there, and the system refuses to read it.
    """
    path = folder / "config.json"
    if not path.is_file():  # a pipe would never end
        return {}
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
