"""Direct reads and writes, past the page cache (O_DIRECT).

Offsets, lengths and memory must then be multiples of ``ALIGNMENT``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 4096
"""Bytes; no common disk has larger sectors."""

_MAPPED = 1 << 30
"""Bytes of a file whose pages are queried at once."""

_LOCAL_DISKS = {0xEF53: "ext4", 0x58465342: "xfs"}
"""File systems with fast direct access; network ones need their cache."""


def open_direct(path: Path, fd: int, access: int) -> int | None:
    """Open a second, direct descriptor of a file that is open as ``fd``.

    Args:
        access: ``os.O_RDONLY`` or ``os.O_WRONLY``.

    Returns:
        None where direct access is not available, or not faster.
    """
    flag: int | None = getattr(os, "O_DIRECT", None)
    if flag is None or file_system(fd) not in _LOCAL_DISKS:
        return None
    try:
        return os.open(path, access | os.O_CLOEXEC | flag)
    except OSError:  # on any error, the open descriptor still works
        return None


def file_system(fd: int) -> int:
    """The magic number of a file's file system on Linux; 0 elsewhere."""
    if sys.platform != "linux":  # others have a longer struct statfs
        return 0
    found = (ctypes.c_long * 64)()  # larger than any struct statfs; the kind comes first
    return found[0] & 0xFFFFFFFF if _c_library().fstatfs(fd, found) == 0 else 0


def share_in_memory(fd: int) -> float:
    """The share of a file in the page cache, 0..1; 1 if unknown.

    Linux reports it only for one's own files, and reports others as fully cached.
    """
    size = os.fstat(fd).st_size
    if sys.platform != "linux" or not size:
        return 1.0
    try:
        held = [
            _pages_in_memory(fd, start, min(_MAPPED, size - start))
            for start in range(0, size, _MAPPED)
        ]
    except OSError:
        return 1.0
    return sum(held) / -(-size // mmap.PAGESIZE)


def _pages_in_memory(fd: int, start: int, size: int) -> int:
    """The number of cached pages of a part of a file."""
    pages = np.empty(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ, offset=start) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        place, vector = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(pages.ctypes.data)
        failed = _c_library().mincore(place, ctypes.c_size_t(size), vector)
        del view  # or the file could not be unmapped
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int(np.count_nonzero(pages & 1))


def aligned(size: int) -> NDArray[np.uint8]:
    """Page-aligned memory, uint8 [size]."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return np.frombuffer(mmap.mmap(-1, size, flags=private), np.uint8)


def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
