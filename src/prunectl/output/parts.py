"""Weight files of a compressed output: tensors stored as parts, whose sizes are known once encoded.

Such a file is an ordinary safetensors file with a special name (``*.prunectl.safetensors``), so
that no library mistakes it for a checkpoint that it can load. The header's ``__metadata__`` holds,
under ``prunectl``, the information needed to decode each tensor; docs/format.md specifies it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prunectl.errors import OutputError
from prunectl.output.header import ALIGNMENT, MAX_HEADER, Header
from prunectl.output.osfiles import Buffer, undone_by
from prunectl.output.partial import PartialFile
from prunectl.output.shards import Shard, plan_shards
from prunectl.tensorspec import TensorSpec

PARTS_SUFFIX = ".prunectl.safetensors"
PARTS_INDEX = f"model{PARTS_SUFFIX}.index.json"
METADATA_KEY = "prunectl"
FORMAT_VERSION = "1"
"""Increased when an older prunectl could not read the files."""


@dataclass(frozen=True, slots=True)
class PartsShard:
    """One weights file to write: its name, and the tensors that it will hold in some layout."""

    name: str
    specs: tuple[TensorSpec, ...]

    @property
    def dense_bytes(self) -> int:
        """Return the bytes of its tensors when stored densely."""
        return sum(spec.nbytes for spec in self.specs)


def plan_parts(specs: Sequence[TensorSpec], max_shard_size: int) -> tuple[PartsShard, ...]:
    """Split tensors into files like a dense output, by dense sizes.

    Raises:
        OutputError: names that cannot be stored.
    """
    layout = plan_shards(specs, max_shard_size)
    order = {spec.name: place for place, spec in enumerate(specs)}
    return tuple(
        PartsShard(
            shard.name.removesuffix(".safetensors") + PARTS_SUFFIX,
            tuple(sorted(shard.specs, key=lambda spec: order[spec.name])),
        )
        for shard in layout.shards
    )


class PartsWriter:
    """Write one compressed file from front to back; :meth:`close` gives it its name.

    Positions count from the first byte after the header. The tensors given to :meth:`declare` must
    cover the bytes without a gap. ``room`` bytes are reserved for the header (:func:`header_room`).
    ``shown`` is the name of the file in messages.

    Raises:
        NoSpace, CannotWrite: the system refuses; from every method.
    """

    def __init__(
        self, folder: Path, shard: PartsShard, room: int, shown: Path | None = None
    ) -> None:
        self.plan = shard
        self.name = shard.name
        self.shard: Shard | None = None
        self._entries: dict[str, dict[str, Any]] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, str] = {}
        self._begin = 8 + room
        self._file = PartialFile(folder, shard.name, 0, shown, expected=shard.dense_bytes)

    def write(self, data: Buffer, position: int) -> None:
        """Write bytes at ``position``; several threads may write at once."""
        view = memoryview(data)
        if view.nbytes:
            self._file.write(view.cast("B"), self._begin + position)

    def declare(self, name: str, dtype: str, shape: Sequence[int], begin: int, end: int) -> None:
        """List a stored tensor (a part, or a dense one) in the header.

        Raises:
            OutputError: the name is taken.
        """
        if name in self._entries or name == "__metadata__":
            raise OutputError(f"tensor '{name}' cannot be stored: the name is already taken")
        self._entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [begin, end],
        }

    def describe(self, tensor: str, description: Mapping[str, Any]) -> None:
        """Record how to decode a tensor that is stored as parts (JSON values)."""
        self._described[tensor] = dict(description)

    def state(self, tensor: str, blake3: str) -> None:
        """Record the digest of a tensor that is stored densely."""
        self._digests[tensor] = blake3

    def close(self) -> None:
        """Write the header, make the file durable and give it its final name.

        Raises:
            ValueError: the declared tensors leave gaps; the file is removed then.
        """
        with undone_by(self.abort):
            header = self._header()
            self._file.truncate(header.file_size)
            self._file.write(header.data, 0)
        self._file.close()
        self.shard = Shard(self.name, self.plan.specs, header)

    def _header(self) -> Header:
        ordered = sorted(self._entries.items(), key=lambda item: item[1]["data_offsets"])
        position = 0
        for name, entry in ordered:
            begin, end = entry["data_offsets"]
            if begin != position or end < begin:
                raise ValueError(f"{self.name}: '{name}' does not follow the tensor before it")
            position = end
        text = _header_text(dict(ordered), self._described, self._digests)
        room = self._begin - 8
        if len(text) > room:
            raise ValueError(f"{self.name}: a header of {len(text)} bytes, room for {room}")
        data = struct.pack("<Q", room) + text.ljust(room)
        offsets = {name: self._begin + entry["data_offsets"][0] for name, entry in ordered}
        return Header(data, offsets, self._begin + position)

    def abort(self) -> None:
        """Drop the file; does nothing after :meth:`close`."""
        self._file.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.abort()


def parts_index(where: Mapping[str, str], total_size: int) -> bytes:
    """Return the index of several files: the file of every part and every dense tensor."""
    document = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(where.items()))}
    return (json.dumps(document, indent=2) + "\n").encode()


def _header_text(
    entries: Mapping[str, Any], described: Mapping[str, Any], digests: Mapping[str, str]
) -> bytes:
    document = {"format": FORMAT_VERSION, "tensors": described, "blake3": digests}
    metadata = {METADATA_KEY: json.dumps(document, separators=(",", ":"))}
    header = {"__metadata__": metadata, **entries}
    return json.dumps(header, separators=(",", ":")).encode()


def header_room(
    entries: Sequence[TensorSpec], described: Mapping[str, Any], digests: Mapping[str, str]
) -> int:
    """Return the maximum size of a header in bytes, a multiple of the alignment.

    Args:
        entries: the tensors to be stored, with the largest shapes that they may have.
        described, digests: as given later to :meth:`PartsWriter.describe` and ``state``; their
            shapes and numbers are final.

    Raises:
        OutputError: more than safetensors allows.
    """
    end = sum(spec.nbytes + 2 * ALIGNMENT for spec in entries)
    listed = {
        spec.name: {
            "dtype": spec.dtype.name,
            # Padding may add a digit to the size of a part.
            "shape": [size + ALIGNMENT for size in spec.shape],
            "data_offsets": [end, end],
        }
        for spec in entries
    }
    length = len(_header_text(listed, described, digests))
    length += -length % ALIGNMENT
    if length > MAX_HEADER:
        raise OutputError(
            f"{len(listed):,} tensors need a header of {length:,} bytes; safetensors allows "
            f"{MAX_HEADER:,}",
            hint="choose a smaller --max-shard-size",
        )
    return length
