"""Torch pickles of both formats: the bytes that torch.load gives, and no code of the file run."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunectl.checkpoint import unpickling
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.safetensors_file import read_safetensors
from prunectl.checkpoint.torch_file import read_torch_file
from prunectl.errors import BadCheckpoint, SourceError, UnsafePickle, UnsupportedCheckpoint

FORMATS = {"zip": True, "legacy": False}

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint16,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip

TORCH_CANNOT_LOAD = {torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16}
"""torch writes these into legacy files, and its weights_only loader fails on its own output."""


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def save(value: Any, path: Path, form: str) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=FORMATS[form])
    return path


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes in row-major order."""
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def read_all(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> dtype, shape, bytes, as prunectl finds them."""
    found = {}
    with WeightReader(path.parent) as reader:
        for tensor in read_torch_file(path, path.name):
            out = np.empty(tensor.spec.nbytes, np.uint8)
            reader.read(tensor, 0, out)
            found[tensor.name] = (tensor.spec.dtype.name, tensor.spec.shape, out.tobytes())
    return found


def expect_bytes(path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = read_all(path)
    assert list(found) == list(expected), "in the order of the state dict"
    for name, tensor in expected.items():
        assert found[name][1:] == (tuple(tensor.shape), raw(tensor)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_view_has_the_bytes_of_torch_load(
    tmp_path: Path, form: str, dtype: torch.dtype
) -> None:
    w = (torch.rand(6, 8) * 50).to(dtype)
    cube = (torch.rand(3, 4, 5) * 50).to(dtype)
    state = {
        "plain": w,
        "tied": w,
        "parameter": torch.nn.Parameter(w.clone(), requires_grad=False),
        "scalar": w[1, 2].clone(),
        "scalar_view": w[3, 4],
        "empty": w[:0].clone(),
        "empty_view": w[:, 3:3],
        "transposed": w.t(),
        "rows": w[2:4],
        "columns": w[:, 2:5],
        "every_second": w[::2, 1::3],
        "expanded": w[:, :1].expand(6, 4),
        "permuted": cube.permute(2, 0, 1),
        "one_row": w[:1].t(),
        "reshaped": w.view(2, 24),
    }
    path = save(state, tmp_path / "m.bin", form)
    expect_bytes(path, state)
    if form == "zip" or dtype not in TORCH_CANNOT_LOAD:
        expect_bytes(path, torch.load(path, weights_only=True))


def test_dtypes_have_their_safetensors_names(tmp_path: Path, form: str) -> None:
    names = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U16",
             "U8", "BOOL", "C64"]  # fmt: skip
    state = {name: torch.zeros(3).to(dtype) for name, dtype in zip(names, DTYPES, strict=True)}
    found = read_all(save(state, tmp_path / "m.bin", form))
    assert [(name, dtype) for name, (dtype, _, _) in found.items()] == [(n, n) for n in names]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 3),
    start=st.integers(0, 2),
)
def test_any_strided_view_has_the_bytes_of_torch_load(
    tmp_path: Path, form: str, shape: list[int], order: Any, step: int, start: int
) -> None:
    base = torch.arange(float(np.prod([n * 3 + 2 for n in shape]))).reshape(
        [n * 3 + 2 for n in shape]
    )
    view = base[tuple(slice(start, start + n * step, step) for n in shape)]
    axes = list(range(len(shape)))
    order.shuffle(axes)
    state = {"view": view.permute(axes), "base": base}
    path = save(state, tmp_path / "m.bin", form)
    expect_bytes(path, torch.load(path, weights_only=True))


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_a_wrapped_state_dict_is_found(tmp_path: Path, form: str, key: str) -> None:
    weights = OrderedDict(a=torch.rand(2, 3), b=torch.rand(4))
    wrapped = {"epoch": 3, "step": torch.tensor(7), "args": {"lr": 0.1}, key: weights}
    path = save(wrapped, tmp_path / "m.pt", form)
    expect_bytes(path, torch.load(path, weights_only=True)[key])


def test_other_entries_beside_tensors_are_not_weights(tmp_path: Path, form: str) -> None:
    path = save({"a": torch.ones(2), "version": 3, "names": ["x"]}, tmp_path / "m.pt", form)
    assert list(read_all(path)) == ["a"]


def test_tied_tensors_are_stored_once(tmp_path: Path, form: str) -> None:
    w = torch.rand(3, 4)
    state = {"embed": w, "other": torch.rand(3, 4), "head": w, "turned": w.t(), "part": w[1:]}
    checkpoint = open_checkpoint(save(state, tmp_path / "m.bin", form))
    assert checkpoint.aliases == {"head": "embed"}
    assert [t.name for t in checkpoint.tensors] == ["embed", "other", "turned", "part"]


def test_what_training_scripts_store_beside_weights_is_no_hindrance(
    tmp_path: Path, form: str
) -> None:
    state = {
        "epoch": 3, "best": None, "is_last": True, "loss": [0.1, 2.0], "text": "é",
        "raw": b"\0\xff",
        "array": bytearray(b"abc"), "set": {1, 2}, "counts": Counter("aab"), "complex": 1j,
        "large": 1 << 70, "pair": (1, -70_000), "many": tuple(range(9)), "size": torch.Size([2]),
        "dtype": torch.bfloat16, "device": torch.device("cpu"),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        "state_dict": torch.nn.Linear(3, 2).state_dict(),
    }  # fmt: skip
    path = save(state, tmp_path / "m.pt", form)
    expect_bytes(path, torch.load(path, weights_only=True)["state_dict"])


def test_tensors_with_attributes_of_their_own_are_read(tmp_path: Path, form: str) -> None:
    plain, parameter = torch.rand(2, 3), torch.nn.Parameter(torch.rand(3, 2))
    plain.note, parameter.is_parallel = "x", True  # type: ignore[attr-defined]
    path = save({"a": plain, "b": parameter}, tmp_path / "m.pt", form)
    expect_bytes(path, torch.load(path, weights_only=True))


class Reduced:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_an_ordered_dict_as_python_2_pickled_it_is_read(tmp_path: Path, form: str) -> None:
    weights = [["a", torch.rand(2)], ["b", torch.rand(3)]]
    path = save(Reduced(OrderedDict, weights), tmp_path / "m.pt", form)
    expect_bytes(path, torch.load(path, weights_only=True))


def test_a_parameter_as_it_was_before_torch_0_4_is_refused(tmp_path: Path, form: str) -> None:
    path = save({"w": Reduced(torch.nn.Parameter, torch.rand(2))}, tmp_path / "m.pt", form)
    with pytest.raises(UnsupportedCheckpoint, match=r"0\.4"):
        read_torch_file(path, path.name)


# --- pickles that are more than tensors -------------------------------------------------------


class Attack:
    """Unpickles by creating a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("where", ["beside", "instead", "raw"])
def test_a_pickle_that_wants_to_run_code_runs_none(tmp_path: Path, form: str, where: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.bin"
    attack = Attack(marker)
    if where == "raw":
        path.write_bytes(pickle.dumps(attack, protocol=2))
    else:
        save({"w": torch.ones(2), "x": attack} if where == "beside" else attack, path, form)
    with pytest.raises(UnsafePickle) as caught:
        read_torch_file(path, path.name)
    assert caught.value.file == str(path)
    assert "mkdir" in caught.value.why
    assert not marker.exists()
    # The attack is real: plain unpickling runs it.
    if where == "raw":
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_a_whole_module_is_refused(tmp_path: Path, form: str) -> None:
    path = save(torch.nn.Linear(2, 2), tmp_path / "m.pt", form)
    with pytest.raises(UnsafePickle, match=r"m\.pt.*Linear"):
        read_torch_file(path, path.name)


def test_a_module_of_the_old_format_is_refused(tmp_path: Path) -> None:
    class Old(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("module", "torch.nn.Linear", "x.py", "code") if value == "here" else None

    path = tmp_path / "m.pt"
    with path.open("wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(head, file, protocol=2)
        Old(file, protocol=2).dump({"model": "here"})
        pickle.dump([], file, protocol=2)
    with pytest.raises(UnsafePickle, match="whole module"):
        read_torch_file(path, path.name)


def test_numpy_arrays_are_refused(tmp_path: Path, form: str) -> None:
    path = save({"w": torch.ones(2), "n": np.ones(2)}, tmp_path / "m.pt", form)
    with pytest.raises(UnsafePickle, match="numpy"):
        read_torch_file(path, path.name)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(UnsupportedCheckpoint, match=r"m\.pt: a TorchScript") as caught:
        read_torch_file(path, path.name)
    assert "state_dict" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse", "quantized", "complex", "conjugate"])
def test_tensors_that_are_no_plain_weights_are_refused(
    tmp_path: Path, form: str, kind: str
) -> None:
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "complex": lambda: torch.ones(2, dtype=torch.complex128),
        "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    }[kind]()
    path = save({"odd": tensor}, tmp_path / "m.bin", form)
    with pytest.raises(UnsupportedCheckpoint, match=r"m\.bin") as caught:
        read_torch_file(path, path.name)
    assert kind == "quantized" or "'odd'" in str(caught.value)


@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2), 7, "text"], ids=repr)
def test_what_is_no_dict_is_refused(tmp_path: Path, form: str, value: Any) -> None:
    path = save(value, tmp_path / "m.bin", form)
    with pytest.raises(BadCheckpoint, match="not a state dict"):
        read_torch_file(path, path.name)


# --- damage -----------------------------------------------------------------------------------


def test_truncated_at_any_byte_is_refused(tmp_path: Path, form: str) -> None:
    whole = save({"a": torch.rand(3, 4), "b": torch.rand(5)}, tmp_path / "m.bin", form).read_bytes()
    cut = tmp_path / "cut.bin"
    step = 1 if form == "legacy" else 7
    for length in [*range(0, len(whole), step), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises((BadCheckpoint, UnsafePickle)) as caught:
            read_torch_file(cut, cut.name)
        assert caught.value.file == str(cut)
        if length > len(whole) * 0.9:
            assert "truncated" in caught.value.why


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_one_damaged_byte_never_escapes_as_another_error(
    tmp_path: Path, form: str, at: int, value: int
) -> None:
    path = save({"a": torch.rand(3, 4), "b": torch.rand(5).half()}, tmp_path / "m.bin", form)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    try:
        stored = read_torch_file(path, path.name)
    except SourceError:
        return
    for tensor in stored:
        if tensor.strides is None:
            assert 0 <= tensor.offset <= tensor.offset + tensor.spec.nbytes <= len(content)


def legacy_parts(path: Path) -> tuple[bytes, int]:
    """A legacy file's bytes, and where its last storage (count, then bytes) begins."""
    tensor = read_torch_file(path, path.name)[0]
    return path.read_bytes(), tensor.offset - 8


@pytest.mark.parametrize("count", [-1, 0, 11, 13, 2**62])
def test_a_legacy_storage_of_another_size_is_refused(tmp_path: Path, count: int) -> None:
    path = save({"a": torch.rand(3, 4)}, tmp_path / "m.bin", "legacy")
    content, at = legacy_parts(path)
    assert int.from_bytes(content[at : at + 8], "little") == 12
    path.write_bytes(content[:at] + count.to_bytes(8, "little", signed=True) + content[at + 8 :])
    with pytest.raises(BadCheckpoint, match=r"m\.bin: a storage's size differs"):
        read_torch_file(path, path.name)


def rewrite(source: Path, target: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of an archive with each record passed through ``change(name, bytes)``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
    return target


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4)])
def test_an_archive_with_a_record_of_another_size_is_refused(tmp_path: Path, change: Any) -> None:
    """As torch does."""
    path = save({"a": torch.rand(3, 4)}, tmp_path / "m.bin", "zip")
    other = rewrite(
        path, tmp_path / "s.bin", lambda name, data: change(data) if "/data/" in name else data
    )
    with pytest.raises(BadCheckpoint, match=r"s\.bin: the archive lacks a tensor's record"):
        read_torch_file(other, other.name)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(300, 4)}, tmp_path / "m.bin", "zip")
    packed = rewrite(path, tmp_path / "p.bin", lambda _, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(BadCheckpoint, match=r"p\.bin"):
        read_torch_file(packed, packed.name)


def test_a_big_endian_archive_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(3)}, tmp_path / "m.bin", "zip")
    big = rewrite(
        path, tmp_path / "b.bin", lambda name, data: b"big" if "byteorder" in name else data
    )
    with pytest.raises(UnsupportedCheckpoint, match="big-endian"):
        read_torch_file(big, big.name)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"hello", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>",
     bytes(1000), pickle.dumps({"a": 1}, protocol=2), b"PK\x05\x06" + bytes(18)],
)  # fmt: skip
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises((BadCheckpoint, UnsafePickle), match=r"pytorch_model\.bin"):
        read_torch_file(path, path.name)


