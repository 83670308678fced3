"""Direct reads, past the page cache, of data that is read once and is not in the page cache yet.

Bringing a file into the page cache costs more processor time than checking the file does, and
evicts other files, for bytes that are not read again.
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
"""Files of at least this many bytes are read directly."""
_WINDOW = 1 << 20
"""Bytes of one direct read."""
_HELD = 0.5
"""Share of a file in the page cache from which on it is read through the cache."""


class DirectFiles:
    """Direct descriptors of some files, and an aligned buffer for each thread."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int | None] = {}
        self._own = threading.local()
        self._lock = threading.Lock()

    def read(self, path: Path, fd: int, position: int, out: Bytes) -> int:
        """Fill ``out`` with the file's bytes from ``position`` on, as far as direct reads succeed.

        Args:
            path, fd: of the file; an ordinary descriptor.

        Returns:
            The number of bytes read; the caller reads the rest by ``fd``.
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
            except OSError:  # another alignment, or a failing disk: fd will tell
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
        """Close all files."""
        while self._descriptors:
            _, found = self._descriptors.popitem()
            if found is not None:
                os.close(found)
        self._own = threading.local()
