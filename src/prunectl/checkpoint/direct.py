"""Reading past the page cache what is read once, where the page cache does not hold it already.

Bringing a file into the page cache costs a processor more than checking it does, and takes the
place of what is there, for bytes that nobody asks for again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from prunectl.disks import ALIGNMENT, aligned, open_direct, share_in_memory

Bytes = npt.NDArray[np.uint8]

DIRECT_FROM = 64 << 20
"""Bytes of a file from which on it is worth it."""
_WINDOW = 1 << 20
"""Bytes that are read at once."""
_HELD = 0.5
"""Of a file, what the page cache holds if it is read from there."""


class DirectFiles:
    """Some files' descriptors past the page cache, and a window of memory for each thread."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int | None] = {}
        self._own = threading.local()
        self._lock = threading.Lock()

    def read(self, path: Path, fd: int, position: int, out: Bytes) -> int:
        """Fill ``out`` with the file's bytes from ``position`` on, as far as that goes this way.

        Args:
            path, fd: of the file; an ordinary descriptor.

        Returns:
            how many bytes were read; the rest is to be read by ``fd``.
        """
        direct = self._descriptor(path, fd)
        if direct is None:
            return 0
        if not hasattr(self._own, "window"):
            self._own.window = aligned(_WINDOW + ALIGNMENT)
        done = 0
        while done < out.size:
            skip = (position + done) % ALIGNMENT
            wanted = min(_WINDOW, out.size - done)
            window = self._own.window[: -(-(skip + wanted) // ALIGNMENT) * ALIGNMENT]
            try:
                got = os.preadv(direct, [window.data], position + done - skip) - skip
            except OSError:  # a disk that wants other alignments, or one that fails: fd will tell
                return done
            if got <= 0:
                return done
            part = window[skip : skip + min(got, wanted)]
            np.copyto(out[done : done + part.size], part)
            done += part.size
        return done

    def _descriptor(self, path: Path, fd: int) -> int | None:
        with self._lock:
            if path not in self._descriptors:
                wanted = os.fstat(fd).st_size >= DIRECT_FROM
                found = open_direct(path, fd, os.O_RDONLY) if wanted else None
                if found is not None and share_in_memory(fd) >= _HELD:
                    os.close(found)
                    found = None
                self._descriptors[path] = found
            return self._descriptors[path]

    def close(self) -> None:
        """Close all of them."""
        while self._descriptors:
            _, found = self._descriptors.popitem()
            if found is not None:
                os.close(found)
        self._own = threading.local()
