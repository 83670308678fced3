"""Safetensors headers: untrusted input, with every invariant of the format checked in one place.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON
object name -> {dtype, shape, data_offsets}, then the data, which the tensors cover without gap or
overlap up to the last byte of the file.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunectl.checkpoint.stored import StoredTensor, declared_spec, is_sizes
from prunectl.documents import strict_json
from prunectl.errors import BadCheckpoint
from prunectl.tensorspec import DTYPES, TensorSpec

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

MAX_LEVELS = 127
"""Levels of nested lists and objects, as many as the library's JSON parser accepts."""

_FIELDS = {"dtype", "shape", "data_offsets"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_safetensors(path: Path, name: str) -> tuple[list[StoredTensor], dict[str, str]]:
    """Read one file's header.

    Args:
        name: the name to record as the tensors' ``file``.

    Returns:
        The tensors in the order of their bytes, and the file's ``__metadata__``.

    Raises:
        BadCheckpoint: truncated, not safetensors, or a header that contradicts itself or the file.
    """
    with path.open("rb") as file:

        def read(start: int, count: int) -> bytes:
            file.seek(start)
            return file.read(count)

        return parse_safetensors(path, name, path.stat().st_size, read)


def parse_safetensors(
    path: Path, name: str, size: int, read: Callable[[int, int], bytes]
) -> tuple[list[StoredTensor], dict[str, str]]:
    """Read a header like :func:`read_safetensors`, from any source of bytes.

    Args:
        read: returns the bytes at a position, by count; fewer at the end of the file.
    """
    header, data_start, data_size = _read_header(path, size, read)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadCheckpoint(path, "the header's __metadata__ is not an object of strings")
    entries = sorted(
        (_entry(path, tensor, fields) for tensor, fields in header.items()),
        key=lambda entry: (entry[1], entry[2]),
    )
    expected = 0
    for spec, begin, end in entries:
        if begin != expected:
            what = "overlaps the tensor before it" if begin < expected else "leaves a gap before it"
            raise BadCheckpoint(
                path, f"tensor '{spec.name}' {what}: the header's offsets are wrong"
            )
        expected = end
    if expected > data_size:
        raise BadCheckpoint(
            path,
            f"truncated: the header states {expected:,} bytes of data, the file has {data_size:,}",
        )
    if expected < data_size:
        raise BadCheckpoint(path, f"{data_size - expected:,} bytes after the last tensor")
    tensors = [StoredTensor(spec, name, data_start + begin) for spec, begin, _ in entries]
    return tensors, metadata


def _read_header(
    path: Path, size: int, read: Callable[[int, int], bytes]
) -> tuple[dict[str, Any], int, int]:
    prefix = read(0, 8)
    if len(prefix) < 8:
        raise BadCheckpoint(path, f"truncated: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise BadCheckpoint(path, "not a safetensors file (impossible header length)")
    if length > size - 8:
        raise BadCheckpoint(path, "truncated inside the safetensors header")
    raw = read(8, length)
    try:
        # Bytes could also be taken for UTF-16 or UTF-32, which the format does not allow.
        header = strict_json(raw.decode())
        if _SURROGATE.search(raw):  # Python accepts half a surrogate pair, which is not a character
            json.dumps(header, ensure_ascii=False).encode()
    except ValueError as error:
        raise BadCheckpoint(path, f"the safetensors header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise BadCheckpoint(path, "the safetensors header is not a JSON object")
    return header, 8 + length, size - 8 - length


def _entry(path: Path, name: str, fields: Any) -> tuple[TensorSpec, int, int]:
    def bad(why: str) -> BadCheckpoint:
        return BadCheckpoint(path, f"tensor '{name}': {why}")

    if not isinstance(fields, dict):
        raise bad("its header entry is not an object")
    dtype = DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise bad(f"unknown dtype {reprlib.repr(fields.get('dtype'))}")
    spec = declared_spec(path, name, dtype, fields.get("shape"))
    offsets: Any = fields.get("data_offsets")
    if not is_sizes(offsets) or len(offsets) != 2:
        raise bad(f"data_offsets {reprlib.repr(offsets)} are not two positions")
    if any(2 + _levels(fields[key]) > MAX_LEVELS for key in fields.keys() - _FIELDS):
        raise bad(f"its header entry has over {MAX_LEVELS} levels of lists and objects")
    begin, end = offsets
    if end - begin != spec.nbytes or spec.numel * dtype.bits % 8:
        raise bad(
            f"the header gives it {end - begin:,} bytes, its shape and dtype need {spec.nbytes:,}"
        )
    return spec, begin, end


def _levels(value: Any) -> int:
    """The nesting depth of lists and objects in a value."""
    levels, found = 0, [value]
    while inner := [one for one in found if isinstance(one, list | dict)]:
        found = [item for one in inner for item in (one.values() if type(one) is dict else one)]
        levels += 1
    return levels
