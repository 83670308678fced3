"""Inputs of every weight, block by block, against hooks on the whole model; and the run's order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from full import few
from methods_reference import aimed

from prunectl.calibration import engine
from prunectl.calibration.engine import Captured, Wanted, calibrate
from prunectl.calibration.forward import Inputs
from prunectl.checkpoint.block_model import BlockModel
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.errors import CalibrationFailed, UnsupportedCheckpoint
from prunectl.events import Advanced, Event, PhaseStarted
from prunectl.methods.statistics import Gram
from prunectl.parallel.run import PLAIN_RUN, Run

SPLIT = "dinov2_swiglu"  # its files hold one matrix that transformers takes apart


MODELS = few([name for name in tiny_models.NAMES if name != SPLIT], *tiny_models.FEW)


def inputs_of(name: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One sample that a tiny model takes."""

    def ids(count: int) -> torch.Tensor:
        return torch.randint(3, 60, (1, count), generator=generator)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if name in ("vit", "dinov2", "dinov2_swiglu"):
        return {"pixel_values": normal(1, 3, 16, 16)}
    if name == "whisper":
        return {"input_features": normal(1, 10, 40), "decoder_input_ids": ids(5)}
    if name == "clip":
        return {"input_ids": ids(7), "pixel_values": normal(1, 3, 16, 16)}
    if name.startswith(("t5", "bart")):
        return {"input_ids": ids(9), "decoder_input_ids": ids(5)}
    return {"input_ids": ids(9)}


