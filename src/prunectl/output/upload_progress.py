"""How much of an upload is done: events for the bytes of each file as they are sent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO

from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted

UPLOADING = "uploading"
_LARGE = 1 << 20
_BATCH = 1 << 30
"""Bytes that are uploaded together, but for one larger file: a client that does not read through
:meth:`Uploading.watched` (that of Xet) is told of once a batch."""


class Uploading:
    """Counts what is sent; threads read the files, and again where a part is repeated."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, total: int) -> Iterator[None]:
        """Begins and ends the phase; ``total`` is in bytes."""
        self._on_event(PhaseStarted(UPLOADING, total))
        yield
        self._on_event(PhaseDone(UPLOADING))

    def watched(self, file: BinaryIO, name: str) -> BinaryIO:
        """The same file; each read beyond what was read before is an event."""
        read = file.read

        def told_read(size: int = -1) -> bytes:
            data = read(size)
            self._reached(name, file.tell())
            return data

        # Not a wrapper: the client asks the file itself for its descriptor and its place.
        file.read = told_read  # type: ignore[method-assign]
        return file

    def finish(self, sizes: Mapping[str, int]) -> None:
        """These files are on the Hub, whether or not all of them had to be sent."""
        for name, size in sizes.items():
            self._reached(name, size)

    def _reached(self, name: str, position: int) -> None:
        with self._lock:
            more = position - self._sent[name]
            if more > 0:
                self._sent[name] = position
                self._on_event(Advanced(UPLOADING, more, name))


def batches(sizes: Mapping[str, int], at_once: int) -> Iterator[list[str]]:
    """All small files at once, then the large ones by a few, in order.

    Args:
        sizes: in bytes, by name. at_once: most large files in a batch.
    """
    small = [name for name, size in sizes.items() if size < _LARGE]
    yield from ([small] if small else [])
    batch: list[str] = []
    for name in (name for name, size in sizes.items() if size >= _LARGE):
        if len(batch) == at_once or (
            batch and sizes[name] + sum(sizes[one] for one in batch) > _BATCH
        ):
            yield batch
            batch = []
        batch.append(name)
    yield from ([batch] if batch else [])
