"""Blocks fitted as a whole: the mask stays, and the error falls, as a plain run measures it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny_models
import torch
from full import few
from transformers.models.llama import modeling_llama

from prunectl import PruneSettings, prune, verify
from prunectl.calibration import block_order, reconstruction, scales
from prunectl.calibration.samples import gather_samples
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import CalibrationFailed, InvalidOption, UnsupportedCheckpoint
from prunectl.plan.settings import Calibration

RANDOM = Calibration(("random",), samples=16, sequence_length=10)


STEPS = 28


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "STEPS", STEPS)
    monkeypatch.setattr(scales, "STEPS", 2)


def settings(method: str, **options: Any) -> PruneSettings:
    options = {"calibration": RANDOM, "reconstruct": True} | options
    return PruneSettings(method=method, **options)  # type: ignore[arg-type]


def facts(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = json.loads((folder / "prunectl.json").read_text())
    return {one["name"]: one["calibrated"] for one in manifest["tensors"] if one["calibrated"]}


@pytest.mark.parametrize(
    ("name", "method", "target"),
    few(
        [
            ("llama", "sparsegpt", {"pattern": "2:4"}),
            ("gpt2", "wanda", {"sparsity": 0.5}),
            ("mixtral", "admm", {"sparsity": 0.6}),
            ("t5", "magnitude", {"pattern": "2:4"}),
            ("bert", "admm", {"pattern": "2:4"}),
            ("albert", "wanda", {"sparsity": 0.5}),
            ("opt", "sparsegpt", {"sparsity": 0.5}),
            ("gpt_oss", "wanda", {"pattern": "2:4"}),
        ],
        ("llama", "sparsegpt", {"pattern": "2:4"}),
        ("t5", "magnitude", {"pattern": "2:4"}),
    ),
)
def test_the_mask_stays_and_no_block_becomes_worse(
    tmp_path: Path, name: str, method: str, target: dict[str, Any]
) -> None:
    tiny_models.build(name, tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings(method, **target))
    dense, found = reference.stored(tmp_path / "dense"), reference.stored(out)
    fits = facts(out)
    assert any(one["block_error"] < one["block_error_before"] for one in fits.values())
    for tensor, one in fits.items():
        assert one["block_error"] <= one["block_error_before"], tensor
        if one["block_error"] < one["block_error_before"]:
            assert one["steps"] >= STEPS
            assert one["survivors"] == "updated"
    # Zeros are as many as without; those of later blocks are chosen by other inputs.
    samples = None if method == "magnitude" else RANDOM
    without = settings(method, reconstruct=False, calibration=samples, **target)
    prune(tmp_path / "dense", tmp_path / "plain", without)
    plain = reference.stored(tmp_path / "plain")
    for tensor, values in found.items():
        assert int((values == 0).sum()) == int((plain[tensor] == 0).sum()), tensor
        if method == "magnitude":
            assert torch.equal(values == 0, plain[tensor] == 0), tensor
        if tensor not in fits:
            assert torch.equal(values, dense[tensor]), tensor
    assert verify(out).ok


def test_the_errors_are_those_of_a_plain_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last block's error, from the outputs of both models on the samples held out."""
    monkeypatch.setattr(block_order, "_has_logits", lambda *of: False)
    model: Any = tiny_models.build("llama", tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("sparsegpt", sparsity=0.5))
    small: Any = type(model).from_pretrained(out).eval()
    samples = gather_samples(open_checkpoint(tmp_path / "dense"), RANDOM, lambda event: None).inputs
    outputs: dict[Any, torch.Tensor] = {}
    for one in (model, small):
        last = one.model.layers[-1]
        last.register_forward_hook(lambda _, __, output, one=one: outputs.__setitem__(one, output))
    errors = []
    for held_out in samples[15::16]:
        with torch.no_grad():
            model(**held_out), small(**held_out)
        wanted, found = (outputs[one].double() for one in (model, small))
        errors.append(((found - wanted).square().sum(-1) / wanted.square().sum(-1)).mean())
    last_block = [one for name, one in facts(out).items() if "layers.1." in name]
    for one in last_block:
        assert one["block_error"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-3)


