"""Opening a checkpoint: what is found, that no weights are read, and what is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import (
    BadCheckpoint,
    InvalidOption,
    ModelNotFound,
    NoWeights,
    UnsupportedCheckpoint,
)

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def content(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes of every tensor, read through the checkpoint's reader."""
    found = {}
    with checkpoint.open() as reader:
        for tensor in checkpoint.tensors:
            out = np.empty(tensor.spec.nbytes, np.uint8)
            reader.read(tensor, 0, out)
            found[tensor.name] = out.tobytes()
    return found | {alias: found[name] for alias, name in checkpoint.aliases.items()}


def raw(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: t.contiguous().numpy().tobytes() for name, t in tensors.items()}


def write_index(folder: Path, name: str, weight_map: dict[str, str]) -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {f"t{i}": torch.rand(3, i + 1) for i in range(4)}


@pytest.fixture
def sharded(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder of two shards with an index: t0, t2 in the first, t1, t3 in the second."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file({n: tensors[n] for n in ("t0", "t2")}, folder / A)
    save_file({n: tensors[n] for n in ("t1", "t3")}, folder / B)
    write_index(folder, "model.safetensors.index.json", {"t0": A, "t1": B, "t2": A, "t3": B})
    (folder / "config.json").write_text('{"model_type": "x"}')
    return folder


# --- right answers ----------------------------------------------------------------------------


def test_a_single_file_in_a_folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.format) == ("folder", "safetensors")
    assert content(checkpoint) == raw(tensors)
    assert checkpoint.side_files == ("tokenizer.json",)
    assert checkpoint.nbytes == sum(len(data) for data in raw(tensors).values())
    assert checkpoint.config == {}
    assert checkpoint.commit is None


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_come_in_file_order(
    sharded: Path, tensors: dict[str, torch.Tensor], with_index: bool
) -> None:
    if not with_index:
        (sharded / "model.safetensors.index.json").unlink()
    checkpoint = open_checkpoint(str(sharded))
    assert [file.name for file in checkpoint.files] == [A, B]
    assert content(checkpoint) == raw(tensors)
    in_files = [list(_order(sharded / name)) for name in (A, B)]
    assert [t.name for t in checkpoint.tensors] == in_files[0] + in_files[1]
    assert checkpoint.side_files == ("config.json",)
    assert checkpoint.config == {"model_type": "x"}


def _order(path: Path) -> list[str]:
    """Tensor names in the order of their bytes, from the file itself."""
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    return sorted(header, key=lambda name: header[name]["data_offsets"][0])


@pytest.mark.parametrize(("legacy", "with_index"), [(False, True), (True, False)])
def test_pickle_shards(
    tmp_path: Path, tensors: dict[str, torch.Tensor], legacy: bool, with_index: bool
) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    parts = [{n: tensors[n] for n in ("t3", "t0")}, {n: tensors[n] for n in ("t2", "t1")}]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    if with_index:
        weight_map = {n: name for name, part in zip(names, parts, strict=True) for n in part}
        write_index(tmp_path, "pytorch_model.bin.index.json", weight_map)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "pickle"
    assert [t.name for t in checkpoint.tensors] == ["t3", "t0", "t2", "t1"]
    assert content(checkpoint) == raw(tensors)
    assert checkpoint.side_files == ()


def test_a_named_index_is_the_one_that_counts(
    sharded: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file({"other": torch.ones(2)}, sharded / "model.safetensors")
    assert [t.name for t in open_checkpoint(sharded).tensors] == ["other"]
    named = open_checkpoint(sharded / "model.safetensors.index.json")
    assert content(named) == raw(tensors)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_one_weights_file_takes_no_private_neighbours(tmp_path: Path, suffix: str) -> None:
    for name in ("config.json", "tokenizer.json", "id_rsa", ".env", "diary.txt", "other.py",
                 "model2.safetensors", "README.md"):  # fmt: skip
        (tmp_path / name).write_text("{}")
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file({"w": torch.ones(2)}, path)
    else:
        torch.save({"w": torch.ones(2)}, path)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.kind, checkpoint.folder) == ("file", tmp_path)
    assert checkpoint.side_files == ("config.json", "tokenizer.json")
    assert content(checkpoint) == {"w": struct.pack("<2f", 1, 1)}