# --- small files that claim to be large -------------------------------------------------------


@pytest.mark.parametrize("record", ["/data.pkl", "/byteorder", "/version", "/data/0"])
def test_one_compressed_record_is_enough_to_refuse(tmp_path: Path, record: str) -> None:
    path = save({"a": torch.zeros(300, 4)}, tmp_path / "m.bin", "zip")
    packed = tmp_path / "p.bin"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        for info in old.infolist():
            kind = zipfile.ZIP_DEFLATED if info.filename.endswith(record) else zipfile.ZIP_STORED
            new.writestr(info.filename, old.read(info), kind)
    with pytest.raises(BadCheckpoint, match=rf"p\.bin: .*{record}' is compressed"):
        read_torch_file(packed, packed.name)


def test_a_long_byteorder_is_not_read(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(3)}, tmp_path / "m.bin", "zip")
    long = rewrite(
        path,
        tmp_path / "l.bin",
        lambda name, data: b"little" + b" " * 11 if "byteorder" in name else data,
    )
    with pytest.raises(BadCheckpoint, match="byteorder record is not valid"):
        read_torch_file(long, long.name)


def pickled(instructions: bytes, path: Path, form: str) -> Path:
    """A torch file whose pickle has these instructions, but for its first and last."""
    save({}, path, form)
    if form == "zip":
        made = rewrite(
            path,
            path.with_name("made.bin"),
            lambda name, data: instructions if name.endswith("/data.pkl") else data,
        )
        return made.rename(path)
    content = path.read_bytes()
    empty = pickle.dumps({}, protocol=2)
    assert content.count(empty) == 1
    path.write_bytes(content.replace(empty, instructions))
    return path


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


