"""``prune`` with calibration: against plain runs of transformers' own model, and bad input."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import reference
import tiny_models
import torch
import transformers
from forked import dying_after, forked
from full import few
from methods_reference import aimed, errors, keep, optimal, second_moments, sparsegpt_reference
from PIL import Image
from reference import Tensors
from safetensors.torch import load_file, save_file

from prunectl import NM, PruneResult, PruneSettings, Rule, demo, open_checkpoint, prune, verify
from prunectl.calibration.samples import gather_samples
from prunectl.calibration.store import CalibratedStore
from prunectl.errors import (
    BadCheckpoint,
    CalibrationFailed,
    CannotWrite,
    NaNWeights,
    NoSpace,
    UnknownArchitecture,
    UnsupportedCheckpoint,
)
from prunectl.events import Event, Note
from prunectl.exporting.masks import export_masks
from prunectl.exporting.verb import export
from prunectl.loading.weights import load_state_dict
from prunectl.methods.goal import MatrixGoal, PerRow, PerTensor
from prunectl.output import target
from prunectl.output.manifest import read_manifest
from prunectl.plan.settings import Calibration

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "manifest.schema.json").read_text())
RANDOM = Calibration("random", samples=4, sequence_length=12)  # type: ignore[arg-type]
UP = "model.layers.0.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"
METHODS = ("wanda", "sparsegpt", "admm")
Tiny = Callable[[str], Path]
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def settings(method: str, sparsity: float | None = 0.5, **options: Any) -> PruneSettings:
    options.setdefault("calibration", RANDOM)
    return PruneSettings(method=method, sparsity=sparsity, **options)  # type: ignore[arg-type]


def changed(folder: Path, source: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def pruned(result: PruneResult) -> list[str]:
    return [tensor.name for tensor in result.tensors if tensor.action != "copy"]


def facts(result: PruneResult) -> dict[str, Any]:
    return {one.name: one.calibrated for one in result.tensors if one.calibrated is not None}


def assert_sound(output: Path) -> None:
    report = verify(output)
    assert report.ok, report.differences
    jsonschema.validate(json.loads((output / "prunectl.json").read_text()), SCHEMA)
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


def load(output: Path, source: Path) -> Any:
    """The output in the class of its source, with nothing missing."""
    name = json.loads((source / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


# --- a plain run: hooks on the whole model, block after block -------------------------------------
def inputs_of(model: torch.nn.Module, names: Sequence[str], samples: Sequence[Any]) -> Tensors:
    """The inputs [tokens, in] of the linear layers of these weights."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name in names:

        def keep_it(module: Any, args: Any, name: str = name) -> None:
            seen.setdefault(name, []).append(args[0].detach().flatten(0, -2))

        layer = model.get_submodule(name.removesuffix(".weight"))
        handles.append(layer.register_forward_pre_hook(keep_it))
    with torch.no_grad():
        for sample in samples:
            model(**sample)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def plain_run(
    source: Path,
    prune_one: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor],
    calibration: Calibration = RANDOM,
    *,
    aims: bool = False,
) -> Tensors:
    """A Llama pruned block after block, each behind those before it; ``prune_one(name, w, x)``.

    With ``aims``, a matrix is behind those before it in its block as well, and w is half of the way
    to the weight whose outputs are the dense model's.
    """
    model: Any = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    dense: Any = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    samples = gather_samples(open_checkpoint(source), calibration, lambda event: None).inputs
    found: Tensors = {}
    for index in range(len(model.model.layers)):
        names = [n for n, p in model.named_parameters() if f"layers.{index}." in n and p.ndim == 2]
        seen, beside = (inputs_of(one, names, samples) for one in (model, dense))
        for name in names:
            weight = model.get_parameter(name).detach().clone()
            if aims:
                seen = inputs_of(model, names, samples)
                weight = aimed(weight, seen[name], beside[name], calibration.damping or 0.01)
            found[name] = prune_one(name, weight, seen[name])
            if aims:
                model.get_parameter(name).data.copy_(found[name])
        for name in names:
            model.get_parameter(name).data.copy_(found[name])
    return found


def goal_of(weight: torch.Tensor, sparsity: float | None, scope: str, pattern: str) -> MatrixGoal:
    if pattern:
        return NM(*map(int, pattern.split(":")))
    assert sparsity is not None
    if scope == "row":
        return PerRow(reference.count(sparsity, weight.shape[1]))
    return PerTensor(reference.count(sparsity, weight.numel()))


