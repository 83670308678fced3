"""Histograms as bytes: steps between starts, counts, and what cannot be derived from these.

A record is a CRC-32 of the rest, a header, then little-endian columns: steps and counts in the
smallest unsigned type that holds them; log2 widths (u8) if any bin is wide; energies (f64) of the
wide bins.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.tensorspec import DTYPES, DType

_HEADER = struct.Struct("<12sBBQQ")
"""Dtype name, bytes of a step and of a count, bins, wide bins."""


def pack(
    dtype: DType,
    starts: NDArray[np.uint64],
    logs: NDArray[np.uint8],
    counts: NDArray[np.int64],
    energies: NDArray[np.float64],
) -> bytes:
    """The record of a histogram's columns."""
    steps = _narrowest(np.diff(starts, prepend=np.uint64(0)))
    small = _narrowest(counts.astype(np.uint64))
    wide = logs > 0
    columns = [steps, small, logs if wide.any() else logs[:0], energies[wide].astype("<f8")]
    fields = (steps.itemsize, small.itemsize, starts.size, int(wide.sum()))
    record = _HEADER.pack(dtype.name.encode(), *fields) + b"".join(c.tobytes() for c in columns)
    return struct.pack("<I", zlib.crc32(record)) + record


def unpack(data: bytes) -> tuple[DType, tuple[NDArray[Any], ...]]:
    """The dtype and the columns of a record: starts, log2 widths, counts, energies.

    Energies are 0 where the width is 1.

    Raises:
        ValueError: damaged.
    """
    check(data)
    name, step, count, n, wide = _HEADER.unpack_from(data, 4)
    known = name.rstrip(b"\0").decode("ascii", "replace") in DTYPES
    size = n * (step + count + bool(wide)) + 8 * wide
    if not known or {step, count} - {1, 2, 4, 8} or size != len(data) - 4 - _HEADER.size:
        raise ValueError("damaged histogram: the header does not fit the record")
    logs = np.frombuffer(data, np.uint8, n * bool(wide), 4 + _HEADER.size + n * (step + count))
    if np.count_nonzero(logs) != wide:
        raise ValueError("damaged histogram: the header does not fit the widths")
    return columns_of(data)


def columns_of(data: bytes) -> tuple[DType, tuple[NDArray[Any], ...]]:
    """As :func:`unpack`, for a record that this process wrote or checked: no checks."""
    name, step, count, n, wide = _HEADER.unpack_from(data, 4)
    dtype = DTYPES[name.rstrip(b"\0").decode("ascii")]
    at = 4 + _HEADER.size
    steps = np.frombuffer(data, f"<u{step}", n, at).astype(np.uint64)
    counts = np.frombuffer(data, f"<u{count}", n, at + n * step).astype(np.int64)
    at += n * (step + count)
    starts, energies = np.cumsum(steps), np.zeros(n)
    if not wide:
        return dtype, (starts, np.zeros(n, np.uint8), counts, energies)
    logs = np.frombuffer(data, np.uint8, n, at)
    energies[logs > 0] = np.frombuffer(data, "<f8", wide, at + n)
    return dtype, (starts, logs, counts, energies)


def check(data: bytes) -> None:
    """Raise ValueError unless ``data`` is long enough for a record and fits its own checksum."""
    if len(data) < 4 + _HEADER.size or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise ValueError("damaged histogram: the checksum differs")


def _narrowest(values: NDArray[np.uint64]) -> NDArray[Any]:
    """The values in the smallest little-endian unsigned type that holds them."""
    top = int(values.max(initial=0))
    size = next(s for s in (1, 2, 4, 8) if top < 1 << 8 * s)
    return values.astype(f"<u{size}")
