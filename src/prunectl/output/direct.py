"""Write past the page cache (O_DIRECT): whole chunks are written from memory to the disk directly.

To write through the page cache, the processor copies every byte and manages every page, which takes
more time than all of the pruning, while the disk waits. Here, several threads bring bytes in
pieces, at any position; each full chunk between two boundaries is written in the background.

A slow disk is the bottleneck in any case. Chunks for it are written through the page cache, so that
the next reader finds the file in memory.
"""

from __future__ import annotations

import errno
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prunectl.disks import aligned
from prunectl.output.osfiles import Buffer

CHUNK = 2 << 20
"""Bytes that are written at once: the size at which a disk is fastest."""
_WRITERS = 2
"""Chunks that are written at the same time."""
_WAITING = 4
"""Full chunks in memory, written or waiting; at this number, the filling threads wait too."""

SLOW = 0.5e9
"""Bytes a second: a slower disk is written through the page cache."""
_JUDGED = 9
"""Chunks after which the speed of a disk is known."""
_SYNC_EVERY = 64
"""Chunks written through the page cache between two syncs."""
_BEGUN = 3
"""Unfinished chunks for each writing thread: the one it fills, and those that its part of the file
shares with the parts before and after."""


@dataclass(eq=False)
class _Chunk:
    """A chunk of the file in memory: its number, its filled extents, and the number of threads that
    are filling it."""

    number: int
    data: NDArray[np.uint8]
    extents: list[tuple[int, int]] = field(default_factory=list)
    filled: int = 0
    fillers: int = 0

    @property
    def is_whole(self) -> bool:
        return self.filled == self.data.size


class DirectWriter:
    """Write bytes into a file chunk by chunk.

    Memory holds the chunks that wait for the disk, and a few unfinished ones for each thread.
    Beyond that number, the least recently used chunk is written through the page cache as it is:
    some gaps are never filled, and a chunk may be written in two parts.

    Args:
        direct: descriptor for whole chunks, from :func:`disks.open_direct`; closed by
            :meth:`close`.
        fd: ordinary descriptor of the same file, for bytes that never fill a whole chunk.

    Raises:
        OSError: from every method: the system refuses to write, now or earlier.
    """

    def __init__(self, direct: int, fd: int) -> None:
        self._direct, self._fd = direct, fd
        self._begun: dict[int, _Chunk] = {}  # the most recently used is the last
        self._fillers: set[int] = set()
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()
        self._through = threading.Lock()
        self._room = threading.Semaphore(_WAITING)
        self._writers = ThreadPoolExecutor(_WRITERS, "prunectl-write")
        self._error: BaseException | None = None
        self._seconds: list[float] = []
        self._is_slow = False
        self._unsynced = 0

    def write(self, data: Buffer, position: int) -> None:
        """Write bytes at a position, each byte once; :meth:`flush` completes the file."""
        source = np.frombuffer(data, np.uint8)
        while source.size:
            self._raise()
            number, begin = divmod(position, CHUNK)
            part = source[: CHUNK - begin]
            chunk = self._chunk(number)
            np.copyto(chunk.data[begin : begin + part.size], part)  # lets other threads run
            self._put(chunk, begin, part.size)
            source, position = source[part.size :], position + part.size

    def flush(self) -> None:
        """Wait until everything is in the file (not yet durable, see ``fsync``)."""
        for _ in range(_WAITING):
            self._room.acquire()
        self._room.release(_WAITING)
        self._raise()
        for chunk in self._begun.values():
            self._write_through(chunk)
        self._begun.clear()

    def close(self) -> None:
        """Stop; unflushed bytes may be missing in the file, and threads still writing get an
        error."""
        self._writers.shutdown(cancel_futures=True)
        self._room.release()  # for a thread that waits for a cancelled chunk; it releases the next
        self._begun.clear()
        self._free.clear()
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _chunk(self, number: int) -> _Chunk:
        """Return the chunk to put bytes into, which is kept unfinished until :meth:`_put`."""
        with self._lock:
            chunk = self._begun.pop(number, None)
            if chunk is None:
                chunk = _Chunk(number, self._free.pop() if self._free else aligned(CHUNK))
            self._begun[number] = chunk
            chunk.fillers += 1
            return chunk

    def _put(self, chunk: _Chunk, begin: int, size: int) -> None:
        """Record bytes that are in a chunk now; hand on a full chunk, or one over the limit."""
        ready: _Chunk | None = None
        with self._lock:
            chunk.extents.append((begin, begin + size))
            chunk.filled += size
            chunk.fillers -= 1
            self._fillers.add(threading.get_ident())
            if chunk.is_whole:
                ready = chunk
            elif len(self._begun) > _BEGUN * len(self._fillers):
                ready = next((one for one in self._begun.values() if not one.fillers), None)
            if ready is None:
                return
            self._begun.pop(ready.number, None)  # missing if closed in the meantime
        self._room.acquire()
        try:
            self._writers.submit(self._write, ready)
        except RuntimeError:  # closed
            self._room.release()
            raise

    def _write(self, chunk: _Chunk) -> None:
        try:
            if self._error is None:
                self._write_now(chunk)
        except BaseException as error:  # raised by the thread that waits for the chunk
            self._error = error
        finally:
            with self._lock:
                if len(self._free) < _WAITING:  # more would be kept until the file is done
                    self._free.append(chunk.data)
            self._room.release()

    def _write_now(self, chunk: _Chunk) -> None:
        written = 0
        if chunk.is_whole and not self._is_slow:
            started = time.monotonic()
            written = self._write_direct(chunk.data, chunk.number * CHUNK)
            self._judge(time.monotonic() - started)
            if written == CHUNK:
                return
        if chunk.is_whole:
            chunk.extents = [(written, CHUNK)]
        self._write_through(chunk)
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            self._unsynced = 0
            os.fsync(self._fd)

    def _write_through(self, chunk: _Chunk) -> None:
        with self._through:  # the kernel admits one of two threads, and the other would spin
            for begin, end in chunk.extents:
                write_at(self._fd, chunk.data[begin:end].data, chunk.number * CHUNK + begin)

    def _write_direct(self, data: NDArray[np.uint8], position: int) -> int:
        """Return the number of bytes written to the disk; 0 if it needs another alignment."""
        try:
            return os.pwrite(self._direct, data.data, position)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0

    def _judge(self, seconds: float) -> None:
        """Decide from the time of the first chunks whether the disk is slow."""
        with self._lock:
            self._seconds.append(seconds)
            if len(self._seconds) == _JUDGED:
                self._is_slow = SLOW * statistics.median(self._seconds) > _WRITERS * CHUNK


def write_at(fd: int, data: Buffer, position: int) -> None:
    """Call ``pwrite`` until everything is written; one call writes at most 2 GiB."""
    view = memoryview(data)
    while view.nbytes:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