@pytest.mark.parametrize(
    ("sparsity", "scope", "pattern"),
    few(
        [(0.5, "row", ""), (0.3, "tensor", ""), (None, "", "2:4"), (None, "", "4:8")],
        (0.5, "row", ""), (None, "", "2:4"),
    ),
)  # fmt: skip
def test_wanda_is_a_plain_run_bit_for_bit(
    tiny: Tiny, out: Path, sparsity: float | None, scope: str, pattern: str
) -> None:
    def wanda(name: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        scores = weight.abs().double() * x.double().square().sum(0).sqrt()
        mask = keep(scores.numpy(), goal_of(weight, sparsity, scope, pattern))
        return reference.zeroed(weight, ~torch.from_numpy(mask))

    options = {"pattern": pattern} if pattern else {"scope": scope}
    source = tiny("llama")
    prune(source, out, settings("wanda", sparsity, **options))
    expected = reference.stored(source) | plain_run(source, wanda)
    reference.assert_same(reference.stored(out), expected)
    assert_sound(out)


@pytest.mark.parametrize(
    ("sparsity", "pattern", "damping"), [(0.5, "", None), (0.5, "", 0.3), (None, "2:4", None)]
)
def test_sparsegpt_is_a_plain_run(
    tiny: Tiny, out: Path, sparsity: float | None, pattern: str, damping: float | None
) -> None:
    losses: dict[str, float] = {}
    calibration = replace(RANDOM, damping=damping)

    def sparsegpt(name: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        hessian = second_moments(x)
        goal = goal_of(weight, sparsity, "tensor", pattern)
        new, _ = sparsegpt_reference(weight, hessian, goal, 128, damping or 0.01)
        after = torch.from_numpy(new).float()
        still = errors(weight, torch.zeros_like(weight), hessian).sum()
        losses[name] = float(errors(weight, after, hessian).sum() / still)
        return after

    options: dict[str, Any] = {"pattern": pattern} if pattern else {}
    chosen = settings("sparsegpt", sparsity, calibration=calibration, **options)
    result = prune(tiny("llama"), out, chosen)
    expected = plain_run(tiny("llama"), sparsegpt, calibration, aims=True)
    found = reference.stored(out)
    assert set(pruned(result)) == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name] == 0, tensor == 0), name
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
        assert facts(result)[name]["error"] == pytest.approx(losses[name], rel=1e-3)
    assert_sound(out)


