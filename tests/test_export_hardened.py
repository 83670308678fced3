"""What was once found by hostile readers of compressed folders: it stays mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_cases as cases
import numpy as np
import pytest
import reference
import tiny_models
import torch
from export_cases import WEIGHTS

import prunectl
from prunectl import PruneSettings, export, load_state_dict, open_weights, prune, verify
from prunectl.cli.run import run
from prunectl.errors import BadCheckpoint, PrunectlError, UnsupportedCheckpoint
from prunectl.exporting.masks import export_masks
from prunectl.layouts.errors import Damaged
from prunectl.layouts.packing.scheme import read_scheme
from prunectl.tensorspec import DTYPES

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    tiny_models.build("llama", place / "source")
    prune(place / "source", place / "pruned", PruneSettings(pattern="2:4"))  # type: ignore[arg-type]
    for layout in ("packed", "nm", "bitmask"):
        export(place / "pruned", place / layout, layout)
    return place


@pytest.fixture
def small(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda layout: cases.copied(made / layout, tmp_path / layout)


def test_an_alphabet_without_symbols_is_refused() -> None:
    """Its escape was digit 0, with which the last byte is filled up: a write past the end."""
    for per_byte in range(2, 9):
        extra = {"mask": "none", "chunk": 8, "per_byte": per_byte, "symbols": []}
        with pytest.raises(Damaged, match="do not fit"):
            read_scheme(DTYPES["U8"], (1,), extra)


def test_escapes_are_never_put_past_the_last_symbol() -> None:
    from prunectl.layouts.kernels import symbols as kernels

    table = np.zeros((256, 4), np.uint8)  # whatever the byte, four digits that are all escapes
    counts = np.full(256, 4, np.int64)
    room = np.full(8, 255, np.uint8)
    kernels.fill_escapes(
        np.zeros(1, np.uint8), table, 0, counts, np.arange(8, dtype=np.uint8), room[:2]
    )
    assert room.tolist() == [0, 1, 255, 255, 255, 255, 255, 255]


@pytest.mark.parametrize(
    ("layout", "dtype"), [("packed", "F4"), ("nm", "F6_E2M3"), ("bitmask", "F6_E3M2")]
)
def test_a_dtype_of_less_than_a_byte_is_damage(
    small: Callable[[str], Path], layout: str, dtype: str, tmp_path: Path
) -> None:
    folder = small(layout)
    (folder / "prunectl.json").unlink()

    def claim(document: dict[str, Any]) -> None:
        document["tensors"][UP]["dtype"] = dtype

    cases.edit_described(folder / WEIGHTS, claim)
    with pytest.raises(BadCheckpoint, match=UP):
        load_state_dict(folder)
    with pytest.raises(BadCheckpoint, match=UP):
        export(folder, tmp_path / "out", "dense")


def test_dense_tensors_have_a_hash_in_the_header_too(small: Callable[[str], Path]) -> None:
    folder = small("packed")
    (folder / "prunectl.json").unlink()
    dtype, shape, data = cases.entries(folder / WEIGHTS)[NORM]
    flipped = bytes([data[0] ^ 1]) + data[1:]
    cases.replace_stored(folder / WEIGHTS, {NORM: (dtype, shape, flipped)})
    with pytest.raises(BadCheckpoint, match=f"'{NORM}' is damaged"):
        load_state_dict(folder)


def test_masks_of_damaged_weights_are_refused(made: Path, tmp_path: Path) -> None:
    folder = cases.copied(made / "pruned", tmp_path / "pruned")
    path = folder / "model.safetensors"
    dtype, shape, data = cases.entries(path)[UP]
    cases.replace_stored(path, {UP: (dtype, shape, bytes(200) + data[200:])})
    with pytest.raises(PrunectlError, match=UP):
        export_masks(folder, tmp_path / "masks.safetensors")
    assert not (tmp_path / "masks.safetensors").exists()


def test_asking_for_a_name_decodes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_weights(made / "packed") as weights:
        monkeypatch.setattr(type(weights), "__getitem__", lambda self, name: pytest.fail("decoded"))
        assert UP in weights
        assert "nothing" not in weights


def test_verify_compares_how_tensors_are_stored(small: Callable[[str], Path]) -> None:
    folder = small("packed")
    assert verify(folder).ok

    def lie(document: dict[str, Any]) -> None:
        for tensor in document["tensors"]:
            if tensor["name"] == UP:
                tensor["layout"], tensor["stored_bytes"] = "bitmask", 1

    cases.edit_manifest(folder, lie)
    report = verify(folder)
    assert [(d.kind, d.where) for d in report.differences] == [("layout", UP)]


def test_groups_along_the_first_axis_are_found_without_a_manifest(tmp_path: Path) -> None:
    tiny_models.build("gpt2", tmp_path / "source")
    settings = PruneSettings(pattern="2:4")  # type: ignore[arg-type]
    prune(tmp_path / "source", tmp_path / "pruned", settings)
    (tmp_path / "pruned" / "prunectl.json").unlink()
    result = export(tmp_path / "pruned", tmp_path / "nm", "nm")
    patterns = {t.name: t.pattern for t in result.tensors if t.layout == "nm"}
    assert any(name.endswith("mlp.c_fc.weight") for name in patterns)
    assert set(patterns.values()) == {"2:4"}
    reference.assert_same(load_state_dict(tmp_path / "nm"), load_state_dict(tmp_path / "pruned"))


def test_a_header_is_no_longer_than_it_must_be(tmp_path: Path) -> None:
    """Thousands of tiny tensors, all dense: the file once grew sixfold."""
    tensors = {f"layer.{n}.scale": torch.randn(3, 5).bfloat16() for n in range(2000)}
    source = reference.save(tmp_path / "source", tensors)
    result = export(source, tmp_path / "out")
    header, _ = cases.read_file(tmp_path / "out" / WEIGHTS)
    needed = len(json.dumps(header, separators=(",", ":")))
    size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert size == result.nbytes
    assert size - result.dense_bytes < 1.15 * needed + 64


@pytest.mark.parametrize(
    "more", [["--layout", "packed"], ["--pattern", "2:4"], ["--max-shard-size", "1MB"]]
)
def test_flags_that_mean_nothing_for_masks_are_refused(
    made: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks.safetensors"
    assert run(["export", str(made / "pruned"), "--masks-only", "-o", str(out), *more]) == 2
    assert "have no meaning" in capsys.readouterr().err
    assert not out.exists()


def test_a_source_that_changes_meanwhile_is_noticed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunectl.exporting import verb

    folder = cases.copied(made / "pruned", tmp_path / "pruned")
    write_parts = verb.write_parts

    def touched(*args: Any, **options: Any) -> Any:
        (folder / "model.safetensors").touch()
        return write_parts(*args, **options)

    monkeypatch.setattr(verb, "write_parts", touched)
    with pytest.raises(BadCheckpoint, match="changed since it was opened"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_transformers_must_not_read_past_us(made: Path) -> None:
    """With disable_mmap it reads files by another function, and all weights would stay random."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(UnsupportedCheckpoint, match="past prunectl"):
        AutoModelForCausalLM.from_pretrained(made / "packed", disable_mmap=True)
    model = AutoModelForCausalLM.from_pretrained(made / "packed")
    reference.assert_same(
        {UP: model.state_dict()[UP].bfloat16()},
        {UP: load_state_dict(made / "packed")[UP].bfloat16()},
    )


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": []},
        {"quantization_config": {"quant_method": "prunectl", "weights": "gone.safetensors"}},
        {"num_hidden_layers": 3},
        {"architectures": ["PreTrainedModel"]},
    ],
)
def test_a_config_that_does_not_fit_is_a_typed_error(
    small: Callable[[str], Path], config: dict[str, Any]
) -> None:
    folder = small("packed")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(PrunectlError):
        prunectl.load_model(folder)
