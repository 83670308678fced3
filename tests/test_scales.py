"""Rows and columns scaled to the dense model's logits: gradients, zeros, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny_models
import torch
from full import few
from test_calibrated_resume import cut_off
from test_reconstruction import RANDOM, facts, settings
from transformers import AutoModel

from prunectl import prune, verify
from prunectl.calibration import forward, memory, reconstruction, scales
from prunectl.calibration.samples import gather_samples
from prunectl.calibration.scales import ScaleFit, TensorScales
from prunectl.checkpoint.opening import open_checkpoint


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "STEPS", 2)
    monkeypatch.setattr(forward, "multiplies_bf16_on", lambda device: False)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large steps, which lower the divergence of a model of random weights."""
    monkeypatch.setattr(scales, "RATE", 0.03)


def scaled(weight: torch.Tensor, axis: int, rows: torch.Tensor, columns: torch.Tensor) -> Any:
    """The weight with the exponentials of ``rows`` and ``columns``, plainly."""
    other = 1 - axis
    shapes = [[1, 1], [1, 1]]
    shapes[0][other], shapes[1][axis] = -1, -1
    return weight * rows.exp().reshape(shapes[0]) * columns.exp().reshape(shapes[1])


@pytest.mark.parametrize("name", few(["llama", "gpt2", "t5", "opt", "gemma2"], "llama", "t5"))
def test_gradients_are_those_of_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One batch, against autograd through the models as transformers loads them."""
    model: Any = tiny_models.build(name, tmp_path / "dense")
    seen: dict[str, TensorScales] = {}

    def only_gradients(self: ScaleFit, run: Any) -> None:
        seen.update(self._tensors)
        self._set_gradients(3, run.ranks)

    monkeypatch.setattr(ScaleFit, "run", only_gradients)
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("wanda", sparsity=0.5))
    small: Any = type(model).from_pretrained(out, dtype=torch.float32).eval()
    samples = gather_samples(open_checkpoint(tmp_path / "dense"), RANDOM, lambda event: None).inputs
    logs = {
        tensor: (torch.zeros_like(one.rows[0]), torch.zeros_like(one.columns[0]))
        for tensor, one in seen.items()
    }
    for log in (log for pair in logs.values() for log in pair):
        log.requires_grad_(True)
    weights = dict(small.named_parameters())
    axes = {k: 1 if one.axis is None else one.axis for k, one in seen.items()}
    new = {k: scaled(weights[k].detach(), axes[k], *logs[k]) for k in seen}
    own = torch.func.functional_call(small, new, (), dict(samples[3])).logits.log_softmax(-1)
    dense = model.float()(**samples[3]).logits.log_softmax(-1).detach()
    (dense.exp() * (dense - own)).sum().backward()
    assert seen
    for tensor, (rows, columns) in logs.items():
        for found, expected in ((seen[tensor].rows[0], rows), (seen[tensor].columns[0], columns)):
            assert found.grad is not None
            assert expected.grad is not None
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("name", "target"),
    few(
        [
            ("llama", {"pattern": "2:4"}),
            ("mixtral", {"sparsity": 0.5}),
            ("gpt_oss", {"pattern": "2:4"}),
            ("albert", {"sparsity": 0.5}),
        ],
        ("mixtral", {"sparsity": 0.5}),
    ),
)
def test_the_divergence_falls_and_zeros_stay(
    tmp_path: Path, name: str, target: dict[str, Any]
) -> None:
    tiny_models.build(name, tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("wanda", **target))
    found = facts(out)
    for one in found.values():
        assert one["scale_steps"] >= scales.STEPS
        assert one["divergence"] < one["divergence_before"]
    assert verify(out).ok


@pytest.mark.usefixtures("fast")
def test_the_divergence_is_that_of_a_plain_run(tmp_path: Path) -> None:
    model: Any = tiny_models.build("llama", tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("sparsegpt", sparsity=0.5))
    small: Any = type(model).from_pretrained(out, dtype=torch.float32).eval()
    samples = gather_samples(open_checkpoint(tmp_path / "dense"), RANDOM, lambda event: None).inputs
    with torch.no_grad():
        dense, own = (one.float()(**samples[15]).logits.log_softmax(-1) for one in (model, small))
    plain = float((dense.exp() * (dense - own)).sum(-1).mean())
    for one in facts(out).values():
        assert one["divergence"] == pytest.approx(plain, rel=1e-2)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("blocks", few([1, 2, 3], 3))
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(tmp_path: Path, blocks: int) -> None:
    """After the first block; when all are pruned; when one has been scaled."""
    tiny_models.build("llama", tmp_path / "dense")
    wanted = settings("sparsegpt", pattern="2:4")
    prune(tmp_path / "dense", tmp_path / "whole", wanted)
    cut_off(tmp_path / "dense", tmp_path / "out", wanted, blocks)
    prune(tmp_path / "dense", tmp_path / "out", wanted)
    whole, found = (reference.stored(tmp_path / one) for one in ("whole", "out"))
    reference.assert_same(found, whole)
    assert facts(tmp_path / "whole") == facts(tmp_path / "out")


@pytest.mark.usefixtures("fast")
def test_blocks_that_are_loaded_for_each_step_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.build("t5", tmp_path / "dense")
    wanted = settings("wanda", pattern="2:4")
    prune(tmp_path / "dense", tmp_path / "kept", wanted)
    plain, kept = memory.MemoryForecast, []

    def loaded(**numbers: Any) -> memory.MemoryForecast:
        kept.append(numbers["keeps_blocks"])
        return plain(**numbers | {"keeps_blocks": False})

    monkeypatch.setattr(memory, "MemoryForecast", loaded)
    prune(tmp_path / "dense", tmp_path / "loaded", wanted)
    assert kept == [True]
    reference.assert_same(*(reference.stored(tmp_path / one) for one in ("loaded", "kept")))


def test_scales_leave_rows_that_may_not_change(tmp_path: Path) -> None:
    """Bit for bit, in every dtype; zeros stay zeros, and no weight becomes one."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = torch.randn(2, 6, 4).to(dtype)
        values[0, 1, 2], values[1, 3, 3] = 0, 1e-7
        one = TensorScales.of(values.shape, 2, [(0, 3), (8, 12)])
        for log in one.logs:
            log.normal_(std=0.5)
        new = one.applied(values)
        same = [row for row in range(12) if 3 <= row < 8]
        assert torch.equal(new.reshape(12, 4)[same], values.reshape(12, 4)[same])
        assert not torch.equal(new, values)
        assert torch.equal(new == 0, values == 0)


