"""Write masks alone: one small safetensors file that is complete under its name, or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prunectl.errors import OutputConflict, OutputError
from prunectl.output.direct import write_at
from prunectl.output.header import ALIGNMENT, MAX_HEADER
from prunectl.output.osfiles import Buffer, allocate, os_errors, sync_folder, undone_by

FORMAT = "prunectl.masks/1"

_NO_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True)
class MaskEntry:
    """A mask to write: its tensor, and the facts known before its bits.

    Attributes:
        name, shape: of the tensor.
        weights: number of weights.
        pattern: the N:M pattern that the mask follows, or None.
        input_axis: the axis of ``shape`` along which groups lie, or None.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    pattern: str | None = None
    input_axis: int | None = None

    @property
    def nbytes(self) -> int:
        """Return the number of bytes of the mask."""
        return -(-self.weights // 8)


class MaskWriter:
    """Write one file of masks, in any order and by several threads; :meth:`close` names the file.

    Until then the file has no name if the system supports that (Linux, most file systems), so that
    a killed run leaves nothing; otherwise it has a hidden name.

    Args:
        path: the path of the file; its folder exists.
        entries: all masks, in the order of the file.
        source: the source of the masks, JSON-ready.
        force: replace an existing file at ``path``.

    Raises:
        OutputError: a name that cannot be stored, or more than a header can describe.
        NoSpace, CannotWrite: the system refuses; also from every method.
    """

    def __init__(
        self, path: Path, entries: Sequence[MaskEntry], source: Mapping[str, Any], *, force: bool
    ) -> None:
        self._path, self._entries, self._source, self._force = path, entries, source, force
        self._begins: dict[str, int] = {}
        end = 0
        for entry in entries:
            if entry.name in self._begins or entry.name == "__metadata__":
                why = f"tensor '{entry.name}' cannot be stored: the name is already taken"
                raise OutputError(why)
            self._begins[entry.name] = end
            end += entry.nbytes
        # The numbers of zeros come later; none has more digits than the number of weights.
        text = self._header({entry.name: entry.weights for entry in entries})
        self._room = len(text) + -len(text) % ALIGNMENT
        if self._room > MAX_HEADER:
            raise OutputError(
                f"{len(entries):,} masks need a header of {self._room:,} bytes; safetensors allows "
                f"{MAX_HEADER:,}"
            )
        self.size = 8 + self._room + end
        self._hidden = path.with_name(f".masks-{secrets.token_hex(8)}.prunectl-partial")
        with os_errors(path, self.size):
            self._fd: int | None
            self._fd, self._is_named = _create(self._hidden)
            with undone_by(self.abort):
                allocate(self._fd, self.size)

    def write(self, name: str, position: int, data: Buffer) -> None:
        """Write bytes of a mask at ``position``, in bytes from its first."""
        self._write(data, 8 + self._room + self._begins[name] + position)

    def close(self, zeros: Mapping[str, int]) -> None:
        """Write the header, make the file durable, and give it its name.

        Args:
            zeros: number of pruned weights, by tensor name.

        Raises:
            OutputConflict: the path exists by now, and ``force`` is false.
        """
        text = self._header(zeros)
        self._write(struct.pack("<Q", self._room) + text.ljust(self._room), 0)
        assert self._fd is not None
        with os_errors(self._path, self.size):
            try:
                os.fsync(self._fd)
                if not self._is_named:
                    _give_name(self._fd, self._hidden)
                    self._is_named = True
                _move(self._hidden, self._path, force=self._force)
            finally:
                self.abort()
            sync_folder(self._path.parent)

    def abort(self) -> None:
        """Drop the file; does nothing after :meth:`close`."""
        if self._fd is None:
            return
        os.close(self._fd)
        self._fd = None
        if self._is_named:
            with contextlib.suppress(OSError):
                self._hidden.unlink(missing_ok=True)

    def _write(self, data: Buffer, position: int) -> None:
        if self._fd is None:
            raise ValueError(f"{self._path.name} is closed")
        with os_errors(self._path, self.size):
            write_at(self._fd, memoryview(data).cast("B"), position)

    def _header(self, zeros: Mapping[str, int]) -> bytes:
        described = {
            entry.name: {
                "shape": list(entry.shape),
                "zeros": zeros[entry.name],
                "pattern": entry.pattern,
                "input_axis": entry.input_axis,
            }
            for entry in self._entries
        }
        metadata = {
            "format": FORMAT,
            "masks": json.dumps(described, separators=(",", ":")),
            "source": json.dumps(self._source, separators=(",", ":")),
        }
        document: dict[str, Any] = {"__metadata__": metadata}
        for entry in self._entries:
            begin = self._begins[entry.name]
            document[entry.name] = {
                "dtype": "U8",
                "shape": [entry.nbytes],
                "data_offsets": [begin, begin + entry.nbytes],
            }
        return json.dumps(document, separators=(",", ":")).encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()


def _create(hidden: Path) -> tuple[int, bool]:
    """Create a file; return its descriptor and whether it has a name."""
    flags = os.O_RDWR | os.O_CLOEXEC
    nameless: int | None = getattr(os, "O_TMPFILE", None)
    if nameless is not None and Path("/proc/self/fd").is_dir():
        try:
            return os.open(hidden.parent, flags | nameless, 0o666), False
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
    return os.open(hidden, flags | os.O_CREAT | os.O_EXCL, 0o666), True


def _give_name(fd: int, path: Path) -> None:
    # With a folder's descriptor Python calls linkat, which follows the link that /proc has.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(f"/proc/self/fd/{fd}", path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _move(hidden: Path, path: Path, *, force: bool) -> None:
    """Give a file its final name; without ``force`` only if the name is free."""
    if force:
        hidden.replace(path)
        return
    try:
        os.link(hidden, path)
    except FileExistsError:
        raise OutputConflict(path, "exists by now", hint="choose another -o") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise OutputConflict(path, "exists by now", hint="choose another -o") from None
        hidden.replace(path)
