"""Calibrated pruning of odd models, from end to end: the counts, and what is said of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny_models
import torch
from full import few
from hypothesis import given
from hypothesis import strategies as st
from reference import Tensors
from safetensors.torch import load_file, save_file

from prunectl import PruneResult, PruneSettings, prune, verify
from prunectl.calibration.targets import allocate, count_scores
from prunectl.errors import NaNWeights, UnsupportedCheckpoint
from prunectl.events import Event, Note
from prunectl.plan.settings import Calibration

RANDOM = Calibration(("random",), samples=4, sequence_length=12)
FEW = Calibration(("random",), samples=1, sequence_length=2)
Tiny = Callable[[str], Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def settings(method: str, sparsity: float | None, **options: Any) -> PruneSettings:
    options.setdefault("calibration", RANDOM)
    return PruneSettings(method=method, sparsity=sparsity, **options)  # type: ignore[arg-type]


def told(events: Sequence[Event]) -> str:
    return "\n".join(e.text for e in events if isinstance(e, Note) and e.warning)


def facts(result: PruneResult) -> dict[str, dict[str, Any]]:
    return {one.name: one.calibrated for one in result.tensors if one.calibrated is not None}


def changed(folder: Path, name: str, change: Callable[[Tensors], object]) -> Path:
    """A tiny model with other weights."""
    tiny_models.build(name, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- inputs that never fire -----------------------------------------------------------------------
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm"])
@pytest.mark.parametrize("scope", few(["tensor", "row", "global"]))
def test_dead_inputs_change_no_count_and_are_told(
    tiny: Tiny, out: Path, method: str, scope: str
) -> None:
    """OPT's ReLU leaves many inputs of fc2 zero on a few samples."""
    events: list[Event] = []
    calibration = Calibration(("random",), samples=1, sequence_length=4)
    choice = settings(method, 0.2, scope=scope, calibration=calibration)
    result = prune(tiny("opt"), out, choice, on_event=events.append)
    dead = {name: one["dead_inputs"] for name, one in facts(result).items() if one["dead_inputs"]}
    assert dead
    assert all("fc2" in name for name in dead)
    found = reference.stored(out)
    for one in result.tensors:
        if one.calibrated is not None:
            zero = found[one.name] == 0
            if scope == "tensor":
                assert one.zeros == reference.count(0.2, one.numel)
            if scope == "row":
                assert set(zero.sum(1).tolist()) == {reference.count(0.2, zero.shape[1])}
    if scope != "row":
        assert result.prunable_zeros == pytest.approx(0.2 * result.prunable_weights, abs=len(dead))
        assert result.pools[0].note == ""
    else:
        assert "20.0% requested, 19.2% achieved: the number of zeros is rounded for each row" in (
            result.pools[0].note
        )
    if scope == "global":
        assert result.prunable_zeros == reference.count(0.2, result.prunable_weights)
    assert f"{sum(dead.values()):,} inputs of {next(iter(dead))}" in told(events)
    assert verify(out).ok


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm"])
def test_an_expert_that_is_given_zeros_only_is_not_wiped_out(
    tiny: Tiny, out: Path, method: str
) -> None:
    """Llama 4 multiplies its experts by zeros in the place of tokens that are not theirs."""
    events: list[Event] = []
    choice = settings(method, 0.5, scope="tensor", calibration=FEW)
    result = prune(tiny("llama4"), out, choice, on_event=events.append)
    blind = {name: one for name, one in facts(result).items() if one["by_magnitude"]}
    assert blind
    before, found = reference.stored(tiny("llama4")), reference.stored(out)
    for name in blind:
        assert ".experts." in name
        assert name in told(events)
        for old, new in zip(before[name], found[name], strict=True):
            assert int((new == 0).sum()) == new.numel() // 2
            if blind[name]["by_magnitude"] == len(before[name]):
                reference.assert_same({name: new}, {name: reference.alone(old, 0.5)})
    assert "No sample reaches" in told(events)
    assert verify(out).ok


