"""A model that is spread over several GPUs computes what one device does, or it is said why not.

The devices are pretended on the CPU (tests/pretend_device.py); tests marked ``gpu`` want two real
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_words
import pytest
import tiny_tokenizers
import torch
from full import few
from pretend_device import CUDA, PretendDevice

from prunectl.checkpoint import device_map
from prunectl.checkpoint.device_map import ModelTooLarge, place_of
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.device import names_of
from prunectl.errors import PrunectlError
from prunectl.evaluation import loaded_model as subjects
from prunectl.evaluation import similarity
from prunectl.evaluation.loaded_model import LoadedModel, open_loaded_model
from prunectl.evaluation.metric import Metric
from prunectl.evaluation.perplexity import Perplexity
from prunectl.evaluation.pooling import Pooling
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate
from prunectl.events import Event, Note
from prunectl.parallel.run import Run
from prunectl.plan import job as plan_job
from prunectl.plan.prunable import prunable_tensors
from prunectl.plan.settings import PruneSettings
from prunectl.studies.sweep.measurer import PrunedModel
from prunectl.studies.sweep.settings import SweepSettings
from prunectl.studies.sweep.verb import sweep

Tiny = Callable[[str], Path]

pytestmark = pytest.mark.usefixtures("one_thread")

ANY = Perplexity((), 1, {})
TRAINED = replace(ANY, trains=True)
"""What metrics ask of a model; none is scored here."""


WORK = 1_000_000
"""More bytes than are said to be free: of models so small, weights are the least of it."""


def cuda(*indices: int) -> list[torch.device]:
    return [torch.device("cuda", index) for index in indices]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PretendDevice]:
    """Devices of which so many bytes each are free, which ``auto`` means inside of their block."""
    choose = plan_job.choose_device

    def make(*rooms: int) -> PretendDevice:
        devices = PretendDevice(*(room + WORK for room in rooms))

        def chosen(wanted: str) -> torch.device:
            return CUDA if wanted in ("auto", "cuda", "cuda:0") else choose(wanted)

        def others(device: torch.device) -> list[torch.device]:
            return cuda(*range(1, len(rooms))) if device == CUDA else []

        def free(device: torch.device) -> int:
            return rooms[device.index] - devices.used_of(device)

        for module in (plan_job, subjects):
            monkeypatch.setattr(module, "choose_device", chosen)
        monkeypatch.setattr(subjects, "other_devices", others)
        monkeypatch.setattr(device_map, "free_memory", free)
        return devices

    # transformers loads in this thread, where the devices are.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)  # accelerate warns otherwise
    return make


@contextmanager
def opened(folder: Path, device: str, metric: Metric = ANY) -> Iterator[tuple[LoadedModel, Any]]:
    checkpoint = open_checkpoint(folder)
    with open_loaded_model(checkpoint, metric, device=device, dtype="float32") as both:
        yield both


def size_of(folder: Path) -> int:
    """Bytes of the weights in float32."""
    with opened(folder, "cpu") as (loaded, _):
        return sum(one.nbytes for one in loaded.model.parameters())


def inputs(name: str) -> dict[str, torch.Tensor]:
    if name == "vit":
        pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 16)
        return {"pixel_values": pixels.reshape(2, 3, 16, 16)}
    ids = torch.arange(24).reshape(2, 12) * 5 % 59 + 1
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    return found | ({"decoder_input_ids": ids[:, :7]} if name == "t5" else {})


def outputs(loaded: LoadedModel, name: str) -> dict[str, torch.Tensor]:
    """All that the model puts out, on the host, and where it was."""
    placed = {k: v.to(next(loaded.model.parameters()).device) for k, v in inputs(name).items()}
    with torch.inference_mode():
        made = loaded.model(**placed)
    found = {k: v for k, v in made.items() if isinstance(v, torch.Tensor)}
    assert {one.device for one in found.values()} == {placed.popitem()[1].device}
    return {key: one.cpu() for key, one in found.items()}


@pytest.mark.parametrize(
    "name",
    few(["llama", "gpt2", "gemma2", "mixtral", "gpt_oss", "t5", "bert", "vit"]),
)
def test_a_spread_model_is_the_same_model(
    tiny: Tiny, pretended: Callable[..., PretendDevice], name: str
) -> None:
    """Its outputs are those of the CPU, bit for bit, before and after weights were put in."""
    folder = tiny(name)
    room = int(0.85 * size_of(folder))
    settings = PruneSettings(sparsity=0.4)
    with opened(folder, "cpu") as (loaded, reader):
        dense = outputs(loaded, name)
        pruned = PrunedModel(loaded, reader, prunable_tensors(loaded.checkpoint).values())
        pruned.apply(settings, Run(1))
        sparse, state = outputs(loaded, name), loaded.model.state_dict()
        held = {one.name: int(one.gone.sum()) for one in loaded.held()}
    with pretended(room, room, room) as devices, opened(folder, "auto") as (loaded, reader):
        assert loaded.devices.startswith("cuda:")
        assert "-" in loaded.devices or "," in loaded.devices
        assert loaded.notes[-1].text.startswith("the weights are spread over cuda:")
        assert not loaded.notes[-1].warning  # -q leaves it out
        assert all(devices.used_of(one) <= 0.95 * room for one in cuda(0, 1, 2))
        where = {one.device for one in loaded.model.parameters()}
        assert len(where) > 1
        for block in loaded._block_model.blocks:  # a block is never taken apart
            parts = loaded.model.get_submodule(block).parameters()
            assert len({one.device for one in parts}) == 1
        assert_equal(outputs(loaded, name), dense)
        pruned = PrunedModel(loaded, reader, prunable_tensors(loaded.checkpoint).values())
        pruned.apply(settings, Run(1))
        assert_equal(outputs(loaded, name), sparse)
        assert_equal({k: v.cpu() for k, v in loaded.model.state_dict().items()}, state)
        assert {one.name: int(one.gone.cpu().sum()) for one in loaded.held()} == held
        for one in loaded.weights(loaded.prunable).values():
            assert one.device in where
        loaded.restore(loaded.prunable)
        assert_equal(outputs(loaded, name), dense)


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def test_what_is_tied_stays_tied(tiny: Tiny, pretended: Callable[..., PretendDevice]) -> None:
    folder = tiny("llama")
    room = size_of(folder)
    with pretended(room, room), opened(folder, "auto") as (loaded, _):
        model = loaded.model
        assert loaded.devices == "cuda:0-1"
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert place_of(loaded._block_model.places, "lm_head.weight") == model.lm_head.weight.device
        loaded.put("model.embed_tokens.weight", torch.zeros(61, 32))
        assert not model.lm_head.weight.cpu().any()


def test_evaluate_and_sweep_are_those_of_the_cpu(
    tmp_path: Path, pretended: Callable[..., PretendDevice]
) -> None:
    own_words.build(tmp_path / "speaker", windows=6)
    data = (f"text:{tmp_path / 'speaker.txt'}",)
    common = {"data": data, "dtype": "float32"}
    on_cpu = EvalSettings(device="cpu", **common)  # type: ignore[arg-type]
    spread = EvalSettings(device="auto", **common)  # type: ignore[arg-type]
    room = int(0.8 * size_of(tmp_path / "speaker"))
    events: list[Event] = []
    plain = SweepSettings(on_cpu, "0.2,0.5")
    want = [
        evaluate(tmp_path / "speaker", on_cpu),
        sweep([tmp_path / "speaker"], plain, use_cache=False),
    ]
    with pretended(room, room, room):
        found = evaluate(tmp_path / "speaker", spread, on_event=events.append)
        curves = sweep([tmp_path / "speaker"], SweepSettings(spread, "0.2,0.5"), use_cache=False)
    assert found.score == want[0].score
    assert found.device.startswith("cuda:0-")
    assert any(isinstance(one, Note) and found.device in one.text for one in events)
    assert curves.machine["device"] == found.device
    assert [p.score for p in curves.curves[0].points] == [p.score for p in want[1].curves[0].points]


@pytest.mark.parametrize("name", ["llama_untied", "bert"])
def test_what_metrics_do_with_a_spread_model(
    tiny: Tiny, pretended: Callable[..., PretendDevice], tmp_path: Path, name: str
) -> None:
    """Vectors of the encoder alone, log probabilities, and what it goes on to write."""
    from lm_eval.models.huggingface import HFLM

    folder = tiny(name)
    tokenizer = tiny_tokenizers.save(tmp_path)
    rows = [np.arange(3 + 4 * at, dtype=np.int64) % 59 + 1 for at in range(3)]

    def work(loaded: LoadedModel) -> tuple[Any, ...]:
        vectors = similarity._vectors(loaded.model, Pooling(), rows)
        if name == "bert":
            return (np.array(vectors),)
        harness = HFLM(pretrained=loaded.model, tokenizer=tokenizer, batch_size=4)
        pairs = [(None, row.tolist(), end.tolist()) for row in rows for end in (row[:2], row[1:3])]
        known = harness._loglikelihood_tokens(pairs, disable_tqdm=True)
        ids = torch.from_numpy(np.stack([row[-3:] for row in rows]))
        ids = ids.to(next(loaded.model.parameters()).device)
        made = loaded.model.generate(
            input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        return np.array(vectors), np.array(known), made.cpu().numpy()

    with opened(folder, "cpu") as (loaded, _):
        want = work(loaded)
    room = int(0.85 * size_of(folder))
    with pretended(room, room, room), opened(folder, "auto") as (loaded, _):
        assert len({one.device for one in loaded.model.parameters()}) > 1
        found = work(loaded)
    for one, other in zip(found, want, strict=True):
        assert np.array_equal(one, other)


def test_one_device_is_taken_where_it_is_enough(
    tiny: Tiny, pretended: Callable[..., PretendDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or where it was named, or where this is one of several processes."""
    folder = tiny("llama")
    size = size_of(folder)
    devices = pretended(2 * size, size)
    free, asked = device_map.free_memory, list[torch.device]()
    with monkeypatch.context() as patch, devices:
        patch.setattr(device_map, "free_memory", lambda one: (asked.append(one), free(one))[1])
        with opened(folder, "auto") as (loaded, _):
            assert loaded.devices == "cuda:0"
            assert loaded.notes == ()
            assert devices.most_of[1] == 0
    assert asked == [CUDA]
    room = int(0.8 * size)
    with pretended(room - WORK, room), pytest.raises(PrunectlError, match=r"of cuda:0$") as caught:
        opened(folder, "cuda:0").__enter__()
    assert "--device auto spreads it over all GPUs" in caught.value.hint
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    with pretended(room - WORK, room), pytest.raises(PrunectlError, match=r"of cuda:0$") as caught:
        opened(folder, "auto").__enter__()
    assert "one process alone spreads it over all GPUs" in caught.value.hint


