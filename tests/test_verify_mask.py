"""``verify --mask-of``: zeros of a pruned model in models that other tools have made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantized_reference as reference
import tiny_models
import torch
from full import few
from safetensors.torch import load_file, save_file

import prunectl
from prunectl.parallel import streaming

Typed = Callable[..., tuple[int, str, str]]
State = dict[str, torch.Tensor]
STEM = "model.layers.1.mlp.down_proj"
WEIGHT = f"{STEM}.weight"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_models.build("llama", folder / "dense")
    settings = prunectl.PruneSettings(sparsity=0.5)
    prunectl.prune(prunectl.open_checkpoint(folder / "dense"), folder / "pruned", settings)
    return folder / "pruned"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny matrices are read in several blocks, as large ones are."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1024)


def matrices(state: State) -> list[str]:
    return [name for name in state if "_proj.weight" in name]


def write(folder: Path, pruned: Path, state: State, config: dict[str, Any]) -> Path:
    """A folder with these tensors, and with the configuration of the pruned model and this one."""
    folder.mkdir()
    save_file({name: one.contiguous() for name, one in state.items()}, folder / "model.safetensors")
    own = json.loads((pruned / "config.json").read_text())
    own |= {"quantization_config": config} if config else {}
    (folder / "config.json").write_text(json.dumps(own))
    return folder


def quantized(folder: Path, pruned: Path, name: str, fill: int = 0, **more: torch.Tensor) -> Path:
    """The pruned model in a format, with the first ``fill`` zeros of one matrix filled before."""
    config, encode = reference.FORMATS[name]
    state = load_file(pruned / "model.safetensors")
    for one in matrices(state):
        weight = state.pop(one)
        if one == WEIGHT:
            places = (weight == 0).nonzero()[:fill]
            weight[places[:, 0], places[:, 1]] = weight.max()
        stem = one.removesuffix(".weight")
        state |= {f"{stem}.{part}": tensor for part, tensor in encode(weight).items()}
    return write(folder, pruned, {**state, **more}, config)


@pytest.mark.parametrize("name", few(list(reference.FORMATS), *reference.FORMATS))
def test_zeros_that_stayed_and_zeros_that_did_not(name: str, pruned: Path, tmp_path: Path) -> None:
    report = prunectl.verify_mask(quantized(tmp_path / "kept", pruned, name), pruned, jobs=2)
    state = load_file(pruned / "model.safetensors")
    zeros = {one: int((state[one] == 0).sum()) for one in matrices(state)}
    assert report.ok, report.differences
    assert (report.tensors, report.zeros) == (len(zeros), sum(zeros.values()))
    form = name.partition(",")[0]
    assert report.checks[0].detail.endswith(f": {len(zeros)} tensors {form}")

    report = prunectl.verify_mask(quantized(tmp_path / "lost", pruned, name, fill=7), pruned)
    (found,) = report.differences
    assert (found.kind, found.where) == ("mask", WEIGHT)
    assert found.detail == f"7 of {zeros[WEIGHT]} zeros are not zero ({form})"


def test_a_model_that_was_trained_and_one_that_is_compressed(pruned: Path, tmp_path: Path) -> None:
    prunectl.export(prunectl.open_checkpoint(pruned), tmp_path / "small")
    state = load_file(pruned / "model.safetensors")
    tuned = {name: (one * 1.5).to(torch.bfloat16) for name, one in state.items()}
    write(tmp_path / "tuned", pruned, tuned, {})
    assert prunectl.verify_mask(tmp_path / "tuned", tmp_path / "small").ok
    assert prunectl.verify_mask(tmp_path / "small", pruned).ok
    tuned[WEIGHT] += 1e-3
    write(tmp_path / "filled", pruned, tuned, {})
    report = prunectl.verify_mask(tmp_path / "filled", tmp_path / "small")
    assert [one.where for one in report.differences] == [WEIGHT]


def test_the_command_says_so_by_its_exit_code(typed: Typed, pruned: Path, tmp_path: Path) -> None:
    quantized(tmp_path / "kept", pruned, "int4 of AWQ")
    quantized(tmp_path / "lost", pruned, "int4 of AWQ", fill=3)
    code, out, _ = typed("verify", "kept", "--mask-of", pruned)
    assert code == 0
    assert "14 tensors int4 of AWQ" in out
    code, out, _ = typed("verify", "lost", "--mask-of", pruned, "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["schema"]) == (3, False, "prunectl.verify/1")
    assert [one["passed"] for one in document["checks"]] == [True, False]
    assert typed("verify", "lost", "--mask-of", pruned, "-q") == (
        3, "", "warning: lost: 1 difference (mask)\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("kept --mask-of kept", "the checkpoint is quantized (awq)"),
        ("kept --mask-of DENSE", "has no zeros in its prunable weights"),
        ("kept --mask-of DENSE --no-source", "--source, --no-source and --mask-of exclude each"),
        ("nothing --mask-of DENSE", "nothing: no such file or folder"),
    ],
)
def test_what_cannot_be_compared(
    argv: str, error: str, typed: Typed, pruned: Path, tmp_path: Path
) -> None:
    quantized(tmp_path / "kept", pruned, "int4 of AWQ")
    dense = str(pruned.parent / "dense")
    code, out, err = typed("verify", *argv.replace("DENSE", dense).split())
    assert code in (1, 2)
    assert out == ""
    assert error in err


# --- damaged and hostile checkpoints --------------------------------------------------------------


def wide(shape: tuple[int, ...], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


CT4, INT8 = "int4 of compressed-tensors, asymmetric", "int8 of compressed-tensors, asymmetric"
ACT, NF4 = "int4 of GPTQ, act-order", "nf4 of bitsandbytes"
STATE = f"weight.quant_state.{reference.BNB['quant_method']}__nf4"
DAMAGE: list[tuple[str, str, torch.Tensor | None, str]] = [
    (CT4, "weight_packed", None, "it is not there"),
    (CT4, "weight_packed", wide((32, 77)), "48 integers of 4 bits do not take 77 words each"),
    (CT4, "weight_packed", wide((31, 6)), "its weight_packed is [31, 6], not [32, 6]"),
    (CT4, "weight_packed", wide((32, 6), torch.int64), "its weight_packed is int64"),
    (CT4, "weight_shape", torch.tensor([48, 32]), "its weight_shape says [48, 32], not [32, 48]"),
    (CT4, "weight_scale", None, "its weight_scale is missing"),
    (CT4, "weight_scale", torch.ones(32, 7), "its weight_zero_point is [4, 3], not [4, 7]"),
    (CT4, "weight_scale", torch.ones(32, 1 << 16), "its weight_scale has 65536 groups"),
    (CT4, "weight_scale", torch.ones(0, 3), "its weight_scale is [0, 3], not [32, 3]"),
    (CT4, "weight_zero_point", wide((4, 4)), "its weight_zero_point is [4, 4], not [4, 3]"),
    (CT4, "weight_g_idx", torch.full((48,), 3).int(), "weight_g_idx names other groups"),
    ("int4 of compressed-tensors", "weight_scale", torch.ones(32, 7), "7 groups do not divide 48"),
    (INT8, "weight", wide((32, 48), torch.int64), "it is int64, a form that is not known"),
    (INT8, "weight", wide((48, 32), torch.int8), "its weight is [48, 32], not [32, 48]"),
    (INT8, "weight_zero_point", wide((2, 3), torch.int8), "its weight_zero_point is [2, 3], not"),
    ("fp8-e4m3", "weight", torch.zeros(48, 32).to(torch.float8_e4m3fn), "it is [48, 32], not"),
    (ACT, "scales", None, "its scales have 0 groups"),
    (ACT, "qzeros", wide((3, 5)), "its qzeros is [3, 5], not [3, 4]"),
    (ACT, "qweight", wide(()), "48 integers of 1 to 8 bits do not take 0 words each"),
    (ACT, "g_idx", torch.arange(48).int(), "its g_idx names other groups than 0 to 2"),
    ("int8 of bitsandbytes", "SCB", torch.ones(31), "its SCB is [31], not [32]"),
    ("int8 of bitsandbytes", "weight_format", torch.tensor(1).byte(), "is not row by row"),
    (NF4, "weight", wide((767, 1), torch.uint8), "it has 767 bytes for 1,536 weights"),
    (NF4, "weight.quant_map", torch.zeros(17), "its weight.quant_map is [17], not [16]"),
    (NF4, "weight.absmax", torch.zeros(3), "its weight.absmax is [3], not [96]"),
    (NF4, STATE, torch.zeros(9).byte(), "its quantization state is damaged"),
    (NF4, STATE, wide((1 << 17,), torch.uint8), "its quantization state is damaged"),
    (NF4, STATE, torch.frombuffer(bytearray(b'{"shape": [32, 48], "blocksize": 0}'),
                                  dtype=torch.uint8), "its blocksize is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "tensor", "words"), DAMAGE)
def test_a_damaged_weight_is_a_difference(
    name: str, part: str, tensor: torch.Tensor | None, words: str, pruned: Path, tmp_path: Path
) -> None:
    folder = quantized(tmp_path / "damaged", pruned, name)
    state = load_file(folder / "model.safetensors")
    state.pop(f"{STEM}.{part}", None)
    state |= {} if tensor is None else {f"{STEM}.{part}": tensor}
    save_file(state, folder / "model.safetensors")
    report = prunectl.verify_mask(folder, pruned)
    (found,) = report.differences
    assert (found.kind, found.where) == ("stored", WEIGHT)
    assert words in found.detail
    assert report.tensors == len(matrices(load_file(pruned / "model.safetensors"))) - 1


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("int4 of GPTQ", {"quant_method": "gptq", "checkpoint_format": "marlin"}, "gptq marlin"),
        ("int4 of GPTQ", {"quant_method": "other"}, "other is not known"),
        ("int4 of AWQ", {"quant_method": "awq", "version": "gemv"}, "AWQ of version gemv"),
    ],
)
def test_a_format_that_is_not_known_is_said(
    name: str, config: dict[str, Any], words: str, pruned: Path, tmp_path: Path
) -> None:
    folder = quantized(tmp_path / "quantized", pruned, name)
    own = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(own | {"quantization_config": config}))
    report = prunectl.verify_mask(folder, pruned)
    assert len(report.differences) == 14
    assert all(words in one.detail for one in report.differences)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("int5 of compressed-tensors, 0.17.1", {}),
        ("int5 of compressed-tensors, 0.17.1", reference.ct_config(5)),
        ("int7 of compressed-tensors, 0.17.1", {"version": "0.17.1"}),
    ],
)
def test_integers_that_may_be_packed_in_two_ways(
    name: str, known: dict[str, Any], pruned: Path, tmp_path: Path
) -> None:
    """In 48 columns, integers of 5 bits take as many words in both; those of 7 as those of 8."""
    folder = quantized(tmp_path / "quantized", pruned, name)
    own = json.loads((folder / "config.json").read_text())
    own["quantization_config"] = reference.CT | known
    (folder / "config.json").write_text(json.dumps(own))
    details = {one.where: one.detail for one in prunectl.verify_mask(folder, pruned).differences}
    assert "depends on num_bits and on the version of compressed-tensors" in details[WEIGHT]


def test_a_transposed_layer_is_read_in_float_types_only(tmp_path: Path) -> None:
    """Conv1D of GPT-2 has its inputs first: a square one would be read the wrong way round."""
    tiny_models.build("gpt2", tmp_path / "dense")
    settings = prunectl.PruneSettings(sparsity=0.3)
    prunectl.prune(prunectl.open_checkpoint(tmp_path / "dense"), tmp_path / "pruned", settings)
    shutil.copytree(tmp_path / "pruned", tmp_path / "other")
    assert prunectl.verify_mask(tmp_path / "other", tmp_path / "pruned").ok
    state = load_file(tmp_path / "other" / "model.safetensors")
    name = next(one for one in state if one.endswith("h.0.attn.c_proj.weight"))
    state |= {
        f"{name.removesuffix('.weight')}.{part}": one
        for part, one in reference.ct_int8(state.pop(name)).items()
    }
    save_file(state, tmp_path / "other" / "model.safetensors")
    (found,) = prunectl.verify_mask(tmp_path / "other", tmp_path / "pruned").differences
    assert "its first axis is inputs" in found.detail
