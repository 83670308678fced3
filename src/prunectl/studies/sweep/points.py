"""Points of a sweep on disk, each appended as soon as it is measured, so that a sweep can resume.

A results file holds JSON lines. The key of a point is a digest of everything that decides it: the
checkpoint, the metric's record, the pruning, the device. A line that was cut off, or that prunectl
did not write, is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import blake3
import numpy as np
from numpy.typing import NDArray

from prunectl import numbers
from prunectl.documents import Document, Share, convert, strict_json
from prunectl.errors import CannotWrite
from prunectl.parallel.launched import is_first_process
from prunectl.to_json import to_json

_OURS = b'{"key": "'
"""The first bytes of a point's line."""
_LARGEST = 1 << 28
"""Most bytes of a results file; a sweep of a large test set has a few MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """The score of a model that was pruned in one way, with one seed.

    Attributes:
        sparsity: achieved, of the prunable weights; overall: of all parameters.
        score: of the metric; None if the point failed.
        values: float64 [samples, columns], the results of each sample; None if the point failed.
        parts: further scores. seconds: of pruning and scoring.
        failed: why there is no score; '' if there is one.
    """

    sparsity: float
    overall: float
    score: float | None
    values: NDArray[np.float64] | None
    parts: dict[str, float]
    seconds: float
    failed: str = ""


_Number = float | Literal["Infinity", "-Infinity"]


class _Line(Document, frozen=True):
    """A line of a results file; numbers that JSON lacks are text."""

    key: str
    sparsity: Share
    overall: Share
    score: _Number | None
    values: list[list[_Number]] | None
    parts: dict[str, _Number | Literal["NaN"]]
    seconds: float
    failed: str

    def point(self) -> Point:
        """Raises ``ValueError`` unless there is either a score, with a table, or a failure."""
        score = None if self.score is None else float(self.score)
        values = None if self.values is None else np.array(self.values, np.float64)
        if {score is None, values is None} != {bool(self.failed)}:
            raise ValueError("neither a score nor a failure")
        if values is not None and not (values.ndim == 2 and values.size):
            raise ValueError("not a table of numbers")
        parts = {name: float(value) for name, value in self.parts.items()}
        return Point(self.sparsity, self.overall, score, values, parts, self.seconds, self.failed)


def key_of(facts: Mapping[str, Any]) -> str:
    """The digest of the facts that decide a point."""
    text = json.dumps(to_json(facts), sort_keys=True)
    return blake3.blake3(text.encode()).hexdigest(length=16)


class Points:
    """The known points by key; a new point is on disk before it counts.

    Of several processes that measure the same, as under ``accelerate launch``, the first writes.

    Args:
        path: of the results file; None keeps points in memory only.
        is_cache: whether failures to write are harmless.

    Raises:
        CannotWrite: the file cannot be read or appended to, or holds something else.
    """

    def __init__(self, path: Path | None, *, is_cache: bool = False) -> None:
        self._path, self.is_cache = path, is_cache
        self._points: dict[str, Point] = {}
        self._cut = False
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                raise CannotWrite(path, error.strerror or type(error).__name__) from None

    @classmethod
    def of(cls, known: Mapping[str, Point]) -> Points:
        """The points of another process, which also writes them."""
        points = cls(None)
        points._points.update(known)
        return points

    @property
    def known(self) -> Mapping[str, Point]:
        """All points by key."""
        return self._points

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device may have no end
            raise CannotWrite(path, "it is no regular file")
        with path.open("ab"):  # fails before the first point is measured
            pass
        if path.stat().st_size > _LARGEST:
            raise CannotWrite(path, f"it has more than {numbers.size(_LARGEST)}")
        is_ours = not path.stat().st_size or self.is_cache
        with path.open("rb") as file:
            for line in file:
                self._take(line)
                self._cut = not line.endswith(b"\n")
                is_ours = is_ours or line.startswith(_OURS)
        if not is_ours:  # a text or a model, which appending would spoil
            raise CannotWrite(path, "it holds something else than points of a sweep")

    def get(self, key: str) -> Point | None:
        """A point, if it is known."""
        return self._points.get(key)

    def add(self, key: str, point: Point) -> None:
        """Store a point durably.

        Raises:
            CannotWrite: this point and all later ones are in memory only.
        """
        self._points[key] = point
        if self._path is None or not is_first_process():
            return
        line = json.dumps({"key": key, **_document(point)}, allow_nan=False)  # begins as _OURS
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._cut else "") + line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path, self._path = self._path, None
            raise CannotWrite(path, error.strerror or type(error).__name__) from None
        self._cut = False

    def _take(self, line: bytes) -> None:
        try:
            found = convert(strict_json(line.decode()), _Line)
            self._points[found.key] = found.point()
        except ValueError:
            return  # cut off by a crash, or not ours: the point is measured again


def _document(point: Point) -> dict[str, Any]:
    return {
        "sparsity": point.sparsity,
        "overall": point.overall,
        "score": to_json(point.score),
        "values": None if point.values is None else to_json(point.values.tolist()),
        "parts": to_json(point.parts),
        "seconds": round(point.seconds, 3),
        "failed": point.failed,
    }
