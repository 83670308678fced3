"""Writing past the page cache (O_DIRECT): whole chunks go from memory to the disk as they are.

Through the page cache, a processor copies every byte and looks after every page, which costs it
more than all of the pruning, and the disk waits meanwhile. Bytes come here in pieces, at any place
and from several threads; what they fill from one boundary to the next is written as one chunk, in
the background.

A slow disk is what is waited for in any case. Then chunks go through the page cache after all, so
that whoever reads the file next finds it there.
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
"""Bytes that are written at once: as large pieces as a disk is at its fastest with."""
_WRITERS = 2
"""Chunks on their way to the disk at a time."""
_WAITING = 4
"""Chunks that may wait for that, with those on their way; then who fills them waits too."""

SLOW = 0.5e9
"""Bytes a second: what a slower disk gets goes through the page cache."""
_JUDGED = 9
"""Chunks after which it is known how fast a disk is."""
_SYNC_EVERY = 64
"""Chunks that go through the page cache until the disk is made to write them."""
_BEGUN = 3
"""Chunks that may wait for more bytes, for each thread that brings some: the one it fills, and
those that its part of the file shares with the parts before and behind."""


@dataclass(eq=False)
class _Chunk:
    """A part of the file in memory: its number, which bytes of it are there, and how many threads
    are bringing more."""

    number: int
    data: NDArray[np.uint8]
    extents: list[tuple[int, int]] = field(default_factory=list)
    filled: int = 0
    fillers: int = 0

    @property
    def is_whole(self) -> bool:
        return self.filled == self.data.size


class DirectWriter:
    """Puts bytes into a file chunk by chunk.

    Memory holds the chunks that wait for the disk, and a few a thread that are begun. Of more than
    that, the one left alone for longest goes through the page cache as it is: there are gaps that
    nobody fills, and a chunk that is cut in two is no harm.

    Args:
        direct: descriptor for whole chunks, of :func:`disks.open_direct`; closed by :meth:`close`.
        fd: an ordinary one of the same file, for what never becomes a whole chunk.

    Raises:
        OSError: from every method: the system refuses to write, now or earlier.
    """

    def __init__(self, direct: int, fd: int) -> None:
        self._direct, self._fd = direct, fd
        self._begun: dict[int, _Chunk] = {}  # the one used last is the last
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
        """Put bytes at a position, each once; they may not be in the file before :meth:`flush`."""
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
        """Until everything is in the file (not yet durable, see ``fsync``)."""
        for _ in range(_WAITING):
            self._room.acquire()
        self._room.release(_WAITING)
        self._raise()
        for chunk in self._begun.values():
            self._write_through(chunk)
        self._begun.clear()

    def close(self) -> None:
        """Stop; what was not flushed may be missing in the file. Who still writes gets an error."""
        self._writers.shutdown(cancel_futures=True)
        self._room.release()  # whoever waits for a chunk that was cancelled; he lets in the next
        self._begun.clear()
        self._free.clear()
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _chunk(self, number: int) -> _Chunk:
        """The chunk to put bytes into, which stays begun until :meth:`_put`."""
        with self._lock:
            chunk = self._begun.pop(number, None)
            if chunk is None:
                chunk = _Chunk(number, self._free.pop() if self._free else aligned(CHUNK))
            self._begun[number] = chunk
            chunk.fillers += 1
            return chunk

    def _put(self, chunk: _Chunk, begin: int, size: int) -> None:
        """Take note of bytes that are in a chunk now; a full one is handed on, or one too many."""
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
            self._begun.pop(ready.number, None)  # closed meanwhile, it is not there
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
        except BaseException as error:  # raised where it is waited for
            self._error = error
        finally:
            with self._lock:
                if len(self._free) < _WAITING:  # more of them would be kept until the file is done
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
        with self._through:  # the kernel lets in one of two, and the other would wait spinning
            for begin, end in chunk.extents:
                write_at(self._fd, chunk.data[begin:end].data, chunk.number * CHUNK + begin)

    def _write_direct(self, data: NDArray[np.uint8], position: int) -> int:
        """Bytes that went to the disk; 0 where it wants other alignments than these."""
        try:
            return os.pwrite(self._direct, data.data, position)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0

    def _judge(self, seconds: float) -> None:
        """How long the first chunks took says whether the disk is slow."""
        with self._lock:
            self._seconds.append(seconds)
            if len(self._seconds) == _JUDGED:
                self._is_slow = SLOW * statistics.median(self._seconds) > _WRITERS * CHUNK


def write_at(fd: int, data: Buffer, position: int) -> None:
    """``pwrite`` until everything is written; one call writes 2 GiB at most."""
    view = memoryview(data)
    while view.nbytes:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
