"""Which files are the weights, and indexes that do not tell the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunectl.checkpoint.index import (
    check_index,
    find_weights,
    read_index,
)
from prunectl.errors import BadCheckpoint, NoWeights, SourceError, UnsupportedCheckpoint

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
PICKLES = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    ("names", "format", "files", "index"),
    [
        (["model.safetensors"], "safetensors", ("model.safetensors",), None),
        (["pytorch_model.bin"], "pickle", ("pytorch_model.bin",), None),
        (["model.safetensors", "pytorch_model.bin"], "safetensors", ("model.safetensors",), None),
        (["other.safetensors", "pytorch_model.bin"], "safetensors", ("other.safetensors",), None),
        (["model.safetensors", *SHARDS, "model.safetensors.index.json"], "safetensors",
         ("model.safetensors",), None),
        (["pytorch_model.bin", *PICKLES, "pytorch_model.bin.index.json"], "pickle",
         ("pytorch_model.bin",), None),
        ([*SHARDS, "model.safetensors.index.json"], "safetensors", (),
         "model.safetensors.index.json"),
        ([*SHARDS, "model.safetensors.index.json", *PICKLES, "pytorch_model.bin.index.json"],
         "safetensors", (), "model.safetensors.index.json"),
        ([*PICKLES, "pytorch_model.bin.index.json"], "pickle", (), "pytorch_model.bin.index.json"),
        ([*SHARDS, "model.safetensors.index.json", "model.fp16.safetensors.index.json"],
         "safetensors", (), "model.safetensors.index.json"),
        (["weights-1-of-1.safetensors", "weights.safetensors.index.json"], "safetensors", (),
         "weights.safetensors.index.json"),
        (list(SHARDS[::-1]), "safetensors", SHARDS, None),
        (list(PICKLES[::-1]), "pickle", PICKLES, None),
        (["b.safetensors", "a.safetensors"], "safetensors", ("a.safetensors", "b.safetensors"),
         None),
        (["consolidated.safetensors", *SHARDS], "safetensors", SHARDS, None),
        (["consolidated.safetensors"], "safetensors", ("consolidated.safetensors",), None),
        (["consolidated.safetensors", "model.safetensors"], "safetensors", ("model.safetensors",),
         None),
        (["model.pt", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth",
          "scaler.pt", "random_states_0.pkl", "optimizer-2.bin"], "pickle", ("model.pt",), None),
        (["model.safetensors", "adapter_model.safetensors"], "safetensors",
         ("model.safetensors",), None),
        (["model-00001-of-00001.safetensors", "optimizer.safetensors", "scheduler.safetensors"],
         "safetensors", ("model-00001-of-00001.safetensors",), None),
        (["optimizer.safetensors", "model.pt"], "pickle", ("model.pt",), None),
        (["model-" + "1" * 5000 + "-of-2.safetensors"], "safetensors",
         ("model-" + "1" * 5000 + "-of-2.safetensors",), None),
        (["model.pth", "sub/model.safetensors", "onnx/model.bin"], "pickle", ("model.pth",), None),
        (["model.gguf", "model.safetensors"], "safetensors", ("model.safetensors",), None),
        (["config.json", "tf_model.h5", "pytorch_model.bin"], "pickle", ("pytorch_model.bin",),
         None),
        (["model.prunectl.safetensors"], "compressed", ("model.prunectl.safetensors",), None),
        (["model-00001-of-00001.prunectl.safetensors", "model.prunectl.safetensors.index.json"],
         "compressed", (), "model.prunectl.safetensors.index.json"),
    ],
)  # fmt: skip
def test_the_weights_are_those_that_transformers_takes(
    names: list[str], format: str, files: tuple[str, ...], index: str | None
) -> None:
    found = find_weights(names, "here")
    assert (found.format, found.files, found.index) == (format, files, index)
    assert find_weights(reversed(names), "here") == found


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        ([], NoWeights, "no weights found"),
        (["config.json", "tokenizer.json"], NoWeights, "no weights found"),
        (["tf_model.h5", "flax_model.msgpack"], NoWeights, "only flax_model.msgpack, tf_model.h5"),
        (["sub/model.safetensors"], NoWeights, "no weights found"),
        (["optimizer.safetensors"], NoWeights, "no weights found"),
        (["training_args.bin", "optimizer.pt"], NoWeights, "no weights found"),
        (["model.Q4_K_M.gguf", "README.md"], UnsupportedCheckpoint, "GGUF"),
        (["adapter_model.safetensors", "adapter_config.json"], UnsupportedCheckpoint, "PEFT"),
        (["adapter_model.bin"], UnsupportedCheckpoint, "PEFT"),
        (["model.prunectl.safetensors", "model.safetensors"], BadCheckpoint, "a compressed and a"),
        (["bert.pt", "vit.pt"], BadCheckpoint, "several checkpoints (bert.pt, vit.pt)"),
        (["consolidated.00.pth", "consolidated.01.pth"], BadCheckpoint, "several checkpoints"),
        ([SHARDS[0]], BadCheckpoint, "1 of 2 shards of model: some are missing"),
        ([PICKLES[1]], BadCheckpoint, "1 of 2 shards of pytorch_model: some are missing"),
        (["m-1-of-3.bin", "m-3-of-3.bin"], BadCheckpoint, "2 of 3 shards of m"),
        ([*PICKLES, "m-1-of-1.bin"], BadCheckpoint, "several checkpoints (m, pytorch_model)"),
        ([*PICKLES, "extra.bin"], BadCheckpoint, "several checkpoints"),
    ],
)
def test_folders_that_are_no_checkpoint(
    names: list[str], error: type[SourceError], says: str
) -> None:
    with pytest.raises(error) as caught:
        find_weights(names, "the/folder")
    assert str(caught.value).startswith("the/folder: ")
    assert says in str(caught.value)
    assert caught.value.hint


def write_index(folder: Path, weight_map: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def test_an_index_is_read(tmp_path: Path) -> None:
    weight_map = {"b": "model-2.safetensors", "a": "model-1.safetensors"}
    assert read_index(write_index(tmp_path, weight_map)) == weight_map


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors",
        "/etc/passwd",
        "/tmp/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x\0.safetensors",
        "x.safetensors\0/../y",
        "\n.safetensors",
        "..",
        "",
        None,
        7,
        ["x.safetensors"],
    ],
)
def test_an_index_that_leads_out_of_the_folder(tmp_path: Path, file: Any) -> None:
    path = write_index(tmp_path, {"layer.weight": file})
    with pytest.raises(BadCheckpoint, match=r"'layer\.weight' points outside") as caught:
        read_index(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("file", ["config.json", "training_args.bin", "passwd", "x.pkl"])
def test_an_index_that_points_at_no_weights(tmp_path: Path, file: str) -> None:
    with pytest.raises(BadCheckpoint, match=r"'t' points at .*not a weights file"):
        read_index(write_index(tmp_path, {"t": file}))


@pytest.mark.parametrize("file", ["a" * 244 + ".safetensors", "\u00e9" * 122 + ".safetensors"])
def test_an_index_that_points_at_a_name_too_long_for_a_file(tmp_path: Path, file: str) -> None:
    assert read_index(write_index(tmp_path, {"t": file[1:]})) == {"t": file[1:]}
    with pytest.raises(OSError, match="too long"):
        (tmp_path / file).touch()
    with pytest.raises(BadCheckpoint, match="'t' points at a name too long for a file"):
        read_index(write_index(tmp_path, {"t": file}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"weight_map"',
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"weight_map": {}}',
        b'{"weight_map": ["a"]}',
        b'{"weight_map": null}',
        b"version https://git-lfs.github.com/spec/v1",
        b'{"weight_map": {"a\\ud800": "model.safetensors"}}',
    ],
)
def test_a_damaged_index(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint) as caught:
        read_index(path)
    assert caught.value.file == str(path)


def test_an_index_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="cannot be read: No such file"):
        read_index(tmp_path / "model.safetensors.index.json")


def test_an_index_is_compared_with_the_shards() -> None:
    path = Path("model.safetensors.index.json")
    held = {"a": "1.safetensors", "b": "2.safetensors", "extra": "2.safetensors"}
    check_index(path, {"a": "1.safetensors", "b": "2.safetensors"}, held)
    with pytest.raises(BadCheckpoint, match=r"'c' is in 1.safetensors, but it is in none"):
        check_index(path, {"a": "1.safetensors", "c": "1.safetensors"}, held)
    with pytest.raises(BadCheckpoint, match=r"'b' is in 1.safetensors, but it is in 2"):
        check_index(path, {"b": "1.safetensors"}, held)
