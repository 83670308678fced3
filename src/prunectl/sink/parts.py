"""Weight files of a compressed output: tensors stored as parts, sizes known once encoded.

Such a file is an ordinary safetensors file with a name of its own (``*.prunectl.safetensors``), so
that nothing mistakes it for a checkpoint it can load. Its header's ``__metadata__`` holds, under
``prunectl``, what is needed to decode each tensor; docs/format.md specifies it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prunectl.errors import OutputError
from prunectl.sink.header import ALIGNMENT, MAX_HEADER, Header
from prunectl.sink.osfiles import Buffer
from prunectl.sink.partial import PartialFile
from prunectl.sink.shards import Shard, plan_shards
from prunectl.tensorspec import TensorSpec

PARTS_SUFFIX = ".prunectl.safetensors"
PARTS_INDEX = f"model{PARTS_SUFFIX}.index.json"
METADATA_KEY = "prunectl"
FORMAT_VERSION = "1"
"""Raised when files are written that an older prunectl cannot read."""

MAX_PARTS = 2
"""Parts of one tensor at most; with it the header's length is bounded before anything is known."""

_EXTRA_ROOM = 300
"""Characters that parts and parameters of a layout may take in the description of one tensor."""


@dataclass(frozen=True, slots=True)
class PartsShard:
    """One weights file to be: its name, and the tensors that it will hold in some layout."""

    name: str
    specs: tuple[TensorSpec, ...]

    @property
    def dense_bytes(self) -> int:
        """Bytes of its tensors stored densely."""
        return sum(spec.nbytes for spec in self.specs)


def plan_parts(specs: Sequence[TensorSpec], max_shard_size: int) -> tuple[PartsShard, ...]:
    """Split tensors into files as a dense output would be split, by dense sizes.

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
    """Writes one compressed file from front to back; :meth:`close` gives it its name.

    Bytes go to positions counted from the first byte after the header. What :meth:`declare` lists
    must cover them without a gap.

    Raises:
        NoSpace, CannotWrite: the system refuses; from every method.
    """

    def __init__(self, folder: Path, shard: PartsShard) -> None:
        self.plan = shard
        self.name = shard.name
        self.shard: Shard | None = None
        self._entries: dict[str, dict[str, Any]] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._begin = 8 + _header_room(shard.specs)
        self._file = PartialFile(folder, shard.name, 0)

    def write(self, data: Buffer, position: int) -> None:
        """Put bytes at ``position``; several threads may write at once."""
        view = memoryview(data)
        if view.nbytes:
            self._file.write(view.cast("B"), self._begin + position)

    def truncate(self, position: int) -> None:
        """Forget all bytes from ``position`` on; beyond the end, fill up with zero bytes."""
        self._file.truncate(self._begin + position)

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
        """Record how a tensor that is stored as parts is decoded (JSON values)."""
        self._described[tensor] = dict(description)

    def close(self) -> None:
        """Write the header, make the file durable and give it its final name.

        Raises:
            ValueError: the declared tensors leave gaps; the file is removed then.
        """
        try:
            header = self._header()
            self._file.truncate(header.file_size)
            self._file.write(header.data, 0)
        except BaseException:
            self.abort()
            raise
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
        text = _header_text(dict(ordered), self._described)
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
    """The index of several files: the file of every stored tensor, parts by their own names."""
    document = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(where.items()))}
    return (json.dumps(document, indent=2) + "\n").encode()


def _header_text(entries: Mapping[str, Any], described: Mapping[str, Any]) -> bytes:
    document = {"format": FORMAT_VERSION, "tensors": described}
    metadata = {METADATA_KEY: json.dumps(document, separators=(",", ":"))}
    header = {"__metadata__": metadata, **entries}
    return json.dumps(header, separators=(",", ":")).encode()


def _header_room(specs: Sequence[TensorSpec]) -> int:
    """Bytes that the header takes at most, a multiple of the alignment.

    Raises:
        OutputError: more than safetensors allows.
    """
    end = 4 * sum(spec.nbytes + 64 for spec in specs) + 4096  # no layout is four times the dense
    entries: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for spec in specs:
        shape = [max(spec.nbytes, 64)] * max(len(spec.shape), 2)
        for part in range(MAX_PARTS):
            entries[f"{spec.name}.position{part}"] = {
                "dtype": "U64X",
                "shape": shape,
                "data_offsets": [end, end],
            }
        described[spec.name] = {
            "layout": "bitmask",
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "blake3": "0" * 64,
            "extra": "x" * _EXTRA_ROOM,
        }
    length = len(_header_text(entries, described))
    length += -length % ALIGNMENT
    if length > MAX_HEADER:
        raise OutputError(
            f"{len(specs):,} tensors need a header of {length:,} bytes; safetensors allows "
            f"{MAX_HEADER:,}",
            hint="choose a smaller --max-shard-size",
        )
    return length
