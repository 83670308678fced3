"""Bad input: the right error and exit code, a message that names the thing, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from prunectl import NM, PruneSettings, Rule, Scope, analyze, prune
from prunectl.errors import (
    BadCheckpoint,
    CannotWrite,
    InvalidOption,
    InvalidSparsity,
    NaNWeights,
    NoSpace,
    NothingPrunable,
    OutputConflict,
    PrunectlError,
    UnsafePickle,
    UnsupportedCheckpoint,
)
from prunectl.output import target

HALF = PruneSettings(sparsity=0.5)
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "source"
    tiny_models.build("llama", folder)
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "source"))


@pytest.fixture(autouse=True)
def nothing_is_written(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Whatever a test tries must leave its folder as the test's own preparation left it."""
    before: list[dict[str, tuple[int, int, bytes]]] = []
    request.node.prepared = lambda: before.append(reference.snapshot(tmp_path))
    yield
    assert before, "the test has not said when it was prepared"
    assert reference.snapshot(tmp_path) == before[0]


@pytest.fixture
def prepared(request: pytest.FixtureRequest) -> Callable[[], None]:
    """To be called when all is laid out and the bad thing is about to be tried."""
    return lambda: request.node.prepared()


Prepared = Callable[[], None]


def refused(
    kind: type[PrunectlError],
    names: str,
    source: Path | str,
    out: Path,
    choice: PruneSettings | dict[str, Any] = HALF,
    *,
    code: int,
    force: bool = False,
    max_shard_size: int = 20_000,
) -> PrunectlError:
    def attempt() -> None:
        settings = PruneSettings(**choice) if isinstance(choice, dict) else choice
        prune(source, out, settings, force=force, max_shard_size=max_shard_size)

    with pytest.raises(PrunectlError) as caught:
        attempt()
    assert type(caught.value) is kind
    assert names in str(caught.value)
    assert caught.value.exit_code == code
    assert caught.value.hint
    return caught.value


# --- numbers and patterns -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 40.0, float("nan"), float("inf")])
def test_a_sparsity_out_of_range(
    source: Path, tmp_path: Path, prepared: Prepared, value: float
) -> None:
    prepared()
    for choice in (
        {"sparsity": value},
        {"sparsity": 0.5, "rules": (Rule(match=("*up_proj*",), sparsity=value),)},
    ):
        refused(InvalidSparsity, f"{value:g}", source, tmp_path / "out", choice, code=2)


def test_more_than_a_pattern_can_reach(source: Path, tmp_path: Path, prepared: Prepared) -> None:
    prepared()
    choice = {"sparsity": 0.6, "pattern": NM(2, 4)}
    error = refused(InvalidSparsity, "at most 0.5", source, tmp_path / "out", choice, code=2)
    assert "2:4" in error.message


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({}, "no sparsity"),
        ({"pattern": NM(2, 4), "scope": Scope.ROW}, "scope 'row'"),
        ({"sparsity": 0.5, "exclude": ("*.up_prjo.*",)}, "'*.up_prjo.*' matches no tensor"),
        ({"sparsity": 0.5, "include": ("re:[",)}, "re:["),
        ({"sparsity": 0.5, "include": ("",)}, "empty selector"),
    ],
)
def test_settings_that_have_no_meaning(
    source: Path, tmp_path: Path, prepared: Prepared, choice: dict[str, Any], names: str
) -> None:
    prepared()
    refused(InvalidOption, names, source, tmp_path / "out", choice, code=2)


@pytest.mark.parametrize(
    "choice",
    [
        PruneSettings(sparsity=0.5, exclude=("*",)),
        PruneSettings(sparsity=0.5, exclude=("model.layers",)),
        PruneSettings(sparsity=0.5, rules=(Rule(match=("*",), skip=True),)),
        PruneSettings(pattern=NM(5, 64), exclude=("*.down_proj.*",)),
    ],
)
def test_nothing_left_to_prune(
    source: Path, tmp_path: Path, prepared: Prepared, choice: PruneSettings
) -> None:
    prepared()
    refused(NothingPrunable, "nothing to prune", source, tmp_path / "out", choice, code=2)


# --- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [HALF, PruneSettings(sparsity=0.3, pattern=NM(2, 4))])
def test_nan_in_a_prunable_weight(
    source: Path, tmp_path: Path, prepared: Prepared, choice: PruneSettings
) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors[UP][5, 6] = torch.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    prepared()
    error = refused(NaNWeights, UP, source, tmp_path / "out", choice, code=1)
    assert "1 NaN value," in error.message
    assert f"--exclude '{UP}'" in error.hint
    # Folders that were made on the way go again too.
    refused(NaNWeights, UP, source, tmp_path / "new" / "deep" / "out", choice, code=1)


def test_nan_as_typed(
    source: Path, typed: Callable[..., tuple[int, str, str]], prepared: Prepared
) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors[UP][0] = torch.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    prepared()
    for command in (
        ("prune", source, "-s", "0.5", "-o", "out"),
        ("prune", source, "-p", "2:4", "-o", "out"),
        ("analyze", source),
    ):
        code, out, text = typed(*command)
        assert (code, out) == (1, ""), command
        assert UP in text
        assert "32 NaN values" in text


