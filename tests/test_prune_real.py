"""``prune`` on real trained checkpoints: the plain reference's bits, and models that still work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import transformers
from full import few
from reference import Tensors

from prunectl import NM, PruneSettings, Scope, prune, verify
from prunectl.events import Event, Note

pytestmark = pytest.mark.real

RealModel = Callable[[str], Path]

BERT = (
    r"(bert\.)?encoder\.layer\.\d+\.(attention\.(self\.(query|key|value)|output\.dense)"
    r"|(intermediate|output)\.dense)\.weight"
)
LLAMA = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"

PAIRS = [
    ("A man is playing a guitar on stage.", "Someone performs music with a guitar."),
    ("The cat sleeps on the warm windowsill.", "A kitten is napping by the window."),
    ("How do I reset my password?", "I forgot my login and need to change it."),
    ("The stock market fell sharply today.", "Share prices dropped a lot this afternoon."),
    ("She is baking bread in the oven.", "A woman makes a loaf at home."),
    ("The train to Paris leaves at noon.", "Departure for Paris by rail is at twelve."),
]


def blocks(tensors: Tensors, rule: str) -> list[str]:
    return [name for name in tensors if re.fullmatch(rule, name)]


def assert_verified(folder: Path) -> None:
    report = verify(folder)
    assert report.ok, report.differences
    assert all(check.passed for check in report.checks)


def load(folder: Path, kind: Any = transformers.AutoModel) -> Any:
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


# --- all-MiniLM-L6-v2 -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm(real_model: RealModel) -> tuple[Path, Tensors, list[str]]:
    folder = real_model("minilm")
    tensors = reference.stored(folder)
    names = blocks(tensors, BERT)
    assert len(names) == 36
    return folder, tensors, names


Model = tuple[Path, Tensors, list[str]]


@pytest.mark.parametrize("sparsity", few([0.4, 0.9]))
def test_minilm_global(minilm: Model, tmp_path: Path, sparsity: float) -> None:
    folder, tensors, names = minilm
    result = prune(folder, tmp_path / "out", PruneSettings(sparsity=sparsity))
    expected = reference.together(tensors, names, sparsity)
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    assert result.prunable_weights == sum(tensors[name].numel() for name in names)
    assert result.prunable_zeros == reference.count(sparsity, result.prunable_weights)
    assert_verified(tmp_path / "out")


@pytest.mark.parametrize("pattern", [(2, 4), pytest.param((4, 8), marks=pytest.mark.full)])
def test_minilm_n_of_m(minilm: Model, tmp_path: Path, pattern: tuple[int, int]) -> None:
    folder, tensors, names = minilm
    prune(folder, tmp_path / "out", PruneSettings(pattern=NM(*pattern)))
    expected = {**tensors, **{name: reference.nm(tensors[name], *pattern) for name in names}}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)


def test_minilm_budget(minilm: Model, tmp_path: Path) -> None:
    folder, tensors, names = minilm
    choice = PruneSettings(sparsity=0.4, pattern=NM(2, 4))
    result = prune(folder, tmp_path / "out", choice)
    expected = reference.budget(tensors, names, 2, 4, 0.4)
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    assert abs(result.sparsity - 0.4) < 0.03
    assert_verified(tmp_path / "out")


def test_minilm_each_tensor(minilm: Model, tmp_path: Path) -> None:
    folder, tensors, names = minilm
    prune(folder, tmp_path / "out", PruneSettings(sparsity=0.4, scope=Scope.TENSOR))
    expected = {**tensors, **{name: reference.alone(tensors[name], 0.4) for name in names}}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)


def test_minilm_keeps_every_file_of_sentence_transformers(minilm: Model, tmp_path: Path) -> None:
    folder, *_ = minilm
    prune(folder, tmp_path / "out", PruneSettings(sparsity=0.3))
    source, output = reference.contents(folder), reference.contents(tmp_path / "out")
    new = {"README.md", "model.safetensors", "prunectl.json"}
    left_out = source.keys() - output.keys()
    assert left_out <= {".gitattributes"}
    assert {n: output[n] for n in output.keys() - new} == {
        n: source[n] for n in source.keys() - new - left_out
    }


def embed(folder: Path, sentences: list[str]) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = load(folder)(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def test_minilm_at_30_percent_still_ranks_related_pairs_first(
    minilm: Model, tmp_path: Path
) -> None:
    folder, *_ = minilm
    prune(folder, tmp_path / "out", PruneSettings(sparsity=0.3))
    left = embed(tmp_path / "out", [a for a, _ in PAIRS])
    right = embed(tmp_path / "out", [b for _, b in PAIRS])
    likeness = left @ right.T
    related = likeness.diagonal()
    unrelated = likeness.masked_fill(torch.eye(len(PAIRS), dtype=torch.bool), -1)
    assert (related > unrelated.amax(1)).all()
    assert (related > unrelated.amax(0)).all()
    # Unlike random weights, by which all sentences look alike.
    assert related.min() > unrelated.max()


# --- rxnfp, rxnmapper: pickles ------------------------------------------------------------------


@pytest.mark.parametrize("name", few(["bert_pretrained", "bert_ft", "bert_ft_10k_25s"]))
def test_rxnfp_pickles(real_model: RealModel, tmp_path: Path, name: str) -> None:
    folder = real_model(f"rxnfp/{name}")
    tensors = reference.stored(folder)
    names = blocks(tensors, BERT)
    assert len(names) == 72
    result = prune(folder, tmp_path / "out", PruneSettings(sparsity=0.4))
    expected = reference.together(tensors, names, 0.4)
    output = reference.stored(tmp_path / "out")
    reference.assert_same({n: output[n] for n in names}, {n: expected[n] for n in names})
    for shared in output.keys() & expected.keys():
        assert reference.raw(output[shared]) == reference.raw(expected[shared]), shared
    assert result.prunable_zeros == reference.count(0.4, result.prunable_weights)
    report = verify(tmp_path / "out")
    assert report.ok, report.differences
    model = transformers.BertModel.from_pretrained(tmp_path / "out")
    live = model.encoder.layer[3].output.dense.weight
    (stored,) = [n for n in names if "layer.3.output.dense" in n and "attention" not in n]
    assert torch.equal(live, expected[stored])


def test_rxnmapper_shares_its_layers(real_model: RealModel, tmp_path: Path) -> None:
    folder = real_model("rxnmapper")
    tensors = reference.stored(folder)
    rule = r".*albert_layers\.0\.(attention\.[a-z]+|ffn(_output)?)\.weight"
    names = blocks(tensors, rule)
    assert len(names) == 6
    prune(folder, tmp_path / "out", PruneSettings(pattern=NM(2, 4)))
    output = reference.stored(tmp_path / "out")
    for name in names:
        assert reference.raw(output[name]) == reference.raw(reference.nm(tensors[name], 2, 4))
    notes: list[Event] = []
    report = verify(tmp_path / "out", on_event=notes.append)
    assert report.ok, report.differences
    # Its file holds a pooler that a masked language model has no use for.
    assert any(isinstance(n, Note) and "albert.pooler.weight" in n.text for n in notes)
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    shared = model.albert.encoder.albert_layer_groups[0].albert_layers[0].ffn.weight
    assert float((shared == 0).float().mean()) == 0.5


# --- SmolLM2 --------------------------------------------------------------------------------------


@pytest.mark.full
def test_smollm2_safetensors_and_pickle_shards_give_the_same_tensors(
    real_model: RealModel, tmp_path: Path
) -> None:
    folder = real_model("smollm2")
    tensors = reference.stored(folder)
    names = blocks(tensors, LLAMA)
    assert len(names) == 210
    expected = reference.together(tensors, names, 0.4)
    for model, out in ((folder, "a"), (real_model("smollm2-bin"), "b")):
        prune(model, tmp_path / out, PruneSettings(sparsity=0.4))
        reference.assert_same(reference.stored(tmp_path / out), expected)
    assert_verified(tmp_path / "b")
    model = load(tmp_path / "b", transformers.AutoModelForCausalLM)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    live = model.state_dict()
    assert all(torch.equal(live[name], expected[name]) for name in names)


@pytest.mark.full
def test_smollm2_2_4_in_shards(real_model: RealModel, tmp_path: Path) -> None:
    folder = real_model("smollm2-bin")
    result = prune(
        folder, tmp_path / "out", PruneSettings(pattern=NM(2, 4)), max_shard_size=100_000_000
    )
    assert result.shards == 3
    tensors = reference.stored(folder)
    output = reference.stored(tmp_path / "out")
    assert output.keys() == tensors.keys()
    names = set(blocks(tensors, LLAMA))
    for name, tensor in tensors.items():
        wanted = reference.nm(tensor, 2, 4) if name in names else tensor
        assert reference.raw(output[name]) == reference.raw(wanted), name
    assert_verified(tmp_path / "out")
