"""Files of masks made and read by docs/masks.md alone: nothing of prunectl is used here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference import Tensors, raw, zeroed

SOURCE = {"model": "x", "kind": "folder", "repo_id": None, "commit": None, "files": []}


def bits_of(tensor: torch.Tensor) -> list[int]:
    """A bit a weight: 0 where all of its own bits are 0."""
    data, size = raw(tensor), tensor.element_size()
    return [int(any(data[i : i + size])) for i in range(0, len(data), size)]


def packed(bits: list[int]) -> bytes:
    data = bytearray(-(-len(bits) // 8))
    for i, bit in enumerate(bits):
        data[i // 8] |= bit << i % 8
    return bytes(data)


def parts(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """The metadata of a file, and the bytes of its tensors."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert (entry["dtype"], entry["shape"]) == ("U8", [end - begin])
        found[name] = data[start + begin : start + end]
    return metadata, found


def described(shape: tuple[int, ...], bits: list[int], **more: Any) -> dict[str, Any]:
    return {"shape": shape, "zeros": bits.count(0), "pattern": None, "input_axis": None, **more}


def write(
    path: Path,
    masks: Mapping[str, tuple[tuple[int, ...], list[int]]],
    descriptions: Mapping[str, Any] | None = None,
    /,
    **metadata: str,
) -> Path:
    """A file of masks: (shape, bits) by name; ``descriptions`` and ``metadata`` replace parts."""
    data = {name: packed(bits) for name, (_, bits) in masks.items()}
    texts = {name: described(*mask) for name, mask in masks.items()} | dict(descriptions or {})
    strings = {
        "format": "prunectl.masks/1",
        "masks": json.dumps(texts),
        "source": json.dumps(SOURCE),
    }
    return write_raw(path, strings | metadata, data)


def write_raw(path: Path, metadata: Mapping[str, Any], data: Mapping[str, bytes]) -> Path:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, part in data.items():
        header[name] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [end, end + len(part)]}
        end += len(part)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data.values()))
    return path


def random_masks(tensors: Tensors, names: list[str], seed: int = 0) -> dict[str, Any]:
    """(shape, bits) by name; about every third weight goes."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            tuple(tensors[name].shape),
            [int(x > 0.3) for x in rng.random(tensors[name].numel())],
        )
        for name in names
    }


def applied(tensor: torch.Tensor, bits: Any) -> torch.Tensor:
    """+0.0 where a bit is 0, every other bit as it was."""
    goes = torch.tensor(np.asarray(bits) == 0).reshape(tensor.shape)
    return zeroed(tensor, goes)