def test_a_quantized_checkpoint(source: Path, tmp_path: Path, prepared: Prepared) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config))
    prepared()
    error = refused(UnsupportedCheckpoint, "gptq", source, tmp_path / "out", code=1)
    assert "before quantization" in error.hint


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_pickle_that_wants_to_run_code(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    torch.save({"a.weight": torch.ones(4, 4), "b": Evil()}, tmp_path / "source/pytorch_model.bin")
    prepared()
    refused(UnsafePickle, "pytorch_model.bin", tmp_path / "source", tmp_path / "out", code=1)


def test_a_side_file_that_leads_nowhere(source: Path, tmp_path: Path, prepared: Prepared) -> None:
    (source / "vocab.txt").symlink_to("nowhere")
    prepared()
    refused(BadCheckpoint, "vocab.txt", source, tmp_path / "out", code=1)


def test_a_corrupt_analysis_cache_is_no_obstacle(
    source: Path, tmp_path: Path, prepared: Prepared, isolated_user: Path
) -> None:
    prune(source, tmp_path / "clean", HALF)
    analyze(source)
    kept = [path for path in (isolated_user / "prunectl").rglob("*") if path.is_file()]
    assert kept
    for damage in (b"", b"{", b"\x00" * 4000):
        analyze(source)
        for path in kept:
            path.write_bytes(damage)
        prune(source, tmp_path / "out", HALF)
        assert reference.contents(tmp_path / "out") == reference.contents(tmp_path / "clean")
        shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "clean")
    prepared()


# --- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["source", "source/a/b/out", ".", "link", "link/out"])
def test_an_output_in_or_around_the_source(
    source: Path, tmp_path: Path, prepared: Prepared, where: str
) -> None:
    (tmp_path / "link").symlink_to(source)
    prepared()
    for force in (False, True):
        error = refused(
            OutputConflict, "source", source, tmp_path / where, HALF, code=2, force=force
        )
        assert "never changed" in error.message


def test_an_output_around_the_one_file_that_is_the_source(
    source: Path, tmp_path: Path, prepared: Prepared
) -> None:
    prepared()
    file = source / "model.safetensors"
    refused(OutputConflict, "model.safetensors", file, source, code=2, force=True)


def test_an_output_that_is_a_file(source: Path, tmp_path: Path, prepared: Prepared) -> None:
    (tmp_path / "out").write_text("mine")
    prepared()
    for force in (False, True):
        refused(OutputConflict, "is a file", source, tmp_path / "out", code=2, force=force)


def test_an_output_below_a_file(source: Path, tmp_path: Path, prepared: Prepared) -> None:
    (tmp_path / "file").write_text("mine")
    prepared()
    refused(CannotWrite, "file", source, tmp_path / "file" / "out", code=1)


def test_an_output_that_holds_something(source: Path, tmp_path: Path, prepared: Prepared) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    prepared()
    error = refused(OutputConflict, "not empty", source, tmp_path / "out", code=2)
    assert "--force" in error.hint
    refused(OutputConflict, "not a checkpoint", source, tmp_path / "out", code=2, force=True)


def test_no_space_found_beforehand(
    source: Path, tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "free_bytes", lambda path: 12_345)
    prepared()
    error = refused(NoSpace, "12,345 are free", source, tmp_path / "out", code=1)
    assert isinstance(error, NoSpace)
    size = (source / "model.safetensors").stat().st_size
    assert error.needed > size


def test_a_small_disk(source: Path, small_disk: Path, prepared: Prepared) -> None:
    (source / "vocab.txt").write_bytes(bytes(200_000))
    prepared()
    refused(NoSpace, "are free", source, small_disk / "out", code=1)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way(
    source: Path, small_disk: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check passes, as if another program took the space after it.
    (source / "vocab.txt").write_bytes(bytes(100_000))
    prepared()
    with monkeypatch.context() as patched:
        patched.setattr(target, "free_bytes", lambda path: 1 << 40)
        error = refused(NoSpace, "out", source, small_disk / "out", code=1, max_shard_size=3_000)
    assert "finished shards are kept" in error.hint
    left = {path.name for path in small_disk.iterdir()}
    assert left == {".out.prunectl-partial", ".out.prunectl-journal"}
    subprocess.run(["mount", "-o", "remount,size=4194304", small_disk], check=True)
    assert prune(source, small_disk / "out", HALF, max_shard_size=3_000).resumed_shards > 0
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_a_disk_that_has_no_room_for_the_first_shard(
    source: Path, small_disk: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.ones(100, 100) for i in range(9)}
    save_file(tensors, source / "model.safetensors")
    monkeypatch.setattr(target, "free_bytes", lambda path: 1 << 40)
    prepared()
    refused(NoSpace, "out", source, small_disk / "out", code=1, max_shard_size=10**9)
    assert list(small_disk.iterdir()) == []


def test_a_read_only_disk(source: Path, small_disk: Path, prepared: Prepared) -> None:
    subprocess.run(["mount", "-o", "remount,ro,size=4194304", small_disk], check=True)
    prepared()
    error = refused(CannotWrite, small_disk.name, source, small_disk / "out", code=1)
    assert "writable place" in error.hint
