"""``prune`` on every small architecture: the reference's bits, and transformers loads them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import reference
import tiny_models
import torch
import transformers
import yaml
from full import few
from reference import Tensors
from test_modules import expected_prunable
from torch import nn
from transformers.pytorch_utils import Conv1D

from prunectl import NM, PruneSettings, Scope, prune, verify
from prunectl.output.manifest import read_manifest

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "manifest.schema.json").read_text())
Tiny = Callable[[str], Path]

# Stacked experts are multiplied from the left in these: (experts, in, out).
INPUT_FIRST = {"gpt_oss", "llama4"}


def input_axis(model: str, name: str, live: Tensors) -> int:
    """Where a stored matrix has its inputs, told without prunectl."""
    if model in INPUT_FIRST and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return 1
    layers = [m for m in tiny_models.make(model).modules() if isinstance(m, Conv1D)]
    return 0 if any(torch.equal(layer.weight, live[name]) for layer in layers) else -1


def load(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    return model, info


def assert_loads(folder: Path, expected: Tensors, source: Path) -> None:
    """Nothing missing or left over, and the parameters are those of the expected tensors.

    The expected model is loaded by transformers from a folder that safetensors itself wrote.
    """
    model, info = load(folder)
    assert {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
    }
    plain = folder.with_name(folder.name + "-reference")
    reference.save(plain, {name: tensor.contiguous() for name, tensor in expected.items()})
    shutil.copyfile(source / "config.json", plain / "config.json")
    wanted = load(plain)[0].state_dict()
    reference.assert_same(model.state_dict(), wanted)


@pytest.mark.parametrize("model", few(tiny_models.NAMES, *tiny_models.FEW))
def test_half_of_every_architecture(tiny: Tiny, tmp_path: Path, model: str) -> None:
    source = reference.stored(tiny(model))
    names = [name for name in source if name in expected_prunable(model, list(source))]
    result = prune(tiny(model), tmp_path / "out", PruneSettings(sparsity=0.5))
    expected = reference.together(source, names, 0.5)
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    assert result.prunable_zeros == reference.count(0.5, sum(source[n].numel() for n in names))
    assert_loads(tmp_path / "out", expected, tiny(model))
    report = verify(tmp_path / "out")
    assert report.ok, report.differences
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize("model", few(tiny_models.NAMES, *tiny_models.FEW))
def test_2_4_of_every_architecture(tiny: Tiny, tmp_path: Path, model: str) -> None:
    source = reference.stored(tiny(model))
    names = [name for name in source if name in expected_prunable(model, list(source))]
    result = prune(tiny(model), tmp_path / "out", PruneSettings(pattern=NM(2, 4)))
    axes = {name: input_axis(model, name, source) for name in names}
    fitting = [name for name in names if source[name].shape[axes[name]] % 4 == 0]
    expected = dict(source)
    for name in fitting:
        expected[name] = reference.nm(source[name], 2, 4, axes[name])
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    unfit = {one.name: one.reason for one in result.tensors if one.prunable and one.reason}
    assert unfit.keys() == set(names) - set(fitting)
    assert all("not divisible by 4" in reason for reason in unfit.values())
    assert_loads(tmp_path / "out", expected, tiny(model))
    report = verify(tmp_path / "out")
    assert report.ok, report.differences


@pytest.mark.parametrize("model", few(["gpt2", "gpt_oss", "llama4", "mixtral"], "gpt2", "gpt_oss"))
def test_rows_run_along_the_inputs(tiny: Tiny, tmp_path: Path, model: str) -> None:
    source = reference.stored(tiny(model))
    names = [name for name in source if name in expected_prunable(model, list(source))]
    prune(tiny(model), tmp_path / "out", PruneSettings(sparsity=0.3, scope=Scope.ROW))
    expected = dict(source)
    for name in names:
        expected[name] = reference.rows(source[name], 0.3, input_axis(model, name, source))
    reference.assert_same(reference.stored(tmp_path / "out"), expected)


def test_a_budget_of_conv1d_matrices(tiny: Tiny, tmp_path: Path) -> None:
    source = reference.stored(tiny("gpt2"))
    names = [name for name in source if name in expected_prunable("gpt2", list(source))]
    prune(tiny("gpt2"), tmp_path / "out", PruneSettings(sparsity=0.4, pattern=NM(2, 4)))
    expected = reference.budget(source, names, 2, 4, 0.4, axis=0)
    reference.assert_same(reference.stored(tmp_path / "out"), expected)


# --- pickles ------------------------------------------------------------------------------------


def as_pickle(source: Path, target: Path, state: Tensors) -> Path:
    target.mkdir()
    shutil.copyfile(source / "config.json", target / "config.json")
    torch.save(state, target / "pytorch_model.bin")
    return target


@pytest.mark.parametrize(
    ("model", "further"),
    few(
        [
            ("bert", "cls.predictions.decoder.weight"),
            ("llama", "lm_head.weight"),
            ("gpt2", "lm_head.weight"),
            ("t5", "lm_head.weight"),
            ("albert", "predictions.decoder.weight"),
        ],
        ("llama", "lm_head.weight"),
    ),
)
def test_tied_weights_of_a_pickle_are_written_once_and_hold(
    tiny: Tiny, tmp_path: Path, model: str, further: str
) -> None:
    live = tiny_models.make(model)
    state = live.state_dict()
    assert further in state
    source = as_pickle(tiny(model), tmp_path / "source", dict(state))
    result = prune(source, tmp_path / "out", PruneSettings(sparsity=0.5))
    output = reference.stored(tmp_path / "out")
    # What transformers itself stores of this model.
    assert output.keys() == reference.stored(tiny(model)).keys()
    own = reference.stored(source)
    names = [name for name in own if name in expected_prunable(model, list(own))]
    by_source = reference.together(own, names, 0.5)
    for name, tensor in output.items():
        assert reference.raw(tensor) == reference.raw(by_source.get(name, state[name])), name
    loaded, info = load(tmp_path / "out")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert head.weight.data_ptr() == embedding.weight.data_ptr()
    assert result.weights == sum(t.numel() for t in own.values() if t.is_floating_point())
    report = verify(tmp_path / "out")
    assert report.ok, report.differences


def test_tied_weights_that_the_model_keeps_apart_are_written_under_both_names(
    tiny: Tiny, tmp_path: Path
) -> None:
    state = dict(tiny_models.make("llama_untied").state_dict())
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    source = as_pickle(tiny("llama_untied"), tmp_path / "source", state)
    result = prune(source, tmp_path / "out", PruneSettings(sparsity=0.5))
    output = reference.stored(tmp_path / "out")
    assert output.keys() == state.keys()
    reference.assert_same({"": output["lm_head.weight"]}, {"": state["model.embed_tokens.weight"]})
    manifest = read_manifest(tmp_path / "out")
    assert manifest.overall.weights == result.weights
    assert result.weights == sum(t.numel() for n, t in state.items() if n != "lm_head.weight")
    assert not load(tmp_path / "out")[1]["missing_keys"]
    report = verify(tmp_path / "out")
    assert report.ok, report.differences


def test_layers_that_share_a_weight_are_pruned_once_and_stay_tied(
    tiny: Tiny, tmp_path: Path
) -> None:
    state = dict(tiny_models.make("bert_base").state_dict())
    first, second = (f"encoder.layer.{i}.output.dense.weight" for i in range(2))
    state[second] = state[first]
    source = as_pickle(tiny("bert_base"), tmp_path / "source", state)
    result = prune(source, tmp_path / "out", PruneSettings(sparsity=0.5))
    own = reference.stored(source)
    names = [name for name in own if name.endswith(".weight") and "dense" in name]
    names += [name for name in own if name.endswith(("query.weight", "key.weight", "value.weight"))]
    names = [name for name in own if name in names and "pooler" not in name]
    expected = reference.together(own, names, 0.5)
    output = reference.stored(tmp_path / "out")
    reference.assert_same(output, {**expected, second: expected[first]})
    assert result.prunable_weights == sum(own[name].numel() for name in names)
    report = verify(tmp_path / "out")
    assert report.ok, report.differences


def test_a_pickle_of_mixed_dtypes_odd_strides_and_buffers(tiny: Tiny, tmp_path: Path) -> None:
    state = dict(tiny_models.make("bert_base").state_dict())
    for i, (name, tensor) in enumerate(state.items()):
        if "query" in name or i % 3 == 0:
            state[name] = tensor.half()
    turned = "encoder.layer.0.intermediate.dense.weight"
    state[turned] = state[turned].t().contiguous().t()
    part = "encoder.layer.1.output.dense.weight"
    wide = torch.randn(state[part].shape[0], 3 * state[part].shape[1])
    state[part] = wide[:, 5 : 5 + state[part].shape[1]]
    state["embeddings.position_ids"] = torch.arange(20)[None]
    source = as_pickle(tiny("bert_base"), tmp_path / "source", state)
    assert not reference.stored(source)[turned].is_contiguous()
    for pattern in (None, NM(2, 4)):
        out = tmp_path / f"out-{pattern}"
        choice = PruneSettings(pattern=pattern) if pattern else PruneSettings(sparsity=0.5)
        prune(source, out, choice)
        own = reference.stored(source)
        names = [n for n in own if n in expected_prunable("bert_base", list(own))]
        if pattern:
            expected = {**own, **{name: reference.nm(own[name], 2, 4) for name in names}}
        else:
            expected = reference.together(own, names, 0.5)
        reference.assert_same(reference.stored(out), expected)
        report = verify(out)
        assert report.ok, report.differences


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A checkpoint with all that a repository holds besides its weights."""
    folder = tmp_path / "full"
    tiny_models.build("llama", folder)
    (folder / "tokenizer.json").write_bytes(b'{"fake":\r\n "\xc3\xa9"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("as it is")
    (folder / "modeling_own.py").write_text("raise SystemExit('never run')\n")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- mine\n---\n\n# Mine\n\nOf old.\n"
    )
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n\n")
    return folder