def samples_of(name: str, count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [inputs_of(name, generator) for _ in range(count)]


def axes_of(checkpoint: Checkpoint, block_model: BlockModel) -> dict[str, int | None]:
    roles = checkpoint.roles.roles
    return {
        name: roles[name].input_axis for name in block_model.targets
        if roles[name].role == "block linear"
    }  # fmt: skip


def inputs_by_hooks(model: torch.nn.Module, samples: Sequence[Inputs]) -> dict[str, torch.Tensor]:
    """Every linear layer's inputs [tokens, in], by running the whole model, in fp64."""
    from transformers.pytorch_utils import Conv1D

    seen: dict[str, list[torch.Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, args: Any, kwargs: Any) -> None:
            x = (args[0] if args else kwargs["input"]).detach()
            seen.setdefault(f"{name}.weight", []).append(x.reshape(-1, x.shape[-1]).double())

        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            module.register_forward_pre_hook(hook(name), with_kwargs=True)
    with torch.no_grad():
        for sample in samples:
            model(**sample)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def moments_by_hooks(model: torch.nn.Module, samples: Sequence[Inputs]) -> dict[str, torch.Tensor]:
    """``2/n sum x x^T`` of every linear layer's inputs."""
    rows = inputs_by_hooks(model, samples)
    return {name: 2 / len(x) * x.T @ x for name, x in rows.items()}


def run(
    folder: Path, samples: Sequence[Inputs], prune: Any, events: list[Event] | None = None,
    **options: Any,
) -> BlockModel:  # fmt: skip
    checkpoint = open_checkpoint(folder)
    with checkpoint.open() as reader:
        block_model = BlockModel(
            checkpoint, reader, device=torch.device("cpu"), dtype=torch.float32
        )
        wanted = Wanted(axes_of(checkpoint, block_model), **options)
        run = PLAIN_RUN if events is None else Run(on_event=events.append)
        calibrate(block_model, samples, wanted, prune, run=run)
    return block_model


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_of_the_files_in_the_shapes_of_the_files(
    name: str, tmp_path: Path
) -> None:
    tiny_models.build(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    stored = {tensor.name: tensor for tensor in checkpoint.tensors}
    with checkpoint.open() as reader:
        block_model = BlockModel(
            checkpoint, reader, device=torch.device("cpu"), dtype=torch.float32
        )
        axes = axes_of(checkpoint, block_model)
        assert axes
        for block in block_model.blocks:
            assert not block_model.is_loaded(block)
            block_model.load(block)
            views = block_model.views([n for n in block_model.names_of(block) if n in axes])
            for tensor, view in views.items():
                assert torch.equal(view, read_tensor(reader, stored[tensor])), tensor
                view.fill_(7)  # a view: the model's own parameter changes
                parameter = block_model.targets[tensor].parameter
                assert (block_model.model.get_parameter(parameter) == 7).any()
            block_model.unload(block)


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_that_hooks_on_the_whole_model_see(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name, tmp_path)
    samples = samples_of(name)
    seen: dict[str, Gram | None] = {}

    def prune(tensor: str, parts: Sequence[Captured]) -> None:
        seen.update((part.matrix.label, part.gram) for part in parts)

    events: list[Event] = []
    block_model = run(tmp_path, samples, prune, events)
    expected = moments_by_hooks(model, samples)
    compared = 0
    for tensor, target in block_model.targets.items():
        gram = seen.get(tensor)
        if target.parameter in expected and gram is not None:
            torch.testing.assert_close(
                gram.hessian().double(), expected[target.parameter], rtol=1e-4, atol=1e-5
            )
            compared += 1
    assert compared >= 2
    unreached = {label for label, gram in seen.items() if gram is None}
    assert all("visual" in label for label in unreached)  # text does not reach a vision tower
    for phase in ("trying the model", "calibrating"):
        told = [event for event in events if isinstance(event, PhaseStarted | Advanced)]
        started, *steps = [event for event in told if event.phase == phase]
        assert isinstance(started, PhaseStarted)
        assert sum(step.count for step in steps if isinstance(step, Advanced)) == started.total


@pytest.mark.parametrize("name", few(["llama", "t5", "albert", "mixtral"], "llama"))
def test_each_block_sees_what_the_pruned_blocks_before_it_put_out(
    name: str, tmp_path: Path
) -> None:
    """Every other weight is set to zero; the reference runs the model with the blocks before."""
    tiny_models.build(name, tmp_path)
    samples = samples_of(name)
    order: list[str] = []
    diagonals: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}

    def prune(tensor: str, parts: Sequence[Captured]) -> torch.Tensor:
        order.append(tensor)
        assert parts[0].gram is not None
        diagonals[tensor] = parts[0].gram.diagonal()
        view = parts[0].matrix.weight.clone()
        view[:, ::2] = 0
        values[tensor] = view
        return view

    block_model = run(tmp_path, samples, prune)
    blocks = [block_model.block_of(block_model.targets[tensor].parameter) for tensor in order]
    for block in dict.fromkeys(blocks):
        model = type(block_model.model).from_pretrained(tmp_path).eval()
        for tensor, before in zip(order, blocks, strict=True):
            if before == block:
                break
            parameter = model.get_parameter(block_model.targets[tensor].parameter)
            if parameter.shape == values[tensor].shape:
                parameter.data.copy_(values[tensor])
            else:  # experts: a slice of the stack
                _put_expert(model, tensor, values[tensor])
        expected = moments_by_hooks(model, samples)
        for tensor, own in zip(order, blocks, strict=True):
            parameter_name = block_model.targets[tensor].parameter
            if own == block and parameter_name in expected:
                torch.testing.assert_close(
                    diagonals[tensor].double(), expected[parameter_name].diagonal(),
                    rtol=1e-3, atol=1e-5,
                )  # fmt: skip


@pytest.mark.parametrize("name", few(["llama", "t5"], "llama"))
def test_aims_are_those_of_a_whole_dense_model(name: str, tmp_path: Path) -> None:
    """Every other weight is set to zero; the reference runs both models as wholes."""
    dense = tiny_models.build(name, tmp_path)
    samples = samples_of(name)
    values: dict[str, torch.Tensor] = {}
    aims: dict[str, torch.Tensor | None] = {}

    def prune(tensor: str, parts: Sequence[Captured]) -> torch.Tensor:
        assert parts[0].gram is not None
        aims[tensor] = parts[0].gram.aim(0.01)
        values[tensor] = parts[0].matrix.weight.clone()
        values[tensor][:, ::2] = 0
        return values[tensor]

    block_model = run(tmp_path, samples, prune, with_dense=True)
    wanted = inputs_by_hooks(dense, samples)
    moved = 0
    model = type(dense).from_pretrained(tmp_path).eval()
    for tensor, value in values.items():  # in the order of use: the ones before are pruned
        parameter = block_model.targets[tensor].parameter
        seen = inputs_by_hooks(model, samples)[parameter]
        whole = torch.eye(seen.shape[1])
        expected = aimed(whole, seen, wanted[parameter])
        aim = aims[tensor]
        assert aim is not None
        torch.testing.assert_close(aim, expected, rtol=1e-3, atol=1e-3)
        moved += float((expected - whole).abs().max()) > 0.1
        model.get_parameter(parameter).data.copy_(value)
    assert moved


def _put_expert(model: Any, tensor: str, value: torch.Tensor) -> None:
    """A Mixtral expert's w1, w2 or w3, into the stacks that transformers makes of them."""
    path, _, rest = tensor.partition(".block_sparse_moe.experts.")
    number, which = int(rest.split(".")[0]), rest.split(".")[1]
    experts = model.get_submodule(f"{path}.mlp.experts")
    if which == "w2":
        experts.down_proj.data[number].copy_(value)
    else:
        half = experts.gate_up_proj.shape[1] // 2
        rows = slice(0, half) if which == "w1" else slice(half, None)
        experts.gate_up_proj.data[number, rows].copy_(value)


def test_with_the_dense_model_each_matrix_is_measured_behind_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are several batches, and a forward ends when all matrices of a turn were used."""
    monkeypatch.setattr("prunectl.calibration.forward._ROWS", 1)
    tiny_models.build("llama", tmp_path)
    samples = samples_of("llama")
    diagonals: dict[bool, dict[str, torch.Tensor]] = {False: {}, True: {}}
    orders: dict[bool, list[str]] = {False: [], True: []}
    for sequential in (False, True):

        def prune(
            tensor: str, parts: Sequence[Captured], sequential: bool = sequential
        ) -> torch.Tensor:
            assert parts[0].gram is not None
            assert parts[0].gram.tokens == sum(one["input_ids"].numel() for one in samples)
            orders[sequential].append(tensor)
            diagonals[sequential][tensor] = parts[0].gram.diagonal()
            return parts[0].matrix.weight * 0.5

        run(tmp_path, samples, prune, with_dense=sequential)
    first = [t.split("layers.0.")[1] for t in orders[True] if "layers.0." in t]
    assert [set(first[:3]), first[3], set(first[4:6]), first[6]] == [
        {f"self_attn.{x}_proj.weight" for x in "qkv"}, "self_attn.o_proj.weight",
        {"mlp.gate_proj.weight", "mlp.up_proj.weight"}, "mlp.down_proj.weight",
    ]  # fmt: skip
    same = {
        tensor: bool(torch.equal(diagonals[True][tensor], diagonals[False][tensor]))
        for tensor in diagonals[True] if "layers.0." in tensor
    }  # fmt: skip
    assert all(same[t] for t in same if t.endswith(("q_proj.weight", "v_proj.weight")))
    assert not any(same[t] for t in same if "mlp" in t or "o_proj" in t)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("opt", [{"q_proj", "k_proj", "v_proj"}, {"out_proj"}, {"fc1"}, {"fc2"}]),
        ("mixtral", [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"w1", "w3"}, {"w2"}]),
    ],
)
def test_a_turn_has_one_input_or_that_of_all_experts(
    name: str, expected: list[set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[set[str]] = []
    collect = engine._Engine._collect

    def noted(self: Any, group: Any, todo: Any, tell: Any) -> Any:
        turns.append({one.split(".")[-2] for one in todo})
        return collect(self, group, todo, tell)

    monkeypatch.setattr(engine._Engine, "_collect", noted)
    tiny_models.build(name, tmp_path)
    run(tmp_path, samples_of(name), lambda tensor, parts: None, with_dense=True)
    assert turns[: len(expected)] == expected


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("moe.experts.0.w1.weight", "moe.experts.13.w1.weight", True),
        ("mlp.experts.expert_0.wi.weight", "mlp.experts.expert_1.wi.weight", True),
        ("moe.experts.0.w1.weight", "moe.experts.0.w2.weight", False),
        ("moe.experts.w1.weight", "moe.experts.w2.weight", False),
        ("ffn.0.output.dense.weight", "ffn.1.output.dense.weight", False),
    ],
)
def test_only_numbers_of_experts_are_left_out_of_names(one: str, other: str, alike: bool) -> None:
    found = [engine._EXPERT.sub("", name) for name in (one, other)]
    assert (found[0] == found[1]) == alike


def test_a_sample_alone_and_samples_side_by_side_give_the_same(tmp_path: Path) -> None:
    tiny_models.build("bert", tmp_path)
    long, short = samples_of("bert", 4), samples_of("bert", 2)
    short = [{"input_ids": one["input_ids"][:, :5]} for one in short]
    found: list[dict[str, torch.Tensor]] = []
    for samples in ([*long, *short], [long[0], short[0], long[1], short[1], long[2], long[3]]):
        moments: dict[str, torch.Tensor] = {}

        def prune(
            tensor: str, parts: Sequence[Captured], moments: dict[str, torch.Tensor] = moments
        ) -> None:
            assert parts[0].gram is not None
            assert parts[0].gram.tokens == 4 * 9 + 2 * 5
            moments[tensor] = parts[0].gram.hessian()

        run(tmp_path, samples, prune)
        found.append(moments)
    for tensor, moment in found[0].items():
        torch.testing.assert_close(moment, found[1][tensor], rtol=1e-4, atol=1e-6)


def test_a_matrix_that_transformers_takes_apart_is_refused_by_name(tmp_path: Path) -> None:
    tiny_models.build(SPLIT, tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match=r"weights_in\.weight.* split or reordered"):
        run(tmp_path, samples_of(SPLIT), lambda tensor, parts: None)


def test_a_model_that_fails_on_the_samples_says_so(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path)
    sample = {"input_ids": torch.tensor([[3, 61_000]])}
    with pytest.raises(CalibrationFailed, match="forward fails"):
        run(tmp_path, [sample], lambda tensor, parts: None)


def test_nan_between_blocks_is_named(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path)

    def prune(tensor: str, parts: Sequence[Captured]) -> torch.Tensor | None:
        if tensor.endswith("layers.0.mlp.down_proj.weight"):
            return parts[0].matrix.weight * float("nan")
        return None

    with pytest.raises(CalibrationFailed, match=r"block model\.layers\.0 puts out NaN or Inf"):
        run(tmp_path, samples_of("llama"), prune)


# --- experts ------------------------------------------------------------------------------------


def mixtral(experts: Any, x: torch.Tensor, routed: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Gate and up are one stack, [experts, 2 * width, hidden], of two tensors in the file."""
    found = []
    for number in range(experts.num_experts):
        own = x[(routed == number).any(-1)].double()
        gate, up = (own @ experts.gate_up_proj[number].double().T).chunk(2, -1)
        down = torch.nn.functional.silu(gate) * up
        found.append({"w1": own, "w3": own, "w2": down})
    return found


def gpt_oss(experts: Any, x: torch.Tensor, routed: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Stacks [experts, in, out], gate and up in turns, with biases."""
    found = []
    for number in range(experts.num_experts):
        own = x[(routed == number).any(-1)].double()
        both = own @ experts.gate_up_proj[number].double()
        both = both + experts.gate_up_proj_bias[number].double()
        gate, up = both[:, ::2].clamp(max=experts.limit), both[:, 1::2]
        up = up.clamp(-experts.limit, experts.limit)
        down = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        found.append({"gate_up_proj": own, "down_proj": down})
    return found


def llama4(
    experts: Any, x: torch.Tensor, routed: torch.Tensor | None = None
) -> list[dict[str, torch.Tensor]]:
    """All experts in one product of stacks; zeros in the place of others' tokens are no tokens."""
    found = []
    stack = x.double().view(experts.num_experts, -1, x.shape[-1])
    for own, both in zip(stack, experts.gate_up_proj.double(), strict=True):
        fed = own[own.abs().sum(1) > 0]
        gate, up = (fed @ both).chunk(2, -1)
        found.append({"gate_up_proj": fed, "down_proj": up * torch.nn.functional.silu(gate)})
    return found


@pytest.mark.parametrize("by_hand", [mixtral, gpt_oss, llama4], ids=lambda f: f.__name__)
def test_moments_of_experts_are_those_of_the_tokens_routed_to_them(
    by_hand: Callable[..., list[dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    name = by_hand.__name__
    model = tiny_models.build(name, tmp_path)
    samples = samples_of(name, 4)
    fed: dict[tuple[int, int, str], list[torch.Tensor]] = {}

    def hook(layer: int) -> Any:
        def keep(module: Any, args: Any) -> None:
            for number, inputs in enumerate(by_hand(module, *args[:2])):
                for which, x in inputs.items():
                    fed.setdefault((layer, number, which), []).append(x)

        return keep

    for path, module in model.named_modules():
        if path.endswith(".experts"):
            module.register_forward_pre_hook(hook(int(path.split(".")[2])))
    with torch.no_grad():
        for sample in samples:
            model(**sample)

    seen: dict[tuple[int, int, str], Gram | None] = {}

    def prune(tensor: str, parts: Sequence[Captured]) -> None:
        for one in parts:
            place = re.search(r"layers\.(\d+)\..*experts\.(?:(\d+)\.)?(\w+?)(?:\.weight)?$", tensor)
            if place is not None:
                number = one.matrix.index if one.matrix.index is not None else int(place[2])
                seen[int(place[1]), number, place[3]] = one.gram

    run(tmp_path, samples, prune)
    assert seen.keys() == fed.keys()
    assert len(seen) >= 6
    for place, parts in fed.items():
        x, gram = torch.cat(parts), seen[place]
        if not len(x):
            assert gram is None or not gram.tokens
            continue
        assert gram is not None
        assert gram.tokens == len(x)
        expected = 2 / len(x) * x.T @ x
        torch.testing.assert_close(gram.hessian().double(), expected, rtol=1e-4, atol=1e-7)
