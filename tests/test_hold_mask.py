"""``prunectl.hold_mask``: the zeros of a pruned model in training loops that are not ours."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import _global_optimizer_post_hooks as step_hooks
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import prunectl
from prunectl.errors import UsageError

State = dict[str, torch.Tensor]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings, pruned to 2:4."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.build("llama", folder / "dense")
    settings = prunectl.PruneSettings(pattern="2:4")
    prunectl.prune(prunectl.open_checkpoint(folder / "dense"), folder / "pruned", settings)
    return folder / "pruned"


@pytest.fixture(autouse=True)
def no_hook_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not step_hooks


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def zeros_of(model: torch.nn.Module) -> State:
    return {name: one.detach() == 0 for name, one in model.named_parameters() if one.ndim > 1}


def batches(steps: int = 4) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield torch.randint(3, 60, (2, 12), generator=generator)


def train(model: Any, optimizer: torch.optim.Optimizer, mask: State | None = None) -> list[float]:
    """A plain loop, clipped; with a mask, as it is held by hand. Returns the gradients' norms."""
    norms = []
    for ids in batches():
        model(input_ids=ids, labels=ids).loss.backward()
        for name, parameter in model.named_parameters() if mask else ():
            if name in mask:
                parameter.grad[mask[name]] = 0
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        for name, parameter in model.named_parameters() if mask else ():
            if name in mask:
                parameter.data[mask[name]] = 0
        optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_loop_is_trained_as_with_a_mask_by_hand(
    pruned: Path, name: str, dtype: torch.dtype
) -> None:
    by_hand, model = load(pruned, dtype), load(pruned, dtype)
    mask = zeros_of(model)
    expected = train(by_hand, OPTIMIZERS[name](by_hand.parameters()), mask)
    with prunectl.hold_mask(model):
        assert train(model, OPTIMIZERS[name](model.parameters())) == expected
    for path, parameter in model.named_parameters():
        assert torch.equal(parameter, by_hand.get_parameter(path)), path
    assert sum(int(zero.sum()) for zero in mask.values()) > 1000
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_trainer_saves_the_zeros_that_it_was_given(pruned: Path, tmp_path: Path) -> None:
    model = load(pruned)
    before = load_file(pruned / "model.safetensors")
    rows = [{"input_ids": ids[0], "labels": ids[0]} for ids in batches(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=2,
        learning_rate=0.01, weight_decay=0.1, bf16=True, use_cpu=True, num_train_epochs=2,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    held = prunectl.hold_mask(model)
    Trainer(model, arguments, train_dataset=rows).train()  # type: ignore[arg-type]
    held.remove()
    model.save_pretrained(tmp_path / "tuned")
    after = load_file(tmp_path / "tuned" / "model.safetensors")
    matrices = [name for name in before if before[name].ndim > 1]
    assert matrices
    for name in matrices:
        assert torch.equal(after[name] == 0, before[name] == 0), name
        assert not torch.equal(after[name], before[name]), name


def test_zeros_move_again_when_they_are_no_longer_held(pruned: Path) -> None:
    model = load(pruned)
    held = prunectl.hold_mask(model)
    held.remove()
    held.remove()
    zeros = sum(int(one.sum()) for one in zeros_of(model).values())
    train(model, OPTIMIZERS["adamw"](model.parameters()))
    assert sum(int(one.sum()) for one in zeros_of(model).values()) < zeros / 100


def test_a_mask_ends_with_its_model(pruned: Path) -> None:
    prunectl.hold_mask(load(pruned))
    gc.collect()
    assert not step_hooks


def test_frozen_weights_are_left_to_restore(pruned: Path) -> None:
    model = load(pruned).requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    mask, weight = zeros_of(model), model.model.layers[0].mlp.up_proj.weight
    with prunectl.hold_mask(model) as held:
        weight += 1.0  # as adapters are merged
        train(model, OPTIMIZERS["sgd"]([model.lm_head.weight]))
        assert not (weight == 0).any()
        held.restore()
        assert torch.equal(weight == 0, mask["model.layers.0.mlp.up_proj.weight"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # as peft asks
def test_adapters_are_trained_and_merged_weights_restored(pruned: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is no dependency")
    model = load(pruned)
    mask = zeros_of(model)
    with prunectl.hold_mask(model) as held:
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "up_proj"]))
        train(adapted, OPTIMIZERS["adamw"](adapted.parameters()))
        merged = adapted.merge_and_unload()
        filled = zeros_of(merged)
        assert sum(int((mask[one] & ~filled[one]).sum()) for one in mask) > 100
        held.restore()
        assert all(bool(zero[mask[name]].all()) for name, zero in zeros_of(merged).items())
    fresh = peft.get_peft_model(load(pruned), peft.LoraConfig(target_modules=["q_proj"]))
    with prunectl.hold_mask(fresh):  # after adapters were added, whose second half begins at zero
        train(fresh, OPTIMIZERS["adamw"](fresh.parameters()))
        second = [one for name, one in fresh.named_parameters() if "lora_B" in name]
        assert second
        assert all(bool((one != 0).all()) for one in second)


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(UsageError, match="has no zeros that could be held"):
        prunectl.hold_mask(torch.nn.Linear(4, 4))