def test_zeros_that_are_there_count_first_beside_dead_inputs(tmp_path: Path, out: Path) -> None:
    def half(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if "fc" in name and tensor.ndim == 2:
                tensor[: len(tensor) // 2] = 0.0  # more than its share in some rows and blocks

    source = changed(tmp_path / "half", "opt", half)
    before = reference.stored(source)
    for method, scope in itertools.product(("wanda", "sparsegpt", "admm"), ("tensor", "global")):
        folder = out / f"{method}-{scope}"
        few = Calibration(("random",), samples=1, sequence_length=4)
        result = prune(source, folder, settings(method, 0.3, scope=scope, calibration=few))
        found = reference.stored(folder)
        for one in result.tensors:
            if one.calibrated is None:
                continue
            assert not found[one.name][before[one.name] == 0].any()
            if scope == "tensor":
                expected = max(reference.count(0.3, one.numel), one.zeros_before)
                assert one.zeros == expected
        if scope == "global":
            expected = reference.count(0.3, result.prunable_weights)
            assert result.prunable_zeros == max(expected, result.prunable_zeros_before) == expected


@pytest.mark.parametrize("method", ["sparsegpt", "admm"])
def test_singular_moments_raise_the_damping_which_is_told(
    tiny: Tiny, out: Path, method: str
) -> None:
    """Four tokens do not tell 32 inputs apart, and next to no damping does not help."""
    events: list[Event] = []
    few = Calibration(("random",), samples=1, sequence_length=4, damping=1e-12)
    result = prune(
        tiny("llama"), out, settings(method, 0.5, calibration=few), on_event=events.append
    )
    raised = {name: one for name, one in facts(result).items() if one["raised"]}
    assert bool(raised) == (method == "sparsegpt")  # eigenvalues near zero do not stop ADMM
    for name, one in raised.items():
        assert one["damping"] == pytest.approx(1e-12 * 10 ** one["raised"])
        text = f"{name}: its second moments are singular; damping was raised to {one['damping']:g}."
        assert text in told(events)
    assert verify(out).ok


# --- stacks of experts ----------------------------------------------------------------------------
@given(
    numbers=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    share=st.floats(0, 1),
    levels=st.sampled_from([2, 3, 1000]),
    seed=st.integers(0, 2**20),
)
def test_the_lowest_scores_of_all_matrices_go(
    numbers: list[int], share: float, levels: int, seed: int
) -> None:
    """Against sorting them all: zeros, then what has no score, then by steps, in file order."""
    rng = np.random.default_rng(seed)
    matrices, keys = {}, []
    for index, number in enumerate(numbers):
        weight = torch.from_numpy(rng.integers(0, levels, (2, number)).astype(np.float32)) - 1.0
        inputs = torch.from_numpy(rng.integers(0, 2, number).astype(np.float32))
        matrices[f"{index // 2}"] = [
            *matrices.get(f"{index // 2}", []), count_scores(weight, inputs)
        ]  # fmt: skip
        energy = weight.double() ** 2 * inputs.double()
        energy = energy / energy.sum() if energy.any() else energy
        steps = energy.float().numpy().view(np.int32) >> 15
        for w, step in zip(weight.flatten().tolist(), steps.flatten().tolist(), strict=True):
            keys.append((w != 0, step, index))
    zeros = round(share * len(keys))
    gone = [index for *_, index in sorted(keys)[:zeros]]
    found = allocate(matrices, zeros)
    assert [n for parts in found.values() for n in parts] == [
        gone.count(index) for index in range(len(numbers))
    ]


def test_a_global_threshold_is_for_each_expert(tmp_path: Path, out: Path) -> None:
    """An expert of which most weights are next to nothing gives up most, whatever file it is in."""

    def shrink(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if name.endswith("experts.down_proj"):
                tensor[1, :, ::2] *= 1e-3

    source = changed(tmp_path / "source", "gpt_oss", shrink)
    result = prune(source, out, settings("wanda", 0.3, scope="global"))
    assert result.prunable_zeros == reference.count(0.3, result.prunable_weights)
    for name, tensor in reference.stored(out).items():
        if name.endswith("experts.down_proj"):
            zeros = [(one == 0).float().mean() for one in tensor]
            assert zeros[1] >= 0.45 > 0.4 > max(zeros[0], zeros[2])


def test_a_stack_with_one_expert_that_nothing_reaches_is_not_the_last_to_be_taken(
    tiny: Tiny, out: Path
) -> None:
    choice = settings("sparsegpt", 0.2, pattern="2:4", calibration=FEW)
    result = prune(tiny("gpt_oss"), out, choice)
    blind = [name for name, one in facts(result).items() if one["by_magnitude"]]
    dense = [one.name for one in result.tensors if one.reason.startswith("kept dense")]
    assert [name for name in blind if name.endswith("experts.down_proj")] == blind
    assert len(blind) == 2
    assert any("self_attn" in name for name in dense)  # of which all is known, and more is lost


def test_a_part_of_a_fused_weight_may_be_left_out(tiny: Tiny, out: Path) -> None:
    """Mixtral's w1 and w3 are one parameter in memory."""
    result = prune(tiny("mixtral"), out, settings("sparsegpt", 0.5, exclude=("*.w1.weight",)))
    names = {one.name.split(".")[-2] for one in result.tensors if one.calibrated is not None}
    assert {"w2", "w3"} <= names
    assert "w1" not in names
    assert all(one.zeros == one.numel // 2 for one in result.tensors if one.calibrated is not None)
    assert verify(out).ok


def test_a_head_that_is_not_loaded_may_be_pruned(tiny: Tiny, out: Path) -> None:
    choice = settings("sparsegpt", 0.5, include=("lm_head.weight",))
    result = prune(tiny("llama_untied"), out, choice)
    assert facts(result)["lm_head.weight"]["by_magnitude"] == 1
    assert verify(out).ok


# --- blocks of rows -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["gpt_oss", "llama"])
@pytest.mark.parametrize("sparsity", few([0.1, 0.15, 0.2, 0.4]))
def test_blocks_of_rows_come_as_near_as_one_block(
    tiny: Tiny, out: Path, name: str, sparsity: float
) -> None:
    result = prune(tiny(name), out, settings("wanda", sparsity, pattern="2:4", budget="rows"))
    wanted = reference.count(sparsity, result.prunable_weights)
    largest = max(one.shape[one.input_axis] for one in result.tensors if one.input_axis is not None)
    assert abs(result.prunable_zeros - wanted) <= 16 * largest // 2 // 2
    assert verify(out).ok


@pytest.mark.parametrize("sparsity", few([0.05, 0.15, 0.25, 0.45]))
def test_rows_are_refined(tiny: Tiny, out: Path, sparsity: float) -> None:
    """Calibration chooses other rows than magnitudes alone do, which is no changed source."""
    choice = settings("magnitude", sparsity, pattern="2:4", budget="rows", refine=True)
    result = prune(tiny("llama"), out, choice)
    assert result.prunable_zeros / result.prunable_weights == pytest.approx(sparsity, abs=0.02)
    assert {one["survivors"] for one in facts(result).values()} == {"updated"}
    for one in result.tensors:
        assert (one.action == "prune") == (one.calibrated is not None)
    assert verify(out).ok


def test_no_pruned_tensor_has_a_reason_to_stay_dense(tiny: Tiny, out: Path) -> None:
    result = prune(tiny("llama"), out, settings("magnitude", 0.3, pattern="2:4", refine=True))
    assert {bool(one.reason) for one in result.tensors if one.action == "prune"} == {False}
    assert {bool(one.reason) for one in result.tensors if one.action == "copy"} == {True}


# --- numbers that are out of range ----------------------------------------------------------------
def test_weights_that_fp16_cannot_hold_stay_as_they_were_and_are_told(
    tmp_path: Path, out: Path
) -> None:
    model = tiny_models.make("llama").half()
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        weight = model.get_parameter(name)
        weight.copy_(weight.sign() * 65_000)
        model.get_parameter("model.layers.0.mlp.down_proj.weight").mul_(1e-4)
    model.save_pretrained(tmp_path / "source")
    for method in ("sparsegpt", "admm"):
        events: list[Event] = []
        result = prune(
            tmp_path / "source", out / method, settings(method, 0.5), on_event=events.append
        )
        assert f"{name}: its dtype cannot hold the new weights of" in told(events)
        assert reference.stored(out / method)[name].isfinite().all()
        assert all(one.zeros == one.numel // 2 for one in result.tensors if one.calibrated)
        assert verify(out / method).ok


@pytest.mark.parametrize("value", few([4e300, float("inf"), float("nan")]))
def test_weights_beyond_fp32_are_refused_by_name(tmp_path: Path, out: Path, value: float) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def put(tensors: Tensors) -> None:
        tensors[name] = tensors[name].double()
        tensors[name][3, 5] = value

    source = changed(tmp_path / "source", "llama", put)
    error = NaNWeights if value != value else UnsupportedCheckpoint
    with pytest.raises(error, match=name.replace(".", r"\.")):
        prune(source, out, settings("sparsegpt", 0.5))
    assert not out.exists()
