"""What tests of exports share: plain readers of stored files, odd tensors, and sources to export.

Nothing of prunectl decodes here: parts are put together by ``layouts_reference``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import layouts_reference
import numpy as np
import reference
import torch
from layouts_reference import Part

from prunectl.tensorspec import DTYPES

LAYOUTS = ("auto", "bitmask", "nm", "packed")
WEIGHTS = "model.prunectl.safetensors"
PAPERS = {"README.md", "prunectl.json"}
"""Files that tell how a folder came to be, and so differ between two with the same model."""

Raw = dict[str, tuple[str, tuple[int, ...], bytes]]
"""By name: safetensors dtype, shape, and row-major little-endian bytes."""

Header = dict[str, Any]


# --- plain readers ------------------------------------------------------------------------------


def read_file(path: Path) -> tuple[Header, bytes]:
    """The header of a safetensors file, and all that comes after it."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header: Header = json.loads(data[8:start])
    return header, data[start:]


def write_file(path: Path, header: Mapping[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entries(path: Path) -> Raw:
    """What one file stores, by stored name."""
    header, data = read_file(path)
    header.pop("__metadata__", None)
    return {
        name: (one["dtype"], tuple(one["shape"]), data[slice(*one["data_offsets"])])
        for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    }


def raw(folder: Path) -> Raw:
    """All tensors of a dense folder."""
    found: Raw = {}
    for path in sorted(folder.glob("*.safetensors")):
        assert not path.name.endswith(".prunectl.safetensors")
        found |= entries(path)
    return found


def described(path: Path) -> dict[str, Any]:
    """How the header of a compressed file says that its tensors are decoded."""
    document = json.loads(read_file(path)[0]["__metadata__"]["prunectl"])
    assert document["format"] == "1"
    tensors: dict[str, Any] = document["tensors"]
    return tensors


def decoded(folder: Path) -> Raw:
    """All tensors of a compressed folder, by the reference decoder."""
    found: Raw = {}
    for path in sorted(folder.glob("*.prunectl.safetensors")):
        stored = entries(path)
        for name, one in described(path).items():
            parts = {suffix: stored.pop(f"{name}.{suffix}") for suffix in one["parts"]}
            found[name] = _decoded(one, parts)
        assert not stored.keys() & found.keys()
        found |= stored
    return found


def _decoded(one: Mapping[str, Any], parts: Raw) -> tuple[str, tuple[int, ...], bytes]:
    made = {
        suffix: Part(dtype, shape, np.frombuffer(data, np.uint8))
        for suffix, (dtype, shape, data) in parts.items()
    }
    if one["layout"] == "packed":  # its data may be padded
        size = int(layouts_reference.array(made["chunks"]).sum())
        data = made["data"].data
        assert data.size - size < 8
        assert not data[size:].any()
        made["data"] = Part("U8", (size,), data[:size])
    shape = tuple(one["shape"])
    decode = layouts_reference.DECODERS[one["layout"]]
    codes = decode(made, DTYPES[one["dtype"]], shape, one["extra"])
    return one["dtype"], shape, codes.tobytes()


def assert_same(found: Raw, expected: Raw) -> None:
    """Same names, dtypes, shapes and bytes."""
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert found[name][:2] == one[:2], name
        assert found[name][2] == one[2], name


def as_raw(tensors: Mapping[str, torch.Tensor]) -> Raw:
    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL", torch.int32: "I32",
        torch.float8_e4m3fn: "F8_E4M3", torch.complex64: "C64",
    }  # fmt: skip
    return {
        name: (names[tensor.dtype], tuple(tensor.shape), reference.raw(tensor))
        for name, tensor in tensors.items()
    }


def without_metadata(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in reference.contents(folder).items() if name not in PAPERS}


# --- tensors ------------------------------------------------------------------------------------


def odd_tensors() -> Raw:
    """Tensors of every type and of shapes and contents that are easily got wrong."""
    rng = np.random.default_rng(0)
    found: Raw = {}

    def add(name: str, dtype: str, shape: tuple[int, ...], codes: np.ndarray) -> None:
        found[name] = (dtype, shape, codes.tobytes())

    for dtype in DTYPES.values():
        data = rng.integers(0, 256, 96 * max(dtype.bits, 8) // 8, np.uint8)
        if dtype.name == "BOOL":
            data &= 1
        add(f"any.{dtype.name}", dtype.name, (96 * max(dtype.bits, 8) // dtype.bits,), data)
    for name, width in (("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8)):
        kind = np.dtype(f"u{width}")
        sign = 1 << (8 * width - 1)
        infinity = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F64": 0x7FF << 52}[name]
        special = np.array(
            [0, sign, infinity, infinity | sign, infinity + 1, infinity + 5 | sign, sign - 1, 1],
            kind,
        )
        codes = rng.choice(special, (40, 60))
        codes[rng.random(codes.shape) < 0.5] = 0
        add(f"special.{name}", name, (40, 60), codes)
        add(f"zeros.{name}", name, (50, 70), np.zeros(3500, kind))
        add(f"negative_zeros.{name}", name, (50, 70), np.full(3500, sign, kind))
        add(
            f"full.{name}",
            name,
            (7, 301),
            rng.integers(1, sign, 2107, dtype=np.uint64).astype(kind),
        )
        sparse = layouts_reference.weights(DTYPES[name], (33, 71), 0.3, 5)
        add(f"sparse.{name}", name, (33, 71), sparse)
        add(f"cube.{name}", name, (3, 1, 11, 73), np.concatenate([sparse.reshape(-1)] * 2)[:2409])
        groups = layouts_reference.keep_n(sparse[:32, :64], 2, 4, 1, 0)
        add(f"groups.{name}", name, (32, 64), np.ascontiguousarray(groups))
        for text, shape in (("scalar", ()), ("one", (1, 1)), ("empty", (0,)), ("flat", (3, 0, 5))):
            size = int(np.prod(shape))
            add(f"{text}.{name}", name, shape, np.full(size, 3, kind))
    add("mask.position_ids", "I64", (1, 900), np.arange(900))
    add("mostly.zero.I32", "I32", (900,), np.eye(30, dtype=np.int32))
    return found


def save_raw(folder: Path, tensors: Raw) -> Path:
    """A folder with one safetensors file, written by hand, wide types first as the format asks."""
    folder.mkdir(parents=True, exist_ok=True)
    header: Header = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, some) in sorted(
        tensors.items(), key=lambda item: (-DTYPES[item[1][0]].bits, item[0])
    ):
        place = [len(data), len(data) + len(some)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": place}
        data += some
    write_file(folder / "model.safetensors", header, data)
    return folder


# --- damage -------------------------------------------------------------------------------------


def edit_header(path: Path, how: Callable[[Header], None]) -> None:
    """Change a file's header; its data stay."""
    header, data = read_file(path)
    how(header)
    write_file(path, header, data)


def edit_described(path: Path, how: Callable[[Header], None]) -> None:
    """Change what a compressed file's header says of decoding."""

    def edit(header: Header) -> None:
        document = json.loads(header["__metadata__"]["prunectl"])
        how(document)
        header["__metadata__"]["prunectl"] = json.dumps(document)

    edit_header(path, edit)


def replace_stored(path: Path, changed: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Put other bytes, dtypes and shapes under stored names; whatever follows moves."""
    stored = entries(path) | dict(changed)
    metadata = read_file(path)[0]["__metadata__"]
    header: Header = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, some) in stored.items():
        place = [len(data), len(data) + len(some)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": place}
        data += some
    write_file(path, header, data)


def edit_manifest(folder: Path, how: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "prunectl.json"
    document = json.loads(path.read_bytes())
    how(document)
    path.write_text(json.dumps(document))


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))
