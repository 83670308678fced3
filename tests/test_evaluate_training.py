"""Fine-tuning with pruned weights held: against a plain loop, step by step, and interrupted."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
import transformers
from full import few
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prunectl import open_checkpoint
from prunectl.errors import CannotWrite, InvalidOption
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.loaded_model import Held, LoadedModel
from prunectl.evaluation.metric import Head
from prunectl.evaluation.settings import Training
from prunectl.evaluation.tasks import CLASSIFICATION, QA, TEXT, Recipe
from prunectl.evaluation.tuning import fingerprint, resolve
from prunectl.events import Advanced, Event, Note, OnEvent

Tiny = Callable[[str], Path]
State = dict[str, torch.Tensor]

RECIPE = Recipe(
    epochs=3, learning_rate=1e-2, train_batch_size=4, weight_decay=0.1, warmup=0.25, max_grad_norm=1
)


class Rows:
    """Sequences of random tokens; of two classes, by the first token. No two rows are as long."""

    def __init__(self, count: int = 10) -> None:
        rng = np.random.default_rng(5)
        self.rows = [rng.integers(5, 61, 4 + index % 7) for index in range(count)]
        self.labels = [int(row[0] > 30) for row in self.rows]
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> State:
        self.sizes.append(len(indices))
        length = max(len(self.rows[index]) for index in indices)
        ids = torch.zeros(len(indices), length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for at, index in enumerate(indices):
            ids[at, : len(self.rows[index])] = torch.from_numpy(self.rows[index])
            mask[at, : len(self.rows[index])] = 1
        labels = torch.tensor([self.labels[index] for index in indices])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def model_and_held(
    sparsity: float = 0.5, name: str = "bert_classifier", dropout: float = 0.1
) -> tuple[Any, list[Held]]:
    """A tiny model with the smallest weights of its blocks' matrices at zero."""
    model = tiny_models.make(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    held = []
    for path, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".layer." in path:
            weight = parameter.data
            gone = weight.abs() < weight.abs().flatten().quantile(sparsity)
            weight[gone] = 0
            held.append(Held(path, weight, weight == 0))
    assert held
    return model.requires_grad_(False), held


def train(*args: Any, **options: Any) -> None:
    """Imported by those who call it: it takes seconds, which all who collect tests would wait."""
    from prunectl.evaluation import training

    training.train(*args, **options)


def state_of(model: torch.nn.Module) -> State:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain_loop(model: Any, held: Sequence[Held], data: Rows, recipe: Recipe, seed: int) -> None:
    """The same in a few lines of torch, with torch's and transformers' own schedule."""
    model.train().requires_grad_(True)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    steps = recipe.epochs * -(-len(data) // recipe.train_batch_size)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, round(recipe.warmup * steps), steps
    )
    kept = {one.name: ~one.gone for one in held}
    torch.manual_seed(seed)
    for epoch in range(recipe.epochs):
        drawn = np.random.default_rng([seed, epoch]).permutation(len(data))
        for indices in np.split(drawn, range(recipe.train_batch_size, len(data), 4)):
            batch = data.batch(indices)
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            cross_entropy(logits, batch["labels"]).backward()
            for name, parameter in named:
                if name in kept:
                    parameter.grad *= kept[name]
            torch.nn.utils.clip_grad_norm_([p for _, p in named], recipe.max_grad_norm)
            optimizer.step()
            with torch.no_grad():
                for name, parameter in named:
                    if name in kept:
                        parameter *= kept[name]
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def at_each_step(call: Callable[[int], None]) -> OnEvent:
    """What calls ``call`` with the number of each optimizer step, from 1 on, when it is done."""
    done = 0

    def listen(event: Event) -> None:
        nonlocal done
        if isinstance(event, Advanced):
            done += event.count
            if event.count == 1:
                call(done)

    return listen


# --- the loop -------------------------------------------------------------------------------------


def test_weights_are_those_of_a_plain_loop() -> None:
    ours, held = model_and_held()
    before = state_of(ours)
    train(ours, held, Rows(), RECIPE, 7)
    theirs, masks = model_and_held()
    plain_loop(theirs, masks, Rows(), RECIPE, 7)
    assert same(state_of(ours), state_of(theirs))
    changed = [name for name, one in state_of(ours).items() if not torch.equal(one, before[name])]
    assert len(changed) == len(before)
    assert not ours.training
    assert not any(p.requires_grad or p.grad is not None for p in ours.parameters())


@settings(max_examples=4)
@given(
    sparsity=st.floats(0.0, 0.95),
    decays=st.sampled_from([0.0, 0.3, 5.0]),
    rate=st.sampled_from([1e-4, 0.1]),
    precision=st.sampled_from(["no", "bf16"]),
    passes=st.integers(1, 5),
)
def test_after_every_step_zeros_are_zeros_and_nothing_else_is(
    sparsity: float, decays: float, rate: float, precision: str, passes: int
) -> None:
    model, held = model_and_held(sparsity)
    names = {one.name: one.gone for one in held}
    seen = []

    def check(step: int) -> None:
        seen.append(step)
        for name, parameter in model.named_parameters():
            if name in names:
                zero = parameter[names[name]]
                assert torch.equal(zero, torch.zeros_like(zero))
                assert not torch.signbit(zero).any()
                assert (parameter == 0).sum() == names[name].sum()

    recipe = replace(
        RECIPE,
        epochs=1,
        weight_decay=decays,
        learning_rate=rate,
        warmup=0.0,
        mixed_precision=precision,
        gradient_accumulation=passes,
    )
    train(model, held, Rows(), recipe, 0, at_each_step(check))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("passes", few([3, 2, 4]))
def test_a_step_is_the_same_in_several_passes(passes: int) -> None:
    one, held = model_and_held(dropout=0.0)
    train(one, held, Rows(), RECIPE, 0)
    other, masks = model_and_held(dropout=0.0)
    data = Rows()
    train(other, masks, data, replace(RECIPE, gradient_accumulation=passes), 0)
    for name, value in state_of(one).items():
        torch.testing.assert_close(state_of(other)[name], value, atol=2e-4, rtol=0)
    assert max(data.sizes) == -(-4 // passes)


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    found = []
    for seed in (1, 1, 2):
        model, held = model_and_held()
        random.seed(seed)  # what the caller draws does not matter
        torch.rand(seed)
        train(model, held, Rows(), RECIPE, seed)
        found.append(state_of(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_model_can_be_trained_again_in_mixed_precision() -> None:
    """As rounds of a lottery do it: what accelerate puts on a model is taken off."""
    recipe = replace(RECIPE, mixed_precision="bf16")
    model, held = model_and_held()
    before = state_of(model)
    train(model, held, Rows(), recipe, 1)
    first = state_of(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    train(*(other := model_and_held()), Rows(), RECIPE, 1)
    assert not same(first, state_of(other[0])), "it is computed in bf16"
    assert model(torch.tensor([[5, 6]])).logits.dtype == torch.float32
    model.load_state_dict(before)
    train(model, held, Rows(), recipe, 1)
    assert same(state_of(model), first)


def test_max_steps_ends_training_and_the_decay_with_it() -> None:
    rates: list[float] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    model, held = model_and_held()
    handle = register_optimizer_step_pre_hook(note)
    try:
        recipe = replace(RECIPE, warmup=0.0, max_steps=4)
        train(model, held, Rows(), recipe, 0)
    finally:
        handle.remove()
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])


@given(samples=st.integers(1, 50), batch=st.integers(1, 20), seed=st.integers(0, 3))
def test_an_epoch_sees_each_sample_once(samples: int, batch: int, seed: int) -> None:
    from prunectl.evaluation.training import order

    for epoch in range(2):
        steps = order(samples, batch, seed, epoch)
        assert sorted(itertools.chain(*steps)) == list(range(samples))
        assert all(len(step) == batch for step in steps[:-1])
    assert samples < 20 or order(samples, batch, seed, 0) != order(samples, batch, seed, 1)


def test_the_caller_s_random_numbers_and_accelerator_are_left_alone() -> None:
    def drawn() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    own = Accelerator(cpu=True, gradient_accumulation_steps=3)
    try:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        expected = drawn()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        model, held = model_and_held()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        train(model, held, Rows(), replace(RECIPE, mixed_precision="bf16"), 0)
        assert drawn() == expected
        assert (own.mixed_precision, own.gradient_accumulation_steps) == ("no", 3)
        assert own.device == torch.device("cpu")
    finally:
        AcceleratorState._reset_state(True)
    assert not PartialState._shared_state


# --- weights that are held, in other layouts ------------------------------------------------------


@pytest.mark.parametrize("name", few(["gpt2", "mixtral", "albert", "dinov2"], "gpt2", "mixtral"))
def test_views_of_transposed_stacked_and_shared_weights_are_held(tiny: Tiny, name: str) -> None:
    checkpoint = open_checkpoint(tiny(name))
    images = name == "dinov2"
    kind = "ImageClassification" if images else "SequenceClassification"
    head = Head(f"AutoModelFor{kind}", {"num_labels": 2, "pad_token_id": 0})
    with checkpoint.open() as reader:
        loaded = LoadedModel(
            checkpoint, reader, device=torch.device("cpu"), dtype=torch.float32, head=head
        )
        for view in loaded.views.values():
            view[torch.arange(view.numel()).reshape(view.shape) % 3 == 0] = 0
        held = loaded.held()

        class Images(Rows):
            def batch(self, indices: Sequence[int]) -> State:
                labels = torch.tensor([self.labels[index] for index in indices])
                return {"pixel_values": torch.rand(len(indices), 3, 16, 16), "labels": labels}

        def check(step: int) -> None:
            for one in held:
                assert (one.weight[one.gone] == 0).all()
                assert (one.weight[~one.gone] != 0).all()

        data = Images() if images else Rows()
        train(loaded.model, held, data, replace(RECIPE, epochs=1), 0, at_each_step(check))
        assert len({one.weight.data_ptr() for one in held}) == len(held)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_zeros_are_held_on_a_gpu(precision: str, tmp_path: Path) -> None:
    model, _ = model_and_held(dropout=0.0)
    model.cuda()
    held = [
        Held(name, p.data, p.data == 0)
        for name, p in model.named_parameters()
        if p.ndim == 2 and ".layer." in name
    ]

    def check(step: int) -> None:
        for one in held:
            assert (one.weight[one.gone] == 0).all()
            assert (one.weight[~one.gone] != 0).all()

    recipe = replace(RECIPE, mixed_precision=precision)
    train(model, held, Rows(), recipe, 0, at_each_step(check), folder=tmp_path)
    on_cpu, masks = model_and_held(dropout=0.0)
    train(on_cpu, masks, Rows(), RECIPE, 0)
    batch = Rows().batch(range(10))
    loss, expected = model.cpu()(**batch).loss, on_cpu(**batch).loss
    torch.testing.assert_close(loss, expected, rtol=0.2 if precision != "no" else 1e-2, atol=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- interrupted, and gone on with ----------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("precision", few(["bf16", "no"]))
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, precision: str
) -> None:
    recipe = replace(RECIPE, mixed_precision=precision, gradient_accumulation=2)
    whole, held = model_and_held()
    train(whole, held, Rows(), recipe, 3)

    def stop(step: int) -> None:
        if step == 8:
            raise Interrupted

    first, masks = model_and_held()
    with pytest.raises(Interrupted):
        train(first, masks, Rows(), recipe, 3, at_each_step(stop), folder=tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["checkpoint-6"]
    events: list[Event] = []
    steps: list[int] = []
    again, masks = model_and_held()
    folder = tmp_path / "state"
    listen = at_each_step(steps.append)
    train(again, masks, Rows(), recipe, 3, lambda e: (listen(e), events.append(e)), folder=folder)
    assert same(state_of(again), state_of(whole))
    assert steps == [7, 8, 9]
    assert Note("fine-tuning resumes after epoch 2 of 3") in events
    assert sum(one.count for one in events if isinstance(one, Advanced)) == 9
    # What is finished is not trained again.
    last, masks = model_and_held()
    steps.clear()
    train(last, masks, Rows(), recipe, 3, at_each_step(steps.append), folder=folder)
    assert not steps
    assert same(state_of(last), state_of(whole))


def test_a_training_that_ends_before_its_epochs_is_not_gone_on_with(tmp_path: Path) -> None:
    recipe = replace(RECIPE, max_steps=4)
    model, held = model_and_held()
    train(model, held, Rows(), recipe, 0, folder=tmp_path)
    again, masks = model_and_held()
    steps: list[int] = []
    train(again, masks, Rows(), recipe, 0, at_each_step(steps.append), folder=tmp_path)
    assert not steps
    assert same(state_of(again), state_of(model))


@pytest.mark.parametrize("name", few(["mixtral", "bert_base"]))
def test_weights_of_any_names_are_gone_on_from(
    tiny: Tiny, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mixture of experts has other names in its files; the other model gets tied weights."""
    checkpoint = open_checkpoint(tiny(name))
    head = Head("AutoModelForSequenceClassification", {"num_labels": 2, "pad_token_id": 0})

    def trained(folder: Path | None, last: int) -> State:
        def stop(step: int) -> None:
            if step > last:
                raise Interrupted

        with checkpoint.open() as reader:
            loaded = LoadedModel(
                checkpoint, reader, device=torch.device("cpu"), dtype=torch.float32, head=head
            )
            if name == "bert_base":
                first, second = loaded.model.bert.encoder.layer
                second.output.dense.weight = first.output.dense.weight
            with suppress(Interrupted):
                train(loaded.model, [], Rows(), RECIPE, 0, at_each_step(stop), folder=folder)
            return state_of(loaded.model)

    whole = trained(None, 9)
    capfd.readouterr()
    assert not same(trained(tmp_path, 4), whole)
    assert same(trained(tmp_path, 9), whole)
    assert capfd.readouterr() == ("", "")


class Hostile:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('run')",)


FILES = {
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
}  # fmt: skip


def test_a_state_that_is_damaged_or_hostile_is_refused_by_name(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(*model_and_held(), Rows(), RECIPE, 0, at_each_step(stop), folder=tmp_path)
    (found,) = tmp_path.iterdir()
    assert {path.name for path in found.iterdir()} == FILES
    hostile = io.BytesIO()
    torch.save(Hostile(), hostile)
    for path in found.iterdir():
        whole = path.read_bytes()
        cut = path.suffix in (".json", ".safetensors")
        path.write_bytes(whole[: len(whole) // 2] if cut else hostile.getvalue())
        with pytest.raises(EvaluationFailed, match=r"checkpoint-3 cannot be loaded") as caught:
            train(*model_and_held(), Rows(), RECIPE, 0, folder=tmp_path)
        assert "delete" in caught.value.hint
        path.write_bytes(whole)


def test_half_a_state_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"torn")
    steps: list[int] = []
    train(*model_and_held(), Rows(), RECIPE, 0, at_each_step(steps.append), folder=tmp_path)
    assert len(steps) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_nothing_is_printed_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    before = transformers.logging.get_verbosity()
    model, held = model_and_held()
    train(model, held, Rows(), RECIPE, 0)
    train(*model_and_held(), Rows(), RECIPE, 0, folder=tmp_path / "state")
    assert capfd.readouterr() == ("", "")
    left = {path.name for path in tmp_path.rglob("*") if path.parent.name != "checkpoint-9"}
    assert left == {"temporary", "state", "checkpoint-9"}
    assert transformers.logging.get_verbosity() == before
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    other, masks = model_and_held()
    train(other, masks, Rows(), RECIPE, 0)
    assert same(state_of(other), state_of(model))


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("in the way")
    steps: list[int] = []
    with pytest.raises(CannotWrite, match="file"):
        train(*model_and_held(), Rows(), RECIPE, 0, at_each_step(steps.append),
              folder=tmp_path / "file" / "state")  # fmt: skip
    assert not steps


def test_a_fingerprint_tells_weights_recipes_data_and_seeds_apart() -> None:
    model, _ = model_and_held()
    found = {fingerprint(model, RECIPE, "data", 0), fingerprint(model, RECIPE, "other", 0)}
    found |= {fingerprint(model, RECIPE, "data", 1), fingerprint(model, TEXT, "data", 0)}
    model.bert.encoder.layer[1].output.dense.weight[3, 4] += 1e-3
    found.add(fingerprint(model, RECIPE, "data", 0))
    assert len(found) == 5
    model.bert.encoder.layer[1].output.dense.weight[3, 4] -= 1e-3
    assert fingerprint(model, RECIPE, "data", 0) in found


# --- what goes wrong ------------------------------------------------------------------------------


def allocate_too_much(model: Any, most: int) -> None:
    """Memory for more than ``most`` samples is never there: torch's own allocator says so."""

    def need(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > most:
            torch.empty(1 << 55, dtype=torch.uint8)

    model.register_forward_pre_hook(need, with_kwargs=True)


def test_where_memory_is_full_steps_take_more_passes_and_are_the_same() -> None:
    plenty, held = model_and_held(dropout=0.0)
    train(plenty, held, Rows(), RECIPE, 0)
    scarce, masks = model_and_held(dropout=0.0)
    allocate_too_much(scarce, 1)
    events: list[Event] = []
    train(scarce, masks, Rows(), RECIPE, 0, events.append)
    notes = [one.text for one in events if isinstance(one, Note)]
    assert notes == [
        "memory is full: 2 samples at once from here on, 2 passes a step",
        "memory is full: 1 samples at once from here on, 4 passes a step",
    ]
    for name, value in state_of(plenty).items():
        torch.testing.assert_close(state_of(scarce)[name], value, atol=2e-4, rtol=0)


def test_memory_that_does_not_suffice_for_one_sample_is_an_error() -> None:
    model, held = model_and_held()
    allocate_too_much(model, 0)
    with pytest.raises(EvaluationFailed, match="memory of cpu does not suffice") as caught:
        train(model, held, Rows(), RECIPE, 0)
    assert "--sequence-length" in caught.value.hint
    assert not model.training


def test_a_loss_that_is_not_finite_ends_training() -> None:
    model, held = model_and_held()
    with pytest.raises(EvaluationFailed, match=r"the loss is (nan|inf) in step \d of 9") as caught:
        train(model, held, Rows(), replace(RECIPE, learning_rate=1e30, max_grad_norm=0), 0)
    assert "--learning-rate" in caught.value.hint
    assert not model.training


def test_fp16_needs_a_gpu() -> None:
    from accelerate.state import PartialState

    with pytest.raises(InvalidOption, match="--mixed-precision fp16"):
        train(*model_and_held(), Rows(), replace(RECIPE, mixed_precision="fp16"), 0)
    assert not PartialState._shared_state


# --- several processes ----------------------------------------------------------------------------

WORKER = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
import test_evaluate_training as t
from prunectl.cli.run import run
from prunectl.evaluation.batches import shared
from prunectl.evaluation.training import train

recipe = replace(t.RECIPE, train_batch_size=3, epochs=2)
model, held = t.model_and_held(dropout=0.0)
model.classifier.bias.data += torch.distributed.is_initialized()
told = []
train(model, held, t.Rows(), recipe, 0, told.append, folder=Path(sys.argv[1]) / "state")
zeros = all((one.weight[one.gone] == 0).all().item() for one in held)
rank = torch.distributed.get_rank()
mine = []
def work(some):
    mine.extend(some)
    return [one * one for one in some]
squares = shared(range(5), work)
torch.save(model.state_dict(), Path(sys.argv[1]) / f"{rank}.pt")
facts = [len(told), zeros, squares, mine]
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(facts))
assert run(sys.argv[2:]) == 0
torch.distributed.destroy_process_group()
"""


@pytest.mark.full
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Of the last step's samples (one) the second process has none."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    tiny_models.build("bert_base", tmp_path / "model")
    tiny_tokenizers.save(tmp_path / "model")
    rows = [f"{word} word9,{at % 2}\n" for at, word in enumerate(tiny_tokenizers.WORDS[:30])]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows))
    words = "--metric classification --epochs 2 --json --data"
    evaluate = ["evaluate", tmp_path / "model", *words.split(), tmp_path / "rows.csv"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path), *map(str, evaluate)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone, held = model_and_held(dropout=0.0)
    recipe = replace(RECIPE, train_batch_size=3, epochs=2)
    train(alone, held, Rows(), recipe, 0)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        told, zeros, squares, mine = found
        assert (squares, mine) == ([0, 1, 4, 9, 16], [[0, 2, 4], [1, 3]][rank])
        assert (zeros, told) == (True, 0 if rank else 3 + 8)
        weights = torch.load(tmp_path / f"{rank}.pt")
        for name, value in state_of(alone).items():
            torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=0)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["checkpoint-8"]
    # One of them speaks.
    assert json.loads(done.stdout)["samples"] == 6
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) <= 1
    assert all(line.endswith("nothing was learned") for line in warned)  # six rows teach little


# --- settings and recipes -------------------------------------------------------------------------


def test_recipes_are_those_of_the_paper() -> None:
    text = {"mnli": 3, "qqp": 3, "rte": 3, "qnli": 4, "sst2": 5}
    images = {"cifar10": 8, "cifar100": 8, "fashion-mnist": 8, "tiny-imagenet": 5}
    expected = {name: (epochs, 32, 2e-5) for name, epochs in text.items()}
    expected |= {name: (epochs, 64, 2e-5) for name, epochs in images.items()}
    expected["squad"] = (3, 16, 3e-5)
    recipes = {name: task.recipe for name, task in (CLASSIFICATION | QA).items()}
    found = {
        name: (one.epochs, one.train_batch_size, one.learning_rate) for name, one in recipes.items()
    }
    assert found == expected
    assert {(one.weight_decay, one.warmup, one.max_grad_norm) for one in recipes.values()} == {
        (0.0, 0.0, 1.0)
    }


def test_what_is_set_replaces_the_recipe_s() -> None:
    training = Training(
        epochs=0, learning_rate=0.1, weight_decay=0.2, mixed_precision="bf16", train_samples=9
    )
    expected = replace(TEXT, epochs=0, learning_rate=0.1, weight_decay=0.2, mixed_precision="bf16")
    assert resolve(TEXT, training) == expected
    assert resolve(TEXT, None) == TEXT


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": -1}, "--epochs -1"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"train_batch_size": 0}, "--train-batch-size 0"),
        ({"warmup": 1.5}, "--warmup 1.5 is not valid: 0 to 1"),
        ({"mixed_precision": "fp8"}, "--mixed-precision 'fp8'"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"gradient_accumulation": 0}, "--gradient-accumulation"),
        ({"max_steps": 0}, "--max-steps"),
        ({"train_samples": 1}, "--train-samples"),
    ],
)
def test_options_without_a_meaning_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Training(**wrong)