def test_empty_tensors_are_kept_apart(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(0, 3), "b": torch.ones(0, 3), "c": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert {t.name for t in checkpoint.tensors} == {"a", "b", "c"}
    assert checkpoint.aliases == {}


def test_the_identity_changes_with_the_files(sharded: Path) -> None:
    before = open_checkpoint(sharded).identity()
    assert open_checkpoint(sharded).identity() == before
    json.dumps(before)
    stat = (sharded / A).stat()
    os.utime(sharded / A, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert open_checkpoint(sharded).identity() != before


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
         "bitsandbytes"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "x"}},
         "compressed-tensors"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantized"),
        ({"compression_config": {"format": "sparse-bitmask"}}, "sparse-bitmask"),
        ({"quantization_config": None}, ""),
        ({"model_type": "bert"}, ""),
        ([1], ""),
    ],
)  # fmt: skip
def test_what_the_config_says_of_quantization(tmp_path: Path, config: Any, says: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).quantization == says


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("q.qweight", "*.qweight"),
        ("q.weight_packed", "*.weight_packed"),
        ("q.SCB", "*.SCB"),
        ("q.weight_scale_inv", "*.weight_scale_inv"),
        ("q.weight.absmax", "*.absmax"),
        ("q.weight", ""),
        ("logit_scale", ""),
    ],
)
def test_what_names_say_of_quantization(tmp_path: Path, name: str, says: str) -> None:
    save_file({name: torch.ones(2)}, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path).quantization
    assert (says in found) if says else (found == "")


# --- headers first ----------------------------------------------------------------------------

HUGE = 100 * 2**30


def huge(folder: Path) -> None:
    """A safetensors file of 100 GB, nearly all of it a hole."""
    shape = [HUGE // 4 // 1024, 1024]
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, HUGE]}}
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + HUGE)


def test_the_end_of_a_huge_file_can_be_read(tmp_path: Path) -> None:
    huge(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"last")
    out = np.empty(4, np.uint8)
    with checkpoint.open() as reader:
        reader.read(checkpoint.tensors[0], HUGE - 4, out)
    assert out.tobytes() == b"last"