ENCODE = b"c_codecs\nencode\n"
AGAIN = b"h\x01h\x02R"
BOMBS = {
    "bytearray": b"cbuiltins\nbytearray\nJ\0\0\0\x10\x85R.",
    "hexadecimal": ENCODE * 19 + text("x" * 1024) + text("latin1") + b"\x86R"
    + (text("hex_codec") + b"\x86R") * 18 + b".",
    "copied sets": b"(c__builtin__\nset\nq\x01](" + b"K\x01" * 1000 + b"e\x85q\x02R"
    + AGAIN * 10_000 + b"t.",
    "copied arguments": b"(ctorch\nSize\nq\x01(" + b"K\x01" * 1000 + b"tq\x02R" + AGAIN * 5000
    + b"t.",
    "tensor": b"ctorch\nFloatTensor\nJ\0\0\0\x10\x85R.",
    "long text": b"X\xff\xff\xff\x7fabc.",
    "long bytes": b"\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.",
    "long number": b"\x8b\xff\xff\xff\x7fabc.",
    "nested key": b"})" + b"\x85" * 100_000 + b"K\x01s.",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_pickle_takes_little_memory(tmp_path: Path, form: str, bomb: str) -> None:
    path = pickled(b"\x80\x02" + BOMBS[bomb], tmp_path / "m.bin", form)
    tracemalloc.start()
    try:
        if bomb == "nested key":  # whose hash would end the process
            assert read_torch_file(path, path.name) == []
        else:
            with pytest.raises(SourceError, match=r"m\.bin"):
                read_torch_file(path, path.name)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_a_pickle_has_a_size_and_a_number_of_instructions(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"a": torch.rand(2), "log": list(range(1000))}
    path = save(state, tmp_path / "m.bin", form)
    monkeypatch.setattr(unpickling, "MAX_COST", 1200)
    monkeypatch.setattr(unpickling, "MAX_PICKLE_BYTES", 3200)
    expect_bytes(path, {"a": state["a"]})
    monkeypatch.setattr(unpickling, "MAX_COST", 1000)
    with pytest.raises(BadCheckpoint, match="more instructions than tensors need"):
        read_torch_file(path, path.name)
    monkeypatch.setattr(unpickling, "MAX_PICKLE_BYTES", 2000)
    with pytest.raises(BadCheckpoint, match="its pickle is over 2,000 bytes"):
        read_torch_file(path, path.name)


def test_copies_of_a_container_count_as_its_items(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = b"](" + (text("a") + b"K\x01\x86") * 100 + b"e"
    ordered = b"(ccollections\nOrderedDict\nq\x01" + pairs + b"\x85q\x02R" + AGAIN * 100 + b"t."
    path = pickled(b"\x80\x02" + ordered, tmp_path / "m.bin", form)
    monkeypatch.setattr(unpickling, "MAX_COST", 40_000)
    with pytest.raises(BadCheckpoint, match="holds a tuple"):
        read_torch_file(path, path.name)
    monkeypatch.setattr(unpickling, "MAX_COST", 20_000)
    with pytest.raises(BadCheckpoint, match="more instructions"):
        read_torch_file(path, path.name)


def test_a_storage_is_described_in_one_way(tmp_path: Path) -> None:
    path = save({"a": torch.rand(2), "b": torch.rand(3)}, tmp_path / "m.bin", "zip")
    one = rewrite(path, tmp_path / "o.bin", lambda _, data: data.replace(text("1"), text("0")))
    with pytest.raises(BadCheckpoint, match="one storage in two ways"):
        read_torch_file(one, one.name)


@pytest.mark.parametrize(
    "view",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(3, 1).expand(3, 2),
        torch.zeros(10).as_strided((5, 5), (1, 1)),
    ],
    ids=["terabytes", "columns", "overlapping"],
)
def test_a_tensor_larger_than_its_storage_is_refused(
    tmp_path: Path, form: str, view: torch.Tensor
) -> None:
    path = save({"wide": view}, tmp_path / "m.bin", form)
    with pytest.raises(UnsupportedCheckpoint, match="'wide' repeats its values") as caught:
        read_torch_file(path, path.name)
    assert "contiguous" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "is_fine"),
    [
        ("a" * 1024, True),
        ("a" * 1025, False),
        ("é" * 512, True),
        ("é" * 513, False),
        (".".join("a" * 64), True),
        (".".join("a" * 65), False),
    ],
    ids=["bytes", "too many bytes", "utf8", "too much utf8", "parts", "too many parts"],
)
def test_names_have_a_limit(tmp_path: Path, form: str, name: str, is_fine: bool) -> None:
    path = save({name: torch.ones(2)}, tmp_path / "m.bin", form)
    other = tmp_path / "m.safetensors"
    save_file({name: torch.ones(2)}, other)
    if is_fine:
        assert read_torch_file(path, path.name)[0].name == name
        assert read_safetensors(other, other.name)[0][0].name == name
        return
    for read, file in ((read_torch_file, path), (read_safetensors, other)):
        with pytest.raises(BadCheckpoint, match=r"over 1,024 bytes|over 64 dotted") as caught:
            read(file, file.name)
        assert len(str(caught.value)) < 300 + len(str(file))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\ud800b", r"'a\\ud800b' is not valid Unicode"),
        ("__metadata__", "'__metadata__' is reserved by safetensors"),
    ],
)
def test_a_name_that_safetensors_cannot_hold_is_refused(
    tmp_path: Path, form: str, name: str, why: str
) -> None:
    path = save({"w": torch.ones(2), name: torch.ones(2)}, tmp_path / "m.bin", form)
    with pytest.raises(BadCheckpoint, match=f"tensor name {why}"):
        read_torch_file(path, path.name)