@pytest.mark.parametrize("include", [(), ("bert.embeddings.word_embeddings.weight",)])
def test_a_model_without_logits_or_with_pruned_embeddings_is_not_scaled(
    tmp_path: Path, include: tuple[str, ...]
) -> None:
    tiny_models.build("bert", tmp_path / "dense")
    if not include:
        AutoModel.from_pretrained(tmp_path / "dense").save_pretrained(tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("wanda", sparsity=0.5, include=include))
    assert not any(one["scale_steps"] for one in facts(out).values())
    assert any(one["steps"] for one in facts(out).values())
    assert verify(out).ok


def test_logits_that_are_not_finite_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a vocabulary whose unused part is masked."""
    plain = ScaleFit._divergence

    def divergence(self: ScaleFit, index: int, last: Any) -> tuple[torch.Tensor, int]:
        found, tokens = plain(self, index, last)
        return found * float("nan"), tokens

    monkeypatch.setattr(ScaleFit, "_divergence", divergence)
    tiny_models.build("llama", tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("wanda", sparsity=0.5))
    assert all(one["divergence"] is None for one in facts(out).values())
    assert verify(out).ok


def test_a_matrix_that_no_sample_is_seen_to_reach_is_not_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product by einsum is not recognised, but has gradients."""
    from transformers.models.llama import modeling_llama

    def by_einsum(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return torch.einsum("...i,oi->...o", hidden, self.down_proj.weight)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", by_einsum)
    tiny_models.build("llama", tmp_path / "dense")
    out = tmp_path / "out"
    prune(tmp_path / "dense", out, settings("wanda", sparsity=0.5))
    found = facts(out)
    assert {one["survivors"] for k, one in found.items() if "down_proj" in k} == {"kept"}
    assert {one["survivors"] for k, one in found.items() if "down_proj" not in k} == {"updated"}
    assert verify(out).ok


@pytest.mark.usefixtures("fast")
def test_experts_that_no_token_reaches_are_not_scaled_and_the_others_are(tmp_path: Path) -> None:
    model: Any = tiny_models.build("gpt_oss", tmp_path / "dense")
    for layer in model.model.layers:
        layer.mlp.router.bias.data[0] = -1e4
    model.save_pretrained(tmp_path / "dense")
    dense, out = reference.stored(tmp_path / "dense"), tmp_path / "out"
    prune(tmp_path / "dense", out, settings("wanda", sparsity=0.5))
    found, stored = facts(out), reference.stored(out)
    stacks = [name for name in found if "experts" in name]
    assert stacks
    for name in stacks:
        assert found[name]["by_magnitude"] == 1
        assert found[name]["divergence"] < found[name]["divergence_before"]
        kept = stored[name] != 0
        same = (stored[name] == dense[name]) | ~kept
        assert same[0].all()
        assert not any(bool(one.all()) for one in same[1:])


def test_a_config_that_asks_for_router_logits_and_tuples_does_not_hinder(tmp_path: Path) -> None:
    tiny_models.build("mixtral", tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    config |= {"output_router_logits": True, "return_dict": False}
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    prune(tmp_path / "dense", tmp_path / "out", settings("wanda", sparsity=0.5))
    assert all(one["scale_steps"] for one in facts(tmp_path / "out").values())


def test_a_weight_that_the_dtype_cannot_hold_stays() -> None:
    values = torch.tensor([[60000.0, 1.0]], dtype=torch.float16)
    one = TensorScales.of(values.shape, 1, [(0, 1)])
    one.rows[0].fill_(0.5)
    assert one.applied(values).tolist() == [[60000.0, torch.tensor(0.5).exp().half().item()]]