def bytes_read() -> int:
    """Bytes that this process has asked the system to read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_opening_reads_few_bytes(tmp_path: Path, form: str) -> None:
    weights = {f"t{i}": torch.rand(1024, 1024) for i in range(4)}
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    open_checkpoint(tmp_path)  # imports what it needs
    before = bytes_read()
    checkpoint = open_checkpoint(tmp_path)
    assert bytes_read() - before < 2**20
    before = bytes_read()
    assert content(checkpoint) == raw(weights)
    assert bytes_read() - before >= 16 * 2**20, "the counter counts"


# --- bad inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    ["no/such/folder", "./missing", "/no/such/path", "missing.safetensors", "a/b.bin", "", " ",
     "~nobody_of_that_name/x", "org/na\0me", "x" * 300, "org/" + "y" * 5000, "../..x/y", "-rf"],
)  # fmt: skip
def test_what_is_neither_a_path_nor_a_hub_id(model: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        open_checkpoint(model)
    assert len(str(caught.value)) < 6000


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(NoWeights, match="the folder is empty") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.where == str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(NoWeights, match=r"only model\.onnx") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_files_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(NoWeights, match=r"model\.safetensors: no tensors"):
        open_checkpoint(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "x.bin")
    with pytest.raises(NoWeights, match=r"x\.bin: no tensors"):
        open_checkpoint(tmp_path / "x.bin")


@pytest.mark.parametrize("name", ["model.txt", "config.json", "model", "model.h5"])
def test_a_file_of_another_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(NoWeights, match="not that of a weights file") as caught:
        open_checkpoint(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


def test_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for model in (tmp_path, tmp_path / "m.gguf"):
        with pytest.raises(UnsupportedCheckpoint, match="GGUF") as caught:
            open_checkpoint(model)
        assert caught.value.where == str(model)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / B).unlink()
    with pytest.raises(BadCheckpoint, match=f"names the shard {B}, which is missing") as caught:
        open_checkpoint(sharded)
    assert caught.value.file == str(sharded / "model.safetensors.index.json")


def test_a_missing_shard_without_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / B).unlink()
    with pytest.raises(BadCheckpoint, match="1 of 2 shards of model"):
        open_checkpoint(sharded)


def test_a_shard_that_is_a_folder_or_a_dead_link(sharded: Path) -> None:
    (sharded / B).unlink()
    (sharded / B).symlink_to(sharded / "nowhere")
    with pytest.raises(BadCheckpoint, match=f"{B}, which is missing"):
        open_checkpoint(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(BadCheckpoint, match=f"{B}: cannot be opened"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("with_index", [True, False])
def test_a_tensor_in_two_shards(sharded: Path, with_index: bool) -> None:
    save_file(load_file(sharded / B) | {"t0": torch.ones(1)}, sharded / B)
    if not with_index:
        (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(BadCheckpoint, match=f"tensor 't0' is in {A} and in {B}") as caught:
        open_checkpoint(sharded)
    assert caught.value.file == str(sharded)


def test_a_damaged_shard_is_named(sharded: Path) -> None:
    os.truncate(sharded / B, (sharded / B).stat().st_size - 1)
    with pytest.raises(BadCheckpoint, match="truncated") as caught:
        open_checkpoint(sharded)
    assert caught.value.file == str(sharded / B)


def test_a_config_that_is_damaged_is_no_config(sharded: Path) -> None:
    for damaged in (b"{", b"\xff\xfe", b"[" * 100_000, b"[1]", b""):
        (sharded / "config.json").write_bytes(damaged)
        assert open_checkpoint(sharded).config == {}


def test_a_revision_of_a_local_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="for Hub ids"):
        open_checkpoint(tmp_path, revision="main")


def test_a_folder_without_weights_is_refused_before_what_is_below_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr("prunectl.checkpoint.sidefiles.os.walk", lambda *_: pytest.fail("walked"))
    with pytest.raises(NoWeights):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json",
                                  "pytorch_model.bin"])  # fmt: skip
def test_a_pipe_is_no_weights_file_and_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadCheckpoint, match="not a regular file") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.file == str(tmp_path / name)


@pytest.mark.parametrize("one_file", [False, True])
def test_pipes_and_links_out_are_no_side_files(tmp_path: Path, one_file: bool) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (tmp_path / "secret").write_text("{}")
    os.mkfifo(folder / "config.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    checkpoint = open_checkpoint(folder / "model.safetensors" if one_file else folder)
    assert checkpoint.side_files == ()
    assert checkpoint.config == {}
    assert checkpoint.roles.origin == "headers"


def test_nothing_of_a_snapshot_in_the_cache_is_said_to_be_left_out(
    sharded: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--org--name/snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    sharded.rename(snapshot.parents[1] / "blobs")
    (snapshot.parents[1] / "blobs/README.md").write_text("A card.")
    for path in (snapshot.parents[1] / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.notes == ()
    assert checkpoint.side_files == ("config.json",)


def test_weights_may_be_links_to_another_place(
    sharded: Path, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    (sharded / A).rename(tmp_path / "elsewhere")
    (sharded / A).symlink_to(tmp_path / "elsewhere")
    checkpoint = open_checkpoint(sharded)
    assert content(checkpoint) == raw(tensors)
    assert checkpoint.notes == ()