SIDES = (
    "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE",
    "modeling_own.py", "empty.txt", "1_Pooling/config.json",
)  # fmt: skip


def test_side_files_are_copied_byte_for_byte(full: Path, tmp_path: Path) -> None:
    prune(full, tmp_path / "out", PruneSettings(sparsity=0.5))
    source, output = reference.contents(full), reference.contents(tmp_path / "out")
    assert output.keys() == {*SIDES, "README.md", "model.safetensors", "prunectl.json"}
    for name in SIDES:
        assert output[name] == source[name], name


@pytest.mark.parametrize("umask", few([0o022, 0o077, 0o002], 0o077))
def test_modes_follow_the_umask(full: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        prune(full, tmp_path / "out", PruneSettings(sparsity=0.5), max_shard_size=10_000)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    folders = {
        stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out", *(tmp_path / "out").glob("1_*"))
    }
    assert modes == {0o666 & ~umask}
    assert folders == {0o777 & ~umask}


def test_the_manifest_is_valid_and_its_totals_agree(full: Path, tmp_path: Path) -> None:
    result = prune(full, tmp_path / "out", PruneSettings(sparsity=0.4, exclude=("*.o_proj.*",)))
    document = json.loads((tmp_path / "out" / "prunectl.json").read_bytes())
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    output, source = (reference.stored(f) for f in (tmp_path / "out", full))
    names = [n for n in source if "_proj" in n and "o_proj" not in n]
    total = document["totals"]["prunable"]
    assert total["weights"] == sum(source[n].numel() for n in names)
    assert total["zeros"] == reference.zeros(output[n] for n in names)
    assert total["zeros"] == reference.count(0.4, total["weights"])
    assert total["requested"] == 0.4
    overall = document["totals"]["overall"]
    assert overall["weights"] == sum(t.numel() for t in source.values())
    assert overall["zeros"] == reference.zeros(output.values())
    assert overall["zeros_before"] == reference.zeros(source.values())
    assert [t["name"] for t in document["tensors"]] == list(output)
    for tensor in document["tensors"]:
        assert tensor["zeros"] == reference.zeros([output[tensor["name"]]])
        assert tensor["zeros_before"] == reference.zeros([source[tensor["name"]]])
        assert (tensor["pattern"] == "unstructured") == (tensor["name"] in names)
    assert document["arguments"]["sparsity"] == 0.4
    assert document["source"]["model"] == str(full)
    assert (result.nbytes, result.shards) == (
        (tmp_path / "out/model.safetensors").stat().st_size,
        1,
    )


def test_the_card_keeps_the_sources_text(full: Path, tmp_path: Path) -> None:
    prune(full, tmp_path / "out", PruneSettings(sparsity=0.4), command="prunectl prune x -s 0.4")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "mit"
    assert data["tags"][0] == "mine"
    assert "prunectl" in data["tags"]
    assert "# Mine\n\nOf old." in text
    assert "prunectl prune x -s 0.4" in text


def test_a_model_without_a_card_gets_one(tiny: Tiny, tmp_path: Path) -> None:
    prune(tiny("bert"), tmp_path / "out", PruneSettings(sparsity=0.4))
    front = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert "prunectl" in yaml.safe_load(front)["tags"]


@pytest.mark.parametrize("limit", [5_000, 30_000])
@pytest.mark.parametrize("model", few(["llama", "bert", "gpt2"]))
def test_shards_and_index_are_those_of_transformers(
    tiny: Tiny, tmp_path: Path, model: str, limit: int
) -> None:
    prune(tiny(model), tmp_path / "out", PruneSettings(sparsity=0.5), max_shard_size=limit)
    # In the order of the file: transformers would split its own order at other places.
    load(tiny(model))[0].save_pretrained(
        tmp_path / "theirs", state_dict=reference.stored(tiny(model)), max_shard_size=limit
    )
    ours, theirs = (reference.contents(tmp_path / name) for name in ("out", "theirs"))
    weights = {name for name in theirs if name.endswith(".safetensors")}
    assert len(weights) > 2
    assert weights == {name for name in ours if name.endswith(".safetensors")}
    index = "model.safetensors.index.json"
    assert ours[index] == theirs[index]
    assert not load(tmp_path / "out")[1]["missing_keys"]


@pytest.mark.parametrize(
    "choice", few([PruneSettings(sparsity=0.5), PruneSettings(pattern=NM(2, 4))])
)
def test_two_runs_write_the_same_bytes(full: Path, tmp_path: Path, choice: PruneSettings) -> None:
    folders = []
    for i, jobs in enumerate((1, 4, None)):
        folders.append(tmp_path / f"out-{i}")
        prune(full, folders[-1], choice, max_shard_size=20_000, jobs=jobs)
    first = reference.contents(folders[0])
    assert len(first) > 12
    assert reference.contents(folders[1]) == first
    assert reference.contents(folders[2]) == first


def test_an_output_can_be_pruned_again(full: Path, tmp_path: Path) -> None:
    for name, source, sparsity in (("a", full, 0.3), ("b", tmp_path / "a", 0.6), ("c", full, 0.6)):
        prune(source, tmp_path / name, PruneSettings(sparsity=sparsity))
        report = verify(tmp_path / name)
        assert report.ok, report.differences
    twice, once = (reference.contents(tmp_path / name) for name in ("b", "c"))
    assert twice["model.safetensors"] == once["model.safetensors"]
    assert json.loads(twice["prunectl.json"])["source"]["model"] == str(tmp_path / "a")


def test_a_single_file_with_what_lies_beside_it(full: Path, tmp_path: Path) -> None:
    (full / "diary.txt").write_text("not a model's")
    prune(full / "model.safetensors", tmp_path / "out", PruneSettings(sparsity=0.5))
    output = reference.contents(tmp_path / "out")
    assert "config.json" in output
    assert "diary.txt" not in output
    assert verify(tmp_path / "out").ok
