"""The few file-system steps that everything in this room stands on: durable, atomic, clear errors."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunectl.errors import CannotWrite, NoSpace

Buffer = bytes | bytearray | memoryview

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def os_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn the system's refusals into errors that name the path.

    Args:
        path: what is being written.
        needed: its size in bytes, for the message.

    Raises:
        NoSpace: the disk or the quota is full.
        CannotWrite: any other ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            full = NoSpace(path, needed, free_bytes(path))
            full.hint = "free some space and repeat the command: finished shards are kept"
            raise full from error
        raise CannotWrite(path, error.strerror or str(error)) from error


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system that holds, or would hold, ``path``."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free


def create_file(path: Path) -> int:
    """Open a new or emptied file for positional writing; its mode follows the umask."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def allocate(fd: int, size: int) -> None:
    """Give the file its final size, with the blocks reserved where the file system can do that."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
    os.ftruncate(fd, size)


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(first: Path, second: Path) -> bool:
    """Swap two existing paths in one step (``renameat2`` with RENAME_EXCHANGE).

    Returns:
        False where the system or the file system cannot do it; nothing has changed then.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    ]
    paths = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    if renameat2(*paths, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(second))