def test_gradients_that_lie_otherwise_than_weights_move_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused Adam goes through memory, and plain Adam through indices."""

    def by_bmm(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return torch.bmm(hidden, self.down_proj.weight.mT.expand(len(x), -1, -1))

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", by_bmm)
    tiny_models.build("llama", tmp_path / "dense")
    adam = torch.optim.Adam
    for fused in (True, False):

        def chosen(parameters: Any, *, is_fused: bool = fused, **options: Any) -> Any:
            return adam(parameters, **options | {"fused": is_fused})

        monkeypatch.setattr(torch.optim, "Adam", chosen)
        prune(tmp_path / "dense", tmp_path / str(fused), settings("wanda", sparsity=0.5))
    one, other = (reference.stored(tmp_path / str(fused)) for fused in (True, False))
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=1e-3, atol=1e-5)


def test_dense_rows_of_a_budget_keep_their_bits(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path / "dense")
    out = tmp_path / "out"
    wanted = settings("sparsegpt", pattern="2:4", sparsity=0.3, budget="rows")
    prune(tmp_path / "dense", out, wanted)
    assert any(one["steps"] for one in facts(out).values())
    assert verify(out).ok


def test_what_is_left_out_of_a_fused_weight_keeps_its_bits(tmp_path: Path) -> None:
    """transformers fuses the matrices of all experts, of which some are not pruned."""
    tiny_models.build("mixtral", tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("wanda", sparsity=0.5, exclude=("*.w3.weight",)))
    dense, found = reference.stored(tmp_path / "dense"), reference.stored(out)
    changed = {name for name, values in found.items() if not torch.equal(values, dense[name])}
    assert changed == set(facts(out))
    assert not any(".w3." in name for name in changed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_zeros_are_exact_in_a_forward_of_another_dtype(tmp_path: Path, dtype: str) -> None:
    """fp16 has no numbers as small as some weights; the mask is that of the stored values."""
    model: Any = tiny_models.build("llama", tmp_path / "dense")
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data[0] = 1e-9
    model.save_pretrained(tmp_path / "dense")
    out = tmp_path / "out"
    samples = replace(RANDOM, dtype=dtype)
    prune(tmp_path / "dense", out, settings("wanda", sparsity=0.25, calibration=samples))
    for name in facts(out):
        values = reference.stored(out)[name]
        assert int((values == 0).sum()) == round(0.25 * values.numel())
    assert verify(out).ok


def test_one_sample_leaves_none_to_hold_out(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path / "dense")
    one = Calibration(("random",), samples=1, sequence_length=10)
    with pytest.raises(CalibrationFailed, match="one sample is not enough"):
        prune(
            tmp_path / "dense", tmp_path / "out", settings("wanda", sparsity=0.5, calibration=one)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_first_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model: Any = tiny_models.build("llama", tmp_path / "dense")
    model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = torch.inf
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(UnsupportedCheckpoint, match="holds Inf") as error:
        prune(tmp_path / "dense", tmp_path / "out", settings("magnitude", sparsity=0.5))
    assert "without --refine and --reconstruct" in error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_it_needs_samples(typed: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="reconstruct needs calibration samples"):
        PruneSettings(sparsity=0.5, reconstruct=True)
    tiny_models.build("llama", tmp_path / "dense")
    code, _, error = typed(
        "prune", str(tmp_path / "dense"), "--sparsity", "0.5", "--reconstruct", "-o",
        str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 2
    assert "--calibration" in error


@pytest.mark.parametrize(("damping", "used"), [(None, 0.2), (0.05, 0.05)])
def test_few_tokens_are_damped_more_before_a_fit(
    tmp_path: Path, damping: float | None, used: float
) -> None:
    tiny_models.build("llama", tmp_path / "source")
    chosen = settings("sparsegpt", sparsity=0.5, calibration=replace(RANDOM, damping=damping))
    prune(tmp_path / "source", tmp_path / "out", chosen)
    found = [one["damping"] for one in facts(tmp_path / "out").values()]
    assert set(found) == {used}
