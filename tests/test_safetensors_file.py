"""Safetensors headers: what is accepted is what the safetensors library reads, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from prunectl.checkpoint.safetensors_file import MAX_HEADER_BYTES, read_safetensors
from prunectl.errors import BadCheckpoint

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with this header, bytes or anything that JSON can say, and this data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(begin: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Two tensors, 4 + 24 bytes of data."""
    path = tmp_path / "good.safetensors"
    save_file({"a": torch.ones(1), "b": torch.arange(6.0).reshape(2, 3)}, path)
    return path


def refused(path: Path) -> BadCheckpoint:
    """The error for a file that safetensors refuses as well."""
    with pytest.raises(BadCheckpoint) as caught:
        read_safetensors(path, path.name)
    assert caught.value.file == str(path)
    assert len(str(caught.value)) < 1000, "an error is a line or two"
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    return caught.value


def test_every_dtype_and_shape_is_found_where_its_bytes_are(tmp_path: Path) -> None:
    shapes = [(), (0,), (3,), (2, 3), (2, 0, 3), (1, 2, 3, 4)]
    tensors = {
        f"{name}{shape}": (torch.rand(shape) * 100).to(dtype)
        for dtype, name in DTYPES.items()
        for shape in shapes
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"format": "pt", "note": "x"})

    stored, metadata = read_safetensors(path, "the name")

    assert metadata == {"format": "pt", "note": "x"}
    assert {tensor.name for tensor in stored} == tensors.keys()
    assert [t.offset for t in stored] == sorted(t.offset for t in stored)
    raw = path.read_bytes()
    for found in stored:
        original = tensors[found.name]
        assert found.file == "the name"
        assert found.strides is None
        assert found.spec.shape == tuple(original.shape)
        assert found.spec.dtype.name == DTYPES[original.dtype]
        expected = original.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw[found.offset : found.offset + found.spec.nbytes] == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=6),
    sizes=st.data(),
)
def test_any_names_read_as_safetensors_reads_them(
    tmp_path: Path, names: list[str], sizes: st.DataObject
) -> None:
    names = [name for name in names if name != "__metadata__"]
    tensors = {name: torch.zeros(sizes.draw(st.integers(0, 4))) for name in names}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    stored, _ = read_safetensors(path, path.name)
    assert {t.name: t.spec.shape for t in stored} == {
        name: tuple(tensor.shape) for name, tensor in load_file(path).items()
    }


def test_truncated_at_any_byte_is_refused(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        assert "truncated" in refused(cut).why


def test_bytes_after_the_last_tensor_are_refused(good: Path) -> None:
    good.write_bytes(good.read_bytes() + b"\0")
    assert "1 bytes after the last tensor" in refused(good).why


@pytest.mark.parametrize(
    ("tensors", "data", "why"),
    [
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "'b' overlaps"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 8)}, 8, "'b' overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "'b' leaves a gap"),
        ({"a": entry(4, 8)}, 8, "'a' leaves a gap"),
        ({"a": entry(0, 4), "b": entry(4, 8)}, 7, "truncated: the header states 8 bytes"),
        ({"a": entry(-4, 0)}, 0, "'a': data_offsets [-4, 0]"),
        ({"a": entry(4, 0)}, 4, "'a': the header gives it -4 bytes"),
        ({"a": entry(0, 4.0)}, 4, "'a': data_offsets [0, 4.0]"),
        ({"a": entry(0, "4")}, 4, "'a': data_offsets [0, '4']"),
        ({"a": entry(0, None)}, 4, "'a': data_offsets [0, None]"),
        ({"a": entry(False, 4)}, 4, "'a': data_offsets [False, 4]"),
        ({"a": entry(0, 2**64)}, 4, "'a': data_offsets [0, 18446744073709551616]"),
        ({"a": entry(0, 2**62)}, 4, "'a': the header gives it 4,611,686,018,427,387,904 bytes"),
        ({"a": entry(0, 3)}, 3, "'a': the header gives it 3 bytes, its shape and dtype need 4"),
        ({"a": entry(0, 4, [-1])}, 4, "'a': shape [-1]"),
        ({"a": entry(0, 4, [1.0])}, 4, "'a': shape [1.0]"),
        ({"a": entry(0, 4, [True])}, 4, "'a': shape [True]"),
        ({"a": entry(0, 4, None)}, 4, "'a': shape None"),
        ({"a": entry(0, 4, [2**32, 2**32])}, 4, "'a': shape [4294967296, 4294967296] has too many"),
        ({"a": entry(0, 0, [2**62, 2**62, 0])}, 0, "has too many elements"),
        ({"a": entry(0, 4, [2**62] * 5000)}, 4, "'a': shape"),
        ({"a": entry(0, 4, [1], "F33")}, 4, "'a': unknown dtype 'F33'"),
        ({"a": entry(0, 4, [1], ["F32"])}, 4, "'a': unknown dtype"),
        ({"a": entry(0, 4, [1], "F" * 5000)}, 4, "'a': unknown dtype"),
        ({"a": entry(0, 1, [1], "F4")}, 1, "'a': the header gives it 1 bytes"),
        ({"a": entry(0, 0, [1], "F4")}, 0, "'a': the header gives it 0 bytes"),
        ({"a": [0, 4]}, 4, "'a': its header entry is not an object"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "'a': data_offsets None"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}, 4, "'a': data_offsets"),
        ({"a": {"shape": [1], "data_offsets": [0, 4]}}, 4, "'a': unknown dtype None"),
        ({"__metadata__": [1], "a": entry(0, 4)}, 4, "__metadata__"),
        ([], 0, "not a JSON object"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, tensors: Any, data: int, why: str) -> None:
    error = refused(write(tmp_path / "x.safetensors", tensors, bytes(data)))
    assert why in error.why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "impossible header length"),
        (lambda: b"\xff" * 8 + b"{}", "impossible header length"),
        (lambda: b"PK\x03\x04" + bytes(40), "impossible header length|truncated"),
        (lambda: b"<!DOCTYPE html><html></html>", "impossible header length"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "impossible header length"),
        (bytes, "truncated: 0 bytes"),
    ],
)
def test_files_of_other_kinds_are_refused(
    tmp_path: Path, content: Callable[[], bytes], why: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content())
    with pytest.raises(BadCheckpoint, match=why):
        read_safetensors(path, path.name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_one_damaged_byte_never_escapes_as_another_error(
    good: Path, tmp_path: Path, at: int, value: int
) -> None:
    raw = bytearray(good.read_bytes())
    raw[at % len(raw)] = value
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(raw)
    try:
        stored, _ = read_safetensors(path, path.name)
    except BadCheckpoint:
        return
    for tensor in stored:
        assert 8 <= tensor.offset <= tensor.offset + tensor.spec.nbytes <= len(raw)


def test_sub_byte_types_are_counted_in_bits(tmp_path: Path) -> None:
    header = {"a": entry(0, 3, [6], "F4"), "b": entry(3, 6, [4], "F6_E2M3")}
    stored, _ = read_safetensors(write(tmp_path / "x.safetensors", header, bytes(6)), "x")
    assert [(t.name, t.spec.nbytes) for t in stored] == [("a", 3), ("b", 3)]
