"""The header of a safetensors file: 8 bytes of length, JSON, spaces up to a multiple of 8.

Format: https://github.com/huggingface/safetensors#format. The header alone fixes where every byte
of every tensor goes, so tensors can be written in any order and by several threads.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from prunectl.errors import OutputError
from prunectl.tensorspec import TensorSpec

ALIGNMENT = 8
MAX_HEADER = 100_000_000
"""Longest header that the safetensors library accepts, in bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """An encoded header and the file layout that it determines.

    Attributes:
        data: the first bytes of the file, including length field and padding.
        offsets: absolute offset in the file of each tensor's first byte, by tensor name.
        file_size: size of the complete file in bytes.
    """

    data: bytes
    offsets: dict[str, int]
    file_size: int


def encode_header(specs: Sequence[TensorSpec]) -> Header:
    """Lay out tensors one after another, in the given order.

    Raises:
        OutputError: two tensors of one name, a name that the format reserves, a tensor that is not
            a whole number of bytes, or more tensors than a header can describe.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    position = 0
    for spec in storage_order(specs):
        if spec.name in entries:
            raise OutputError(f"tensor '{spec.name}' cannot be stored: the name is already taken")
        if spec.numel * spec.dtype.bits % 8:
            raise OutputError(f"tensor '{spec.name}' is not a whole number of bytes")
        end = position + spec.nbytes
        entries[spec.name] = {
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        begins[spec.name] = position
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise OutputError(
            f"{len(specs):,} tensors need a header of {len(text):,} bytes; safetensors allows "
            f"{MAX_HEADER:,}",
            hint="choose a smaller --max-shard-size",
        )
    data = struct.pack("<Q", len(text)) + text
    offsets = {name: len(data) + begin for name, begin in begins.items()}
    return Header(data, offsets, len(data) + position)


def storage_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the given order, or, if it leaves a tensor misaligned, wider element types first.

    Readers that map a file and cast its bytes need each tensor at a multiple of its element size.
    """
    position = 0
    for spec in specs:
        if position % max(1, spec.dtype.bits // 8):
            return sorted(specs, key=lambda s: -s.dtype.bits)
        position += spec.nbytes
    return list(specs)