def test_refine_finds_the_best_weights_for_the_mask_of_magnitudes(tiny: Tiny, out: Path) -> None:
    source = tiny("llama")
    dense = reference.stored(source)
    names = [name for name in dense if "_proj" in name]
    masks = reference.together(dense, names, 0.5)

    result = prune(source, out, settings("magnitude", refine=True))
    found = reference.stored(out)
    compared: list[str] = []

    def compare(name: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        assert torch.equal(found[name] == 0, masks[name] == 0), name  # the mask is magnitude's own
        hessian = second_moments(x)
        damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
        best = errors(weight, optimal(weight, masks[name] != 0, hessian, 0.01), damped)
        reached = errors(weight, found[name], damped)
        assert reached.sum() <= best.sum() * 1.003, name
        still = errors(weight, torch.zeros_like(weight), hessian).sum()
        assert facts(result)[name]["damping"] == 0.01
        for key, tensor in (("error", found[name]), ("error_before_refine", masks[name])):
            error = float(errors(weight, tensor, hessian).sum() / still)
            assert facts(result)[name][key] == pytest.approx(error, rel=1e-3)
        compared.append(name)
        return found[name]

    plain_run(source, compare, aims=True)
    assert set(compared) == set(names)
    assert_sound(out)


# --- counts ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", few(["global", "tensor", "row"]))
def test_zeros_are_exactly_as_many_as_asked_for(
    tiny: Tiny, out: Path, method: str, scope: str
) -> None:
    source = tiny("llama")
    result = prune(source, out, settings(method, 0.37, scope=scope))
    names, before, found = pruned(result), reference.stored(source), reference.stored(out)
    total = sum(found[name].numel() for name in names)
    if scope == "global":
        assert reference.zeros(found[name] for name in names) == reference.count(0.37, total)
        assert len({int((found[n] == 0).sum()) / found[n].numel() for n in names}) > len(names) / 2
    for name in names:
        zero = found[name] == 0
        if scope == "tensor":
            assert int(zero.sum()) == reference.count(0.37, zero.numel())
        if scope == "row":
            assert set(zero.sum(1).tolist()) == {reference.count(0.37, zero.shape[1])}
        same = found[name].view(torch.int32) == before[name].view(torch.int32)
        assert facts(result)[name]["survivors"] == ("kept" if method == "wanda" else "updated")
        assert bool((same | zero).all()) == (method == "wanda")
    untouched = before.keys() - set(names)
    assert all(reference.raw(found[name]) == reference.raw(before[name]) for name in untouched)
    assert_sound(out)


def test_the_global_threshold_is_on_shares_of_the_outputs(tiny: Tiny, out: Path) -> None:
    """Each tensor's count, from inputs of the dense model; scores are compared in steps of 0.4%."""
    source = tiny("llama")
    result = prune(source, out, settings("wanda", 0.4, scope="global"))
    model: Any = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    samples = gather_samples(open_checkpoint(source), RANDOM, lambda event: None).inputs
    shares = {}
    for name, x in inputs_of(model, pruned(result), samples).items():
        energy = model.get_parameter(name).detach().double() ** 2 * x.double().square().mean(0)
        shares[name] = energy / energy.sum()
    every = torch.cat([share.flatten() for share in shares.values()])
    cut = every.kthvalue(reference.count(0.4, len(every))).values
    for one in result.tensors:
        if one.name in shares:
            share = shares[one.name]
            assert (share <= cut * 0.99).sum() <= one.zeros <= (share <= cut * 1.01).sum()


def test_zeros_that_were_there_count(tiny: Tiny, tmp_path: Path) -> None:
    def half(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensor.flatten()[::2] = -0.0

    source = changed(tmp_path / "half", tiny("llama"), half)
    for method, scope in (("wanda", "row"), ("wanda", "global"), ("sparsegpt", "tensor")):
        result = prune(source, tmp_path / f"{method}-{scope}", settings(method, 0.6, scope=scope))
        for one in result.tensors:
            if one.calibrated is not None:
                assert one.zeros_before == one.numel // 2
                if scope == "tensor":
                    assert one.zeros == reference.count(0.6, one.numel)
        assert result.prunable_zeros == pytest.approx(0.6 * result.prunable_weights, rel=0.02)
        assert_sound(tmp_path / f"{method}-{scope}")


def test_rules_of_a_recipe(tiny: Tiny, out: Path) -> None:
    rules = (
        Rule(("*q_proj*",), skip=True),
        Rule(("*down_proj*",), pattern=NM(2, 4)),
        Rule(("*up_proj*",), sparsity=0.25),
    )
    result = prune(tiny("llama"), out, settings("sparsegpt", 0.5, rules=rules))
    found = reference.stored(out)
    for one in result.tensors:
        zero = found[one.name] == 0
        if "q_proj" in one.name or one.calibrated is None:
            assert one.action == "copy"
        elif "down_proj" in one.name:
            assert set(zero.reshape(-1, 4).sum(1).tolist()) == {2}
        else:
            share = 0.25 if "up_proj" in one.name else 0.5
            assert one.zeros == reference.count(share, one.numel)
    assert_sound(out)


def test_an_nm_budget_goes_where_outputs_change_least(tiny: Tiny, out: Path) -> None:
    """Each matrix' error with all others dense inside its block, and the blocks before pruned."""
    lost: dict[str, float] = {}

    def sparsegpt(name: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        hessian = second_moments(x)
        new, _ = sparsegpt_reference(weight, hessian, NM(2, 4), 128, 0.01)
        still = errors(weight, torch.zeros_like(weight), hessian).sum()
        lost[name] = float(errors(weight, torch.from_numpy(new), hessian).sum() / still)
        return weight

    plain_run(tiny("llama"), sparsegpt)
    result = prune(tiny("llama"), out, settings("sparsegpt", 0.3, pattern="2:4"))
    sizes = {one.name: one.numel for one in result.tensors}
    wanted = reference.count(0.3, sum(sizes[name] for name in lost))
    ranked = sorted(lost, key=lambda name: lost[name])
    reached = np.cumsum([0, *(sizes[name] // 2 for name in ranked)])
    taken = int(np.abs(reached - wanted).argmin())
    assert set(facts(result)) == set(ranked[:taken])
    assert result.prunable_zeros == reached[taken]
    dense = {one.name: one.reason for one in result.tensors if one.name in ranked[taken:]}
    assert all("outputs change less" in reason for reason in dense.values())
    assert_sound(out)


def test_zeros_that_were_there_count_for_a_budget_as_they_are(tiny: Tiny, tmp_path: Path) -> None:
    """Whole groups of zeros are within the pattern: a matrix gains less than its zeros suggest."""
    tensors = reference.stored(tiny("llama"))
    names = [name for name in tensors if name.endswith("proj.weight")]
    for name in names:
        tensors[name][:, tensors[name].shape[1] // 2 :] = 0
    source = shutil.copytree(tiny("llama"), tmp_path / "source")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    choice = settings("wanda", 0.6, pattern="1:4")
    result = prune(source, tmp_path / "out", choice)
    numel = {name: tensors[name].numel() for name in names}
    wanted = reference.count(0.6, sum(numel.values()))
    assert result.prunable_weights == sum(numel.values())
    assert set(facts(result)) < set(names)
    # Of the half that is not zero, 3 of 4 go: each matrix that is taken gains 3/8.
    gains = {name: size * 3 // 8 for name, size in numel.items()}
    zeros = sum(size // 2 for size in numel.values()) + sum(gains[name] for name in facts(result))
    assert result.prunable_zeros == zeros
    assert abs(zeros - wanted) <= max(gains.values()) / 2
    assert_sound(tmp_path / "out")


@pytest.mark.full
def test_refine_never_raises_the_recorded_error(tiny: Tiny, tmp_path: Path) -> None:
    source, half = tiny("llama"), tmp_path / "half"
    prune(source, half, PruneSettings(sparsity=0.5))
    export_masks(half, tmp_path / "masks.safetensors")
    by_mask = {"mask": tmp_path / "masks.safetensors"}
    for number, choice in enumerate((
        settings("magnitude", refine=True),
        settings("magnitude", None, refine=True, **by_mask),
        settings("wanda", refine=True, pattern="2:4"),
        settings("sparsegpt", refine=True),
        settings("admm", refine=True, scope="row"),
    )):  # fmt: skip
        output = tmp_path / f"out-{number}"
        told = facts(prune(source, output, choice))
        assert told
        for name, one in told.items():
            assert one["error"] <= one["error_before_refine"] * (1 + 1e-6), name
        if number < 2:
            found, first = reference.stored(output), reference.stored(half)
            assert all(torch.equal(found[name] == 0, first[name] == 0) for name in told)
        assert_sound(output)


# --- models ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "method"),
    few(
        [
            ("mixtral", "sparsegpt"), ("gpt_oss", "admm"), ("gpt_oss", "wanda"),
            ("t5", "sparsegpt"), ("vit", "sparsegpt"), ("albert", "admm"), ("gpt2", "wanda"),
            ("bert_base", "sparsegpt"), ("llama_untied", "admm"),
        ],
        ("mixtral", "sparsegpt"), ("gpt_oss", "admm"), ("t5", "sparsegpt"), ("gpt2", "wanda"),
    ),
)  # fmt: skip
def test_models_load_again_with_half_of_each_matrix(
    tiny: Tiny, out: Path, name: str, method: str
) -> None:
    source = tiny(name)
    result = prune(source, out, settings(method, scope="tensor"))
    live = load(out, source)
    parameters = dict(live.named_parameters())
    assert len(facts(result)) == len(pruned(result)) >= 4
    for one in result.tensors:
        if one.calibrated is not None:
            assert one.zeros == reference.count(0.5, one.numel)
            if (parameter := parameters.get(one.name)) is not None:
                assert int((parameter == 0).sum()) == one.zeros
    assert_sound(out)
    if live.can_generate() and name != "t5":  # transformers wants it to have as many decoders
        ids = torch.tensor([[3, 4, 5]])
        assert live.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > 1


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16]))
@pytest.mark.parametrize("form", few(["safetensors", "pickle"], "pickle"))
def test_other_types_and_pickles(tmp_path: Path, out: Path, dtype: torch.dtype, form: str) -> None:
    source = tmp_path / "source"
    tiny_models.build("llama", source, dtype)
    before = reference.stored(source)
    if form == "pickle":
        torch.save(before, source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    result = prune(source, out, settings("sparsegpt", pattern="2:4", sparsity=None))
    found = reference.stored(out)
    for name in pruned(result):
        assert found[name].dtype == dtype
        assert set((found[name] == 0).reshape(-1, 4).sum(1).tolist()) == {2}, name
    assert_sound(out)


def test_images_from_a_folder(tiny: Tiny, tmp_path: Path, out: Path) -> None:
    source = Path(shutil.copytree(tiny("vit"), tmp_path / "vit"))
    size = {"height": 16, "width": 16}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size}
    (source / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    calibration = Calibration((f"images:{tmp_path / 'images'}",), samples=3)
    result = prune(source, out, settings("sparsegpt", calibration=calibration))
    assert {one["tokens"] for one in facts(result).values()} == {3 * 5}  # 4 patches and a class
    assert read_manifest(out).arguments["calibration"]["kind"] == "images"
    assert_sound(out)


def test_a_tied_model_stays_tied_and_a_tensor_in_no_block_goes_by_magnitude(
    tiny: Tiny, out: Path
) -> None:
    events: list[Event] = []
    choice = settings("sparsegpt", include=(EMBED,))
    result = prune(tiny("llama"), out, choice, on_event=events.append)
    before, found = reference.stored(tiny("llama")), reference.stored(out)
    reference.assert_same({EMBED: found[EMBED]}, {EMBED: reference.alone(before[EMBED], 0.5)})
    assert facts(result)[EMBED]["by_magnitude"] == 1
    assert any(isinstance(e, Note) and e.warning and EMBED in e.text for e in events)
    assert "lm_head.weight" not in found
    live = load(out, tiny("llama"))
    assert live.lm_head.weight.data_ptr() == live.model.embed_tokens.weight.data_ptr()
    assert_sound(out)


def test_vectors_and_convolutions_that_are_included_go_by_magnitude(
    tiny: Tiny, tmp_path: Path
) -> None:
    for model, names in (
        ("llama", ("model.norm.weight", "model.layers.0.input_layernorm.weight")),
        ("vit", ("vit.embeddings.patch_embeddings.projection.weight",)),
    ):
        result = prune(tiny(model), tmp_path / model, settings("wanda", include=names))
        before, found = reference.stored(tiny(model)), reference.stored(tmp_path / model)
        for name in names:
            assert facts(result)[name]["by_magnitude"] >= 1
            lines = before[name].flatten(1) if before[name].ndim > 1 else before[name]
            expected = reference.rows(lines, 0.5).reshape(before[name].shape)
            reference.assert_same({name: found[name]}, {name: expected})
        assert_sound(tmp_path / model)


def test_a_vision_tower_that_text_does_not_reach_is_named(tiny: Tiny, out: Path) -> None:
    events: list[Event] = []
    result = prune(tiny("qwen3_vl_moe"), out, settings("wanda"), on_event=events.append)
    blind = {name for name, one in facts(result).items() if one["by_magnitude"]}
    assert blind == {name for name in facts(result) if "visual" in name} != set()
    warned = " ".join(e.text for e in events if isinstance(e, Note) and e.warning)
    assert "model.visual.blocks.0" in warned
    assert "and 5 more" in warned
    assert_sound(out)


@pytest.mark.parametrize("name", few(["mixtral", "gpt_oss"]))
def test_experts_without_tokens_are_named(tiny: Tiny, out: Path, name: str) -> None:
    """Two tokens reach some of the experts; the others go by magnitude, each as half of itself."""
    few = Calibration("random", samples=1, sequence_length=2)  # type: ignore[arg-type]
    events: list[Event] = []
    choice = settings("sparsegpt", scope="tensor", calibration=few)
    result = prune(tiny(name), out, choice, on_event=events.append)
    blind = {tensor for tensor, one in facts(result).items() if one["by_magnitude"]}
    assert blind
    assert all(".experts." in tensor for tensor in blind)
    warned = " ".join(e.text for e in events if isinstance(e, Note) and e.warning)
    named = [tensor for tensor in blind if tensor in warned]
    assert len(named) == min(len(blind), 3)  # and how many more there are
    assert (f"and {len(blind) - 3} more" in warned) == (len(blind) > 3)
    before, found = reference.stored(tiny(name)), reference.stored(out)
    for tensor in blind:
        assert facts(result)[tensor]["tokens"] == 0
        if before[tensor].ndim == 2:
            expected = reference.alone(before[tensor], 0.5)
            reference.assert_same({tensor: found[tensor]}, {tensor: expected})
    assert_sound(out)


def test_the_demo_needs_no_source(typed: Typed, tmp_path: Path) -> None:
    code, _, err = typed(
        "prune", "demo", "-p", "2:4", "--method", "sparsegpt", "--samples", "4",
        "--sequence-length", "32", "-o", "out",
    )  # fmt: skip
    assert code == 0, err
    told = read_manifest(tmp_path / "out").arguments["calibration"]
    assert (told["kind"], told["samples"], told["tokens"]) == ("demo", 4, 128)
    assert_sound(tmp_path / "out")


def test_the_card_names_no_folder_of_the_samples(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "my own").mkdir()
    text = shutil.copy(demo.calibration_text(), tmp_path / "my own" / "a.txt")
    for form in (("--calibration", f"text:{text}"), (f"--calibration=text:{text}",)):
        code, _, err = typed(
            "prune", "demo", "-s", "0.5", "--method", "wanda", *form, "--samples", "2",
            "--sequence-length", "16", "-o", "out", "--force",
        )  # fmt: skip
        assert code == 0, err
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"{form[0].partition('=')[0]}{' ' if len(form) > 1 else '='}text:a.txt" in card
        assert "my own" not in card + (tmp_path / "out" / "prunectl.json").read_text()


# --- afterwards: verify, export -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "value", "check"), [("wanda", 0.25, "survivors"), ("sparsegpt", 0.0, "zeros")]
)
def test_verify_finds_a_weight_that_was_changed(
    tiny: Tiny, out: Path, method: str, value: float, check: str
) -> None:
    prune(tiny("llama"), out, settings(method))
    tensors = load_file(out / "model.safetensors")
    flat = tensors[UP].flatten()
    flat[int(flat.nonzero()[0])] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    found = {difference.kind for difference in verify(out).differences}
    assert {check, "hashes"} <= found


@pytest.mark.parametrize("layout", few(["nm", "packed", "bitmask"], "packed"))
def test_an_export_comes_back_bit_for_bit(tiny: Tiny, tmp_path: Path, layout: str) -> None:
    prune(tiny("llama"), tmp_path / "out", settings("sparsegpt", None, pattern="2:4"))
    export(tmp_path / "out", tmp_path / layout, layout=layout)
    assert verify(tmp_path / layout).ok
    reference.assert_same(load_state_dict(tmp_path / layout), reference.stored(tmp_path / "out"))
    export(tmp_path / layout, tmp_path / "back", layout="dense")
    reference.assert_same(reference.stored(tmp_path / "back"), reference.stored(tmp_path / "out"))


def test_two_runs_write_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    choice = settings("admm", refine=True)
    for name in ("a", "b"):
        prune(tiny("llama"), tmp_path / name, choice)
    assert reference.contents(tmp_path / "a") == reference.contents(tmp_path / "b")


# --- cut off, and gone on with --------------------------------------------------------------------
def test_a_killed_run_goes_on_behind_the_last_block(
    tiny: Tiny, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, choice = tiny("llama"), settings("sparsegpt")

    def work() -> None:
        torch.set_num_threads(1)  # others wait for threads that the copy does not have
        dying_after(CalibratedStore, "finish")
        prune(source, out, choice)

    assert forked(work) == -signal.SIGKILL
    assert not out.exists()
    left = Path(shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-left")))
    put: list[str] = []
    store = CalibratedStore.put

    def watched(self: CalibratedStore, name: str, *rest: Any) -> None:
        put.append(name)
        store(self, name, *rest)

    monkeypatch.setattr(CalibratedStore, "put", watched)
    prune(source, out, choice)
    assert put
    assert all(".layers.1." in name for name in put)  # the first block is not pruned again
    assert_sound(out)
    put.clear()
    prune(source, tmp_path / "whole", choice)
    assert {".layers.0." in name for name in put} == {True, False}
    assert reference.contents(out) == reference.contents(tmp_path / "whole")
    put.clear()
    events: list[Event] = []  # other arguments start anew, and say so
    prune(source, left / "out", settings("sparsegpt", 0.4), on_event=events.append)
    assert any(".layers.0." in name for name in put)
    assert any("discarding" in e.text for e in events if isinstance(e, Note))
    assert_sound(left / "out")


def test_ctrl_c_keeps_the_finished_blocks(
    tiny: Tiny, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = CalibratedStore.finish

    def stop(self: CalibratedStore, block: str) -> None:
        finish(self, block)
        signal.raise_signal(signal.SIGINT)

    line = ("prune", tiny("llama"), "-s", "0.5", "--method", "wanda", "--calibration", "random",
            "--samples", "2", "-o", "out")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(CalibratedStore, "finish", stop)
        code, _, err = typed(*line)
    assert code == 130
    assert "interrupted" in err.lower()
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    code, _, err = typed(*line)
    assert code == 0, err
    assert "continuing from 1 finished" in err
    assert_sound(tmp_path / "out")


# --- what cannot be done --------------------------------------------------------------------------
def put_odd(value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[UP][3, 5] = value

    return change


@pytest.mark.parametrize(
    "choice",
    [settings("wanda"), settings("admm", scope="global"), settings("sparsegpt", pattern="2:4",
     sparsity=0.3), settings("magnitude", refine=True)],
)  # fmt: skip
def test_nan_and_inf_are_named(
    tiny: Tiny, tmp_path: Path, out: Path, choice: PruneSettings
) -> None:
    for value, error in ((float("nan"), NaNWeights), (float("inf"), UnsupportedCheckpoint)):
        source = changed(tmp_path / f"odd-{value}", tiny("llama"), put_odd(value))
        with pytest.raises(error, match=r"layers\.0\.mlp\.up_proj"):
            prune(source, out, choice)
        assert {path.name for path in tmp_path.iterdir()} <= {"odd-nan", "odd-inf"}


def test_a_weight_of_a_block_that_is_missing_is_named(
    tiny: Tiny, tmp_path: Path, out: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    source = changed(tmp_path / "odd", tiny("llama"), lambda tensors: tensors.pop(name))
    with pytest.raises(BadCheckpoint, match=r"block model\.layers\.1 lacks mlp\.up_proj\.weight"):
        prune(source, out, settings("wanda"))
    assert not out.exists()


def test_a_model_that_text_alone_does_not_run(tiny: Tiny, out: Path) -> None:
    with pytest.raises(CalibrationFailed, match="forward fails") as failed:
        prune(tiny("clip"), out, settings("wanda"))
    assert "--method magnitude" in failed.value.hint
    assert not out.exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CALIBRATED = "--method wanda --calibration random --samples 2"


@pytest.mark.parametrize(
    ("line", "code", "error", "hint"),
    [
        ("-s 0.5 --method wanda", 2, "method wanda needs calibration samples", "--calibration"),
        ("-s 0.5 --refine", 2, "refine needs calibration samples", "--calibration"),
        ("-s 0.5 --calibration random", 2, "method magnitude has none", "--refine"),
        ("-s 0.5 --samples 4", 2, "--samples is for calibration", "--refine"),
        ("-s 0.5 --method wanda --calibration text:missing --dry-run", 2, "no such file", "path"),
        ("-s 0.5 --method wanda --calibration text:empty", 1, "needs the model's tokenizer", ""),
        ("-s 0.5 --method wanda --calibration images:.", 2, "which reads text", "text:FILE"),
        (f"-s 0.5 {CALIBRATED} --samples 0", 2, "--samples must be at least 1", ""),
        (f"-s 0.5 {CALIBRATED} --samples 1000000000", 2, "do not fit", "--samples"),
        (f"-s 0.5 {CALIBRATED} --sequence-length 1", 2, "must be at least 2", ""),
        (f"-s 0.5 {CALIBRATED} --damping 0.1", 2, "which method wanda does not use", "--refine"),
        (f"-s 0.5 {CALIBRATED} --refine --damping 0", 2, "--damping must be above 0", ""),
        (f"-s 0.5 {CALIBRATED} --refine --damping nan", 2, "--damping", ""),
        (f"-s 0.5 {CALIBRATED} --refine --damping inf", 2, "--damping", ""),
        (f"-s 0.5 {CALIBRATED} --refine --damping -1", 2, "--damping", ""),
        (f"-s 0.5 {CALIBRATED} --seed -1", 2, "--seed -1 is not valid", ""),
        (f"-s 0.5 {CALIBRATED} --device gpu7", 2, "'gpu7' is not known", "cuda:N"),
        (f"-s 0.5 {CALIBRATED} --dtype int8", 2, "dtype 'int8' is not known", "bfloat16"),
        (f"-s 0.5 {CALIBRATED} --dtype float8_e5m2", 2, "'float8_e5m2' is not known", "float16"),
        (f"-p 2:4 --scope row {CALIBRATED}", 0, "", ""),
        (f"-p 2:4 --scope global {CALIBRATED}", 2, "scope 'global' has no meaning", ""),
        (f"--mask masks {CALIBRATED}", 2, "--mask and --method are given together", ""),
        (f"-s 0.5 {CALIBRATED} -o full", 2, "full", "--force"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said(
    typed: Typed, tiny: Tiny, tmp_path: Path, line: str, code: int, error: str, hint: str
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    output = () if "-o " in line else ("-o", "out")
    found, shown, told = typed("prune", tiny("llama"), *line.split(), *output, "-q")
    assert (found, shown) == (code, ""), told
    lines = told.splitlines()
    assert len(lines) <= 2
    assert error in (lines[0] if lines else "")
    assert hint in (lines[-1] if lines else "")
    assert {path.name for path in tmp_path.iterdir()} - {"out"} == {"empty", "full"}


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_takes_no_more_is_said(tiny: Tiny, out: Path) -> None:
    with pytest.raises(CannotWrite, match="too large"):
        prune(tiny("llama"), out, settings("sparsegpt"))
    assert list(out.parent.iterdir()) == []


def test_space_for_the_new_weights_is_asked_for_before_a_block_is_pruned(
    tiny: Tiny, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the output, and not for what lies beside it until it is whole."""
    room = (tiny("llama") / "model.safetensors").stat().st_size + 10_000
    monkeypatch.setattr(target, "free_bytes", lambda path: room)
    prune(tiny("llama"), out.with_name("plain"), PruneSettings(sparsity=0.5))
    with pytest.raises(NoSpace):
        prune(tiny("llama"), out, settings("sparsegpt"))
    assert [path.name for path in out.parent.iterdir()] == ["plain"]


@pytest.mark.parametrize("vocabulary", [10**12, 10**10])
def test_a_config_that_asks_for_far_more_than_the_files_hold(
    tiny: Tiny, tmp_path: Path, out: Path, vocabulary: int
) -> None:
    source = Path(shutil.copytree(tiny("llama"), tmp_path / "huge"))
    config = json.loads((source / "config.json").read_text()) | {"vocab_size": vocabulary}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        prune(source, out, settings("wanda"))


def test_code_that_comes_with_a_model_is_not_run(tiny: Tiny, tmp_path: Path, out: Path) -> None:
    source = Path(shutil.copytree(tiny("llama"), tmp_path / "own"))
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config = {"model_type": "own", "architectures": ["Own"], "auto_map": auto}
    old = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(old | config))
    (source / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(UnknownArchitecture, match="trust_remote_code"):
        prune(source, out, settings("wanda"))
    assert not out.exists()


def test_what_an_interrupted_calibration_left_is_gone_after_another_run_succeeds(
    tmp_path: Path,
) -> None:
    left = target.calibrated_folder(tmp_path / "out")
    left.mkdir()
    (left / "block-00000.safetensors").write_bytes(b"half")
    target.calibrated_journal(tmp_path / "out").write_text("{}")
    prune("demo", tmp_path / "out", PruneSettings(sparsity=0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_that_are_zeros_of_either_sign_are_not_kept_by_refine(tmp_path: Path) -> None:
    zeros = {}
    for sign in (1, -1):
        folder = tmp_path / f"model{sign}"
        model = tiny_models.make("llama")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "_proj" in name:
                    weight[:, ::2] = sign * 0.0
        model.save_pretrained(folder)
        settings = PruneSettings(
            sparsity=0.25, scope="tensor", refine=True, calibration=Calibration("random", samples=4)
        )
        zeros[sign] = prune(folder, tmp_path / f"out{sign}", settings).prunable_zeros
    assert zeros[1] == zeros[-1]