def test_another_device_that_is_enough_is_taken(
    tiny: Tiny, pretended: Callable[..., PretendDevice]
) -> None:
    """Where others keep the first one busy; a third is not even asked."""
    folder = tiny("llama")
    size = size_of(folder)
    with opened(folder, "cpu") as (loaded, _):
        want = outputs(loaded, "llama")
    with pretended(size // 4, 2 * size, size) as devices, opened(folder, "auto") as (loaded, _):
        assert (loaded.devices, loaded.notes) == ("cuda:1", ())
        assert devices.most_of[0] == devices.most_of[2] == 0
        assert_equal(outputs(loaded, "llama"), want)


def test_what_is_trained_is_not_spread(tiny: Tiny, pretended: Callable[..., PretendDevice]) -> None:
    folder = tiny("llama")
    room = int(0.8 * size_of(folder))
    with pretended(room - WORK, room), pytest.raises(PrunectlError) as caught:
        opened(folder, "auto", TRAINED).__enter__()
    assert str(caught.value).endswith(
        "does not fit into the memory of cuda:0, and training needs the whole model on one device"
    )
    assert "--device cpu" in caught.value.hint


def test_a_model_that_no_gpus_hold(tiny: Tiny, pretended: Callable[..., PretendDevice]) -> None:
    folder = tiny("llama")
    size = size_of(folder)
    with pretended(size // 4, size // 5) as devices, pytest.raises(ModelTooLarge) as caught:
        opened(folder, "auto").__enter__()
    assert max(devices.most_of) == 0  # known before anything is loaded
    error = caught.value
    assert size <= error.needed <= size + 100  # with a buffer
    assert error.free == {"cuda:0": size // 4, "cuda:1": size // 5}
    assert str(error).startswith(f"{folder} takes ")
    assert " on cuda:0, " in str(error)
    assert error.largest is None
    assert "must stay whole" not in str(error)
    assert error.hint == "--dtype bfloat16 halves this, --device cpu uses the host's memory"


def test_a_part_that_no_gpu_holds(tiny: Tiny, pretended: Callable[..., PretendDevice]) -> None:
    """Together they would do, but a block is not taken apart."""
    folder = tiny("llama_untied")
    with opened(folder, "cpu") as (loaded, _):
        block = loaded.model.get_submodule("model.layers.0")
        nbytes = sum(one.nbytes for one in block.parameters())
        size = sum(one.nbytes for one in loaded.model.parameters())
    rooms = [nbytes] * (2 + 2 * size // nbytes)  # of which a tenth is left free
    with pretended(*rooms), pytest.raises(ModelTooLarge) as caught:
        opened(folder, "auto").__enter__()
    assert caught.value.largest == ("model.layers.0", nbytes)
    assert "the largest part that must stay whole is model.layers.0 with " in str(caught.value)


@pytest.mark.parametrize(
    ("devices", "word"),
    [
        ([torch.device("cpu")], "cpu"),
        (cuda(1, 1), "cuda:1"),
        (cuda(3, 0, 1, 2), "cuda:0-3"),
        (cuda(0, 2), "cuda:0,2"),
    ],
)
def test_devices_in_a_word(devices: list[torch.device], word: str) -> None:
    assert names_of(devices) == word


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two CUDA devices")
@pytest.mark.parametrize("name", ["llama", "mixtral", "t5"])
def test_two_real_devices(tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(name)
    room = size_of(folder)
    with opened(folder, "cuda:0") as (loaded, _):
        want = outputs(loaded, name)
    monkeypatch.setattr(device_map, "free_memory", lambda device: room)
    with opened(folder, "auto") as (loaded, _):
        assert len({one.device for one in loaded.model.parameters()}) > 1
        torch.testing.assert_close(outputs(loaded, name), want)
