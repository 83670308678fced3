"""The file-system operations of this package: durable, atomic, with clear errors."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from prunectl.errors import CannotWrite, NoSpace

Buffer = bytes | bytearray | memoryview

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_OFFERED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def os_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn the system's refusals into errors that name the path.

    Args:
        path: the path being written.
        needed: its size in bytes, for the message; 0 if unknown.

    Raises:
        NoSpace: the disk or the quota is full.
        CannotWrite: any other ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            # With a quota, or without free inodes, the free bytes of the disk cannot be used.
            free = None if error.errno == errno.EDQUOT else free_bytes(path)
            full = NoSpace(path, needed if free is not None and free < needed else 0, free)
            full.hint = "free some space and repeat the command: finished shards are kept"
            raise full from error
        refused = CannotWrite(path, error.strerror or str(error))
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            refused.hint = "raise the limit, as by 'ulimit -n 1024', and repeat the command"
        raise refused from error


@contextmanager
def undone_by(undo: Callable[[], object]) -> Iterator[None]:
    """Call ``undo`` if the block fails, or Ctrl-C ends it: no half-made output stays."""
    try:
        yield
    except BaseException:
        undo()
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file through a temporary name next to it: the file is complete or absent.

    An existing path that is not a regular file (``/dev/null``, a pipe) is written into.

    Raises:
        CannotWrite: the system refuses; an existing file is unchanged.
    """
    hidden = path.with_name(f".prunectl-{secrets.token_hex(8)}.partial")
    try:
        if path.exists() and not path.is_file():  # a device or a pipe must not become a file
            path.write_bytes(data)
            return
        hidden.write_bytes(data)
        hidden.replace(path)
    except OSError as error:
        raise CannotWrite(path, error.strerror or type(error).__name__) from None
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write on the file system of ``path``."""
    return shutil.disk_usage(_existing(path)).free


def real_path(path: Path) -> Path:
    """Return the absolute path without links and ``..``; it need not exist.

    Raises:
        OSError: a loop of links, or a name that is too long for the file system.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    real = path.resolve()
    longest = os.pathconf(_existing(real), "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in real.parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    return real


def name_room(path: Path) -> int:
    """Return the bytes left for a longer name of ``path``; negative if it is too long."""
    return os.pathconf(_existing(path.parent), "PC_NAME_MAX") - len(os.fsencode(path.name))


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def is_mount_point(path: Path) -> bool:
    """Return whether something is mounted at a real path.

    ``os.path.ismount`` does not detect a bind mount from the same file system.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # not Linux
        mounts = []
    escaped = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), os.fsencode(path))
    return os.path.ismount(path) or any(mount.split(b" ")[4] == escaped for mount in mounts)


def create_file(path: Path) -> int:
    """Open a new or emptied file for positional writing; its mode follows the umask."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def is_safe_relative(name: str) -> bool:
    """Return whether a file name from outside stays inside the folder it is joined to."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and name == str(path)
        and not path.is_absolute()
        and not any(part in {"..", "."} for part in path.parts)
        and "\\" not in name
        and "\0" not in name
    )


def allocate(fd: int, size: int) -> None:
    """Give the file its final size, with reserved blocks if the file system supports that.

    Not ``os.posix_fallocate``: without such support, the C library writes into every block.
    """
    if size:
        code = errno.EINTR
        while code == errno.EINTR:
            code = _c_call("fallocate", fd, 0, ctypes.c_int64(0), ctypes.c_int64(size))
        if code not in {0, *_NOT_OFFERED}:
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_parents(folder: Path) -> int:
    """Create missing folders, all or none; return their number."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return len(missing)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove empty folders, and leave the others; best effort."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove(path: Path) -> None:
    """Delete a file, a link, or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def exchange(first: Path, second: Path) -> bool:
    """Swap two existing paths in one step (``renameat2`` with RENAME_EXCHANGE).

    Returns:
        False if the system or the file system does not support it; then nothing has changed.
    """
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    code = _c_call("renameat2", *names, ctypes.c_uint(_RENAME_EXCHANGE))
    if code in {0, *_NOT_OFFERED}:
        return code == 0
    raise OSError(code, os.strerror(code), str(second))


def _c_call(name: str, *arguments: object) -> int:
    """Call the C library; return 0 or the error number, ENOSYS if it lacks the function."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return errno.ENOSYS
    return 0 if function(*arguments) == 0 else ctypes.get_errno()