def test_a_shape_that_safetensors_cannot_hold_is_refused(tmp_path: Path, form: str) -> None:
    """``torch`` makes none of the second; a file may hold one."""
    empty = torch.empty(0)._typed_storage()

    def of(*shape: int) -> Reduced:
        more = (1,) * len(shape), False, OrderedDict()
        return Reduced(torch._utils._rebuild_tensor_v2, empty, 0, shape, *more)

    path = save({"fine": of(0, 2**40, 2**40)}, tmp_path / "fine.bin", form)
    assert read_torch_file(path, path.name)[0].spec.shape == (0, 2**40, 2**40)
    path = save({"vast": of(2**40, 2**40, 0)}, tmp_path / "vast.bin", form)
    with pytest.raises(BadCheckpoint, match=r"'vast': shape .* has too many elements"):
        read_torch_file(path, path.name)


@pytest.mark.parametrize("key", [1, 1.5, True, None, -(10**300), (1, "a")], ids=repr)
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_tensor_under_a_key_that_is_no_string_is_refused(
    tmp_path: Path, form: str, key: Any, kind: type
) -> None:
    """As torch has it: ``load_state_dict`` takes no such key, and ``1`` is not ``"1"``."""
    state = kind({str(key): torch.ones(2), key: torch.zeros(2)})
    path = save(state, tmp_path / "m.bin", form)
    assert len(torch.load(path, weights_only=True)) == 2
    with pytest.raises(BadCheckpoint, match=r"the name of a tensor is .+, not a string") as caught:
        read_torch_file(path, path.name)
    assert "state_dict" in caught.value.hint
    with pytest.raises((TypeError, AttributeError)):
        torch.nn.Linear(2, 2).load_state_dict({key: torch.ones(2)})


def test_keys_that_are_no_strings_may_name_other_things(tmp_path: Path, form: str) -> None:
    state = {"w": torch.ones(2), 1: "x", "1": torch.zeros(3), (1, 2): None, None: [torch.ones(1)]}
    path = save(state, tmp_path / "m.bin", form)
    assert list(read_all(path)) == ["w", "1"]
