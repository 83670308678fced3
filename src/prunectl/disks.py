"""Disks that can be read and written past the page cache (O_DIRECT), from memory to disk and back.

Offsets, lengths and memory must be multiples of ``ALIGNMENT`` then.
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
"""Bytes of a file that are asked about at once."""

_LOCAL_DISKS = {0xEF53: "ext4", 0x58465342: "xfs"}
"""File systems that do it without losing by it; network ones want their cache."""


def open_direct(path: Path, fd: int, access: int) -> int | None:
    """A second descriptor, past the page cache, of a file that is open as ``fd``.

    Args:
        access: ``os.O_RDONLY`` or ``os.O_WRONLY``.

    Returns:
        None where that is not offered, or brings nothing.
    """
    flag: int | None = getattr(os, "O_DIRECT", None)
    if flag is None or file_system(fd) not in _LOCAL_DISKS:
        return None
    try:
        return os.open(path, access | os.O_CLOEXEC | flag)
    except OSError:  # whatever it is, the open descriptor may still do
        return None


def file_system(fd: int) -> int:
    """The number that Linux gives the kind of file system a file is on; 0 elsewhere."""
    if sys.platform != "linux":  # others have a longer struct statfs
        return 0
    found = (ctypes.c_long * 64)()  # more than any struct statfs; the kind comes first
    return found[0] & 0xFFFFFFFF if _c_library().fstatfs(fd, found) == 0 else 0


def share_in_memory(fd: int) -> float:
    """The share of a file that the page cache holds, 0..1; 1 where the system does not say.

    Linux says it of one's own files only, and of others that all of it is there.
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
    """How many pages of a part of a file the page cache holds.

    Raises:
        OSError: the system does not say.
    """
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
    """Memory that begins at a page, uint8 [size]."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return np.frombuffer(mmap.mmap(-1, size, flags=private), np.uint8)


def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
