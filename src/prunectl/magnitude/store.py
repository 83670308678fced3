"""Per-tensor histograms of a whole model, kept out of memory."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterable
from typing import IO, Annotated, Self

from msgspec import Meta

from prunectl.documents import convert, parse_json
from prunectl.magnitude.histogram import Histogram

_MAGIC = b"prunectl histograms 1\n"
_Length = Annotated[int, Meta(gt=0, lt=2**31)]
_SPOOL = 16 * 2**20


class HistogramStore:
    """Histograms by tensor name; beyond 16 MiB they live in a temporary file.

    Threads may share it. Close it, or use it in a ``with`` statement.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL)  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._last: tuple[str, Histogram] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the temporary file; the store cannot be used afterwards."""
        self._file.close()

    @property
    def names(self) -> Iterable[str]:
        """Tensor names in the order they were appended."""
        return self._places.keys()

    def __len__(self) -> int:
        return len(self._places)

    def append(self, name: str, histogram: Histogram) -> None:
        """Add one tensor's histogram.

        Raises:
            ValueError: the tensor already has one.
        """
        self._append_record(name, histogram.to_bytes())

    def replace(self, name: str, histogram: Histogram) -> None:
        """Replace the histogram of a tensor by a finer one.

        The old record stays in the temporary file until :meth:`close`.

        Raises:
            KeyError: the tensor has none.
        """
        with self._lock:
            if name not in self._places:
                raise KeyError(name)
            self._last = None
            self._write(name, histogram.to_bytes())

    def _append_record(self, name: str, record: bytes) -> None:
        with self._lock:
            if name in self._places:
                raise ValueError(f"tensor '{name}' has a histogram already")
            self._write(name, record)

    def _write(self, name: str, record: bytes) -> None:
        self._file.seek(self._end)
        self._file.write(record)
        self._places[name] = (self._end, len(record))
        self._end += len(record)

    def get(self, name: str) -> Histogram:
        """One tensor's histogram. Raises KeyError for an unknown name.

        The latest histogram is kept, since callers request the same one several times in a row.
        """
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = name, Histogram.from_own_bytes(self._read(name))
            return self._last[1]

    def _read(self, name: str) -> bytes:
        place, size = self._places[name]
        self._file.seek(place)
        return self._file.read(size)

    def dump(self, file: IO[bytes]) -> None:
        """Write everything to a binary file, one record at a time."""
        index = json.dumps([[name, size] for name, (_, size) in self._places.items()]).encode()
        file.write(_MAGIC + len(index).to_bytes(8, "little") + index)
        for name in self._places:
            with self._lock:
                record = self._read(name)
            file.write(record)

    @classmethod
    def load(cls, file: IO[bytes]) -> Self:
        """Read :meth:`dump`; checks the index and all of each record, once.

        Raises:
            ValueError: damaged, cut short, or followed by something else.
        """
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("not a histogram file of this version")
        store = cls()
        try:
            for name, size in _index(file):
                record = file.read(size)
                Histogram.from_bytes(record)  # checked here, trusted from here on
                store._append_record(name, record)
            if file.read(1):
                raise ValueError("damaged histogram file: something follows its end")
        except BaseException:  # after Ctrl-C too, the temporary file goes
            store.close()
            raise
        return store


def _index(file: IO[bytes]) -> list[tuple[str, int]]:
    """Names and record sizes, checked."""
    size = int.from_bytes(file.read(8), "little")
    text = file.read(min(size, 2**31))
    try:
        return convert(parse_json(text), list[tuple[str, _Length]], "its index")
    except ValueError as error:
        raise ValueError(f"damaged histogram file: {error}") from None
