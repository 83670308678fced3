"""What is run on which model: kinds, limits and workloads, and settings that have no meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from prunectl.benchmarking.settings import BenchSettings
from prunectl.benchmarking.workloads import Workload, plan, random_pixels, random_tokens, windows
from prunectl.checkpoint.model_kind import Kind, ModelKind, UnknownInputs, model_kind_of
from prunectl.errors import InvalidOption

pytestmark = pytest.mark.usefixtures("one_thread")

LM = ModelKind(Kind.CAUSAL_LM, 256, 100, None, frozenset({0, 5}))
VIT = ModelKind(Kind.VISION, None, 0, (3, 16, 8), frozenset())


@pytest.mark.parametrize(
    ("name", "kind", "context"),
    [
        ("llama", Kind.CAUSAL_LM, 20),
        ("gpt2", Kind.CAUSAL_LM, 20),
        ("mpt", Kind.CAUSAL_LM, 20),
        ("bert", Kind.ENCODER, 20),
        ("bert_classifier", Kind.ENCODER, 20),
        ("roberta", Kind.ENCODER, 18),  # its positions begin after the padding's
        ("t5", Kind.SEQ2SEQ, None),
        ("bart", Kind.SEQ2SEQ, 1024),
        ("vit", Kind.VISION, None),
        ("qwen3_vl_moe", Kind.CAUSAL_LM, 20),
    ],
)
def test_what_models_are(name: str, kind: Kind, context: int | None) -> None:
    model_kind = model_kind_of(tiny_models.make(name))
    assert (model_kind.kind, model_kind.context) == (kind, context)
    assert model_kind.image == ((3, 16, 16) if kind is Kind.VISION else None)


def test_a_model_of_sounds_is_refused() -> None:
    with pytest.raises(UnknownInputs, match="its input is 'input_features'"):
        model_kind_of(tiny_models.make("whisper"))


@pytest.mark.parametrize(
    ("processor", "image"),
    [
        ({"crop_size": {"height": 24, "width": 32}, "size": {"shortest_edge": 40}}, (3, 24, 32)),
        ({"size": {"shortest_edge": 40}}, (3, 40, 40)),
        ({"size": 24}, (3, 24, 24)),
        ({"size": {"longest_edge": 9}}, (3, 16, 16)),
        ({"size": "large"}, (3, 16, 16)),
        ([], (3, 16, 16)),
    ],
)
def test_the_processor_says_how_large_images_are(
    tmp_path: Path, processor: Any, image: tuple[int, int, int]
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    assert model_kind_of(tiny_models.make("vit"), tmp_path).image == image


def test_workloads_are_all_pairs_each_once() -> None:
    settings = BenchSettings(batch_sizes=(1, 8, 1), prompt_tokens=(16, 32), new_tokens=4)
    found, notes = plan(LM, "cpu", settings)
    pairs = [(1, 16), (1, 32), (8, 16), (8, 32)]
    assert found == tuple(Workload(batch, length, 4) for batch, length in pairs)
    assert not notes


def test_lengths_are_capped_and_said() -> None:
    settings = BenchSettings(batch_sizes=(1,), prompt_tokens=(128, 300), new_tokens=16)
    found, notes = plan(LM, "cpu", settings)
    assert [one.tokens for one in found] == [128, 240]
    assert notes == ("300 tokens do not fit the model's context of 256 with 16 new ones: 240 "
                     "are taken",)  # fmt: skip


def test_defaults_shrink_to_a_short_context() -> None:
    short = ModelKind(Kind.CAUSAL_LM, 12, 100, None, frozenset())
    found, notes = plan(short, "cpu", BenchSettings())
    assert {(one.tokens, one.new_tokens) for one in found} == {(9, 3)}
    assert any("context is short" in note for note in notes)


@pytest.mark.parametrize(
    ("model_kind", "settings", "why"),
    [
        (LM, BenchSettings(new_tokens=256), "does not fit the model's context of 256"),
        (VIT, BenchSettings(prompt_tokens=(8,)), "no meaning for a vision model"),
        (VIT, BenchSettings(new_tokens=8), "no meaning for a model of kind 'vision'"),
    ],
)
def test_settings_that_do_not_fit_the_model(
    model_kind: ModelKind, settings: BenchSettings, why: str
) -> None:
    with pytest.raises(InvalidOption, match=why):
        plan(model_kind, "cpu", settings)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kernels": "fast"}, "--kernels 'fast' is not known"),
        ({"compile": "yes"}, "--compile 'yes'"),
        ({"dtype": "int8"}, "--dtype 'int8'"),
        ({"batch_sizes": (1, 0)}, "--batch-size must be 1 or more"),
        ({"new_tokens": 0}, "--new-tokens must be"),
        ({"threads": -1}, "--threads must be"),
        ({"rounds": 3}, "too few"),
        ({"seconds": 0.0}, "more than 0"),
        ({"seconds": float("nan")}, "more than 0"),
        ({"seconds": float("inf")}, "more than 0, and a number"),
        ({"seed": -1}, "--seed must be 0 to"),
        ({"seed": 10**30}, "--seed must be 0 to"),
        ({"batch_sizes": (10**30,)}, "--batch-size is larger"),
    ],
)
def test_settings_without_meaning(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        BenchSettings(**fields)


def test_random_inputs_are_the_same_each_time_and_leave_special_ids_out() -> None:
    workload = Workload(4, 500, 1)
    tokens = random_tokens(LM, workload, 3)
    assert tokens.shape == (4, 500)
    assert torch.equal(tokens, random_tokens(LM, workload, 3))
    assert not torch.equal(tokens, random_tokens(LM, workload, 4))
    assert set(tokens.unique().tolist()) == set(range(100)) - {0, 5}
    pixels = random_pixels(VIT, Workload(2, 0, 0), 3)
    assert pixels.shape == (2, 3, 16, 8)
    assert torch.equal(pixels, random_pixels(VIT, Workload(2, 0, 0), 3))


def test_a_short_text_is_repeated() -> None:
    found = windows(torch.tensor([1, 2, 3]), Workload(2, 4, 0))
    assert found.tolist() == [[1, 2, 3, 1], [2, 3, 1, 2]]
