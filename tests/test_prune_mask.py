"""``prune --mask``: exactly what the masks say goes, and everything else keeps its bits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import masks
import pytest
import reference
import tiny_models
import torch
from blake3 import blake3
from forked import dying_after, forked
from full import few
from reference import Tensors

from prunectl import (
    NM,
    Plan,
    PruneSettings,
    Rule,
    Scope,
    open_checkpoint,
    plan_prune,
    prune,
    verify,
)
from prunectl.errors import (
    BadMaskFile,
    InvalidOption,
    MaskMismatch,
    NaNWeights,
    NothingPrunable,
    OutputConflict,
)
from prunectl.events import Event, Note
from prunectl.exporting.masks import export_masks
from prunectl.output.journal import Journal
from prunectl.output.manifest import read_manifest

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"
SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "manifest.schema.json").read_text())

Tiny = Callable[[str], Path]
Typed = Callable[..., tuple[int, str, str]]
HALF, GROUPS = PruneSettings(sparsity=0.5), PruneSettings(pattern=NM(2, 4))


def by(path: Path) -> PruneSettings:
    return PruneSettings(mask=path)


def weights_of(folder: Path) -> dict[str, bytes]:
    """The weight files, byte for byte."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".safetensors"}


def assert_verified(folder: Path) -> None:
    report = verify(folder)
    assert report.ok, report.differences
    assert all(check.passed for check in report.checks if check.name != "loads")


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings"),
    few(
        [(model, HALF) for model in ("bert", "albert", "gpt2", "llama", "t5", "mixtral", "whisper")]
        + [(model, GROUPS) for model in ("gpt2", "mixtral", "gpt_oss", "llama4")],
        *[("bert", HALF), ("albert", HALF), ("gpt2", GROUPS), ("gpt_oss", GROUPS)],
    ),
)
def test_masks_of_an_output_applied_to_its_source_give_its_bytes(
    tiny: Tiny, tmp_path: Path, model: str, settings: PruneSettings
) -> None:
    first = prune(tiny(model), tmp_path / "first", settings)
    export_masks(tmp_path / "first", tmp_path / "m")
    notes: list[Event] = []
    again = prune(tiny(model), tmp_path / "again", by(tmp_path / "m"), on_event=notes.append)
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "first")
    assert not [note for note in notes if isinstance(note, Note) and not note.warning]
    for count in ("prunable_weights", "prunable_zeros", "weights", "zeros", "zeros_before"):
        assert getattr(again, count) == getattr(first, count), count
    old, new = read_manifest(tmp_path / "first"), read_manifest(tmp_path / "again")
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert (after.name, after.pattern, after.zeros) == (
            before.name,
            before.pattern,
            before.zeros,
        )
        assert (after.blake3, after.input_axis) == (before.blake3, before.input_axis)
        assert after.threshold is None
    assert_verified(tmp_path / "again")


@pytest.mark.parametrize(
    "settings",
    [
        PruneSettings(sparsity=0.3, scope=Scope.ROW),
        PruneSettings(sparsity=0.4, pattern=NM(2, 4)),
        PruneSettings(sparsity=0.5, include=("lm_head",), exclude=("*.q_proj.*",)),
        PruneSettings(
            rules=(Rule(("*.mlp.*",), pattern=NM(4, 8)), Rule(("*.self_attn.*",), sparsity=0.2))
        ),
    ],
    ids=["rows", "budget", "filters", "recipe"],
)
def test_however_it_was_pruned(tiny: Tiny, tmp_path: Path, settings: PruneSettings) -> None:
    source = tiny("llama_untied")
    prune(source, tmp_path / "first", settings, max_shard_size=20_000)
    export_masks(tmp_path / "first", tmp_path / "m")
    prune(source, tmp_path / "again", by(tmp_path / "m"), max_shard_size=20_000)
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "first")
    assert_verified(tmp_path / "again")


def test_the_share_of_a_budget_is_of_all_prunable_weights(tiny: Tiny, tmp_path: Path) -> None:
    settings = PruneSettings(sparsity=0.25, pattern=NM(2, 4))
    first = prune(tiny("llama"), tmp_path / "first", settings)
    export_masks(tmp_path / "first", tmp_path / "m")
    again = prune(tiny("llama"), tmp_path / "again", by(tmp_path / "m"))
    assert again.sparsity == first.sparsity < 0.4
    (pool,) = again.pools
    assert (pool.pattern, pool.label, pool.achieved, pool.note) == ("mask", "m", 0.5, "")


def as_pickle(source: Path, target: Path, state: Tensors) -> Path:
    target.mkdir()
    shutil.copyfile(source / "config.json", target / "config.json")
    torch.save(state, target / "pytorch_model.bin")
    return target


@pytest.mark.parametrize("model", few(["bert", "llama", "gpt2", "t5", "albert"]))
def test_pickles_with_tied_weights(tiny: Tiny, tmp_path: Path, model: str) -> None:
    source = as_pickle(tiny(model), tmp_path / "source", dict(tiny_models.make(model).state_dict()))
    prune(source, tmp_path / "first", HALF)
    export_masks(tmp_path / "first", tmp_path / "m")
    prune(source, tmp_path / "again", by(tmp_path / "m"))
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "first")
    assert_verified(tmp_path / "again")


def test_one_tensor_under_two_names_has_two_masks_that_agree(tiny: Tiny, tmp_path: Path) -> None:
    state = dict(tiny_models.make("bert_base").state_dict())
    first, second = (f"encoder.layer.{i}.output.dense.weight" for i in range(2))
    state[second] = state[first]
    turned = "encoder.layer.0.intermediate.dense.weight"
    state[turned] = state[turned].t().contiguous().t()
    source = as_pickle(tiny("bert_base"), tmp_path / "source", state)
    prune(source, tmp_path / "first", HALF)
    export_masks(tmp_path / "first", tmp_path / "m")
    metadata, bits = masks.parts(tmp_path / "m")
    assert bits[first] == bits[second]
    prune(source, tmp_path / "again", by(tmp_path / "m"))
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "first")
    assert_verified(tmp_path / "again")
    # Masks of another model, which keeps the two apart, cannot both be applied.
    described = json.loads(metadata["masks"])
    bits[second] = bits[second][::-1]
    assert bits[first] != bits[second]
    masks.write_raw(tmp_path / "m", metadata | {"masks": json.dumps(described)}, bits)
    with pytest.raises(BadMaskFile, match="are one tensor"):
        prune(source, tmp_path / "third", by(tmp_path / "m"))
    assert not (tmp_path / "third").exists()


# --- against a plain reference --------------------------------------------------------------------


def weights(dtype: torch.dtype) -> Tensors:
    torch.manual_seed(0)
    up = torch.randn(13, 9).to(dtype)
    up[0], up[1, ::2], up[2, 3] = 0.0, -0.0, float("inf")
    return {
        EMBED: torch.randn(7, 9).to(dtype),
        UP: up,
        DOWN: torch.randn(9, 13).to(dtype),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(9, 9).to(dtype),
        "steps": torch.arange(3),
    }


@pytest.mark.parametrize(
    "dtype",
    few(
        [torch.float32, torch.float16, torch.bfloat16, torch.float64], torch.float32, torch.bfloat16
    ),
)
def test_handmade_masks(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = weights(dtype)
    source = reference.save(tmp_path / "source", tensors)
    made = masks.random_masks(tensors, [EMBED, UP, DOWN])
    path = masks.write(tmp_path / "m", made)
    result = prune(source, tmp_path / "out", by(path))
    expected = {n: masks.applied(t, made[n][1]) if n in made else t for n, t in tensors.items()}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    prunable = [name for name in tensors if name != "steps"]  # the mask adds the embedding
    assert result.prunable_zeros == reference.zeros(expected[name] for name in prunable)
    assert result.prunable_zeros_before == reference.zeros(tensors[name] for name in prunable)
    (pool,) = result.pools
    assert pool.zeros == reference.zeros(expected[name] for name in made)
    assert pool.requested is pool.threshold is None
    assert result.warnings == ()
    reasons = {one.name: one.reason for one in result.tensors if one.action == "copy"}
    assert reasons == {
        "model.layers.0.self_attn.q_proj.weight": "the file has no mask for it",
        "steps": "int64 has no magnitudes",
    }
    assert_verified(tmp_path / "out")


def test_tensors_of_several_blocks_by_threads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {UP: torch.randn(1201, 701), DOWN: torch.randn(701, 1201).half()}
    made = masks.random_masks(tensors, [UP, DOWN])
    reference.save(tmp_path / "source", tensors)
    path = masks.write(tmp_path / "m", made)
    for jobs in (1, 3):
        prune(tmp_path / "source", tmp_path / f"{jobs}", by(path), jobs=jobs)
        expected = {name: masks.applied(t, made[name][1]) for name, t in tensors.items()}
        reference.assert_same(reference.stored(tmp_path / f"{jobs}"), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_groups_of_several_blocks(tmp_path: Path, axis: int) -> None:
    torch.manual_seed(0)
    shape = (1204, 701) if axis == 0 else (701, 1204)
    tensors = {UP: torch.randn(shape)}
    kept = (reference.nm(torch.rand(shape), 2, 4, axis) != 0).flatten().int().tolist()
    description = masks.described(shape, kept, pattern="2:4", input_axis=axis)
    path = masks.write(tmp_path / "m", {UP: (shape, kept)}, {UP: description})
    reference.save(tmp_path / "source", tensors)
    prune(tmp_path / "source", tmp_path / "out", by(path))
    expected = {UP: masks.applied(tensors[UP], kept)}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    (record,) = read_manifest(tmp_path / "out").tensors
    assert (record.pattern, record.input_axis) == ("2:4", axis)
    assert_verified(tmp_path / "out")


def test_an_empty_tensor_and_its_mask(tmp_path: Path) -> None:
    tensors = weights(torch.float32) | {"model.layers.0.empty": torch.empty(0, 4)}
    made = masks.random_masks(tensors, [UP, "model.layers.0.empty"])
    reference.save(tmp_path / "source", tensors)
    path = masks.write(tmp_path / "m", made)
    prune(tmp_path / "source", tmp_path / "out", by(path))
    expected = {**tensors, UP: masks.applied(tensors[UP], made[UP][1])}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    assert_verified(tmp_path / "out")
    masks.write(path, masks.random_masks(tensors, ["model.layers.0.empty"]))
    with pytest.raises(NothingPrunable, match="empty"):
        prune(tmp_path / "source", tmp_path / "none", by(path))


def test_only_a_masked_tensor_must_not_hold_nan(tmp_path: Path) -> None:
    tensors = weights(torch.float32)
    tensors[DOWN][3, 4] = float("nan")
    source = reference.save(tmp_path / "source", tensors)
    made = masks.random_masks(tensors, [UP])
    prune(source, tmp_path / "out", by(masks.write(tmp_path / "m", made)))
    expected = {**tensors, UP: masks.applied(tensors[UP], made[UP][1])}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    masks.write(tmp_path / "m", masks.random_masks(tensors, [UP, DOWN]))
    with pytest.raises(NaNWeights, match=re.escape(DOWN)) as caught:
        prune(source, tmp_path / "bad", by(tmp_path / "m"))
    assert "--exclude" not in caught.value.hint
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out", "m"}


# --- the model and the file -----------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return reference.save(tmp_path / "source", weights(torch.float32))


def test_masks_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    ones = [1] * 117
    others = {
        "gone.weight": ((2, 2), [1, 1, 1, 1]),
        UP: ((9, 13), ones),
        "steps": ((3,), [1, 0, 1]),
        **{f"gone.{i}": ((1,), [1]) for i in range(5)},
    }
    path = masks.write(tmp_path / "m", others)
    with pytest.raises(MaskMismatch) as caught:
        prune(source, tmp_path / "out", by(path))
    text = str(caught.value)
    assert "'gone.weight' is not in the model" in text
    assert f"'{UP}' has shape [13, 9], its mask [9, 13]" in text
    assert "'steps' is int64, which cannot be pruned" in text
    assert text.endswith("; and 5 more")
    assert len(caught.value.problems) == 8
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_the_bits_break_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    tensors = {UP: torch.ones(4, 8)}
    bits = [1, 1, 0, 0] * 7 + [1, 1, 1, 0]
    lie = masks.described((4, 8), bits, pattern="2:4", input_axis=1)
    path = masks.write(tmp_path / "m", {UP: ((4, 8), bits)}, {UP: lie})
    reference.save(tmp_path / "source", tensors)
    with pytest.raises(BadMaskFile, match="keeps more than 2 of 4 weights"):
        prune(tmp_path / "source", tmp_path / "out", by(path))
    assert {p.name for p in tmp_path.iterdir()} == {"source", "m"}


def test_bits_that_the_header_contradicts_are_found_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    made = masks.random_masks(weights(torch.float32), [UP])
    lie = masks.described(*made[UP]) | {"zeros": 1}
    path = masks.write(tmp_path / "m", made, {UP: lie})
    assert isinstance(plan_prune(source, by(path)), Plan)  # headers alone do not tell
    with pytest.raises(BadMaskFile, match="the header says 1"):
        prune(source, tmp_path / "out", by(path))
    assert {p.name for p in tmp_path.iterdir()} == {"source", "m"}


def test_another_model_of_the_same_shapes(tiny: Tiny, tmp_path: Path) -> None:
    prune(tiny("llama"), tmp_path / "first", HALF)
    export_masks(tmp_path / "first", tmp_path / "m")
    other = tmp_path / "other"
    torch.manual_seed(7)
    noise = {n: torch.randn_like(t) for n, t in reference.stored(tiny("llama")).items()}
    reference.save(other, noise)
    path = other / "model.safetensors"
    data = path.read_bytes()  # a header that is 8 bytes longer: another file of the same tensors
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8
                     + data[8 + size :])  # fmt: skip
    notes: list[Event] = []
    prune(other, tmp_path / "out", by(tmp_path / "m"), on_event=notes.append)
    (note,) = [n for n in notes if isinstance(n, Note) and "made from" in n.text]
    assert "made from llama," in note.text
    bits = {
        name: masks.bits_of(tensor)
        for name, tensor in reference.stored(tmp_path / "first").items()
        if name in masks.parts(tmp_path / "m")[1]
    }
    expected = {n: masks.applied(t, bits[n]) if n in bits else t for n, t in noise.items()}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("repo_id", "commit", "noted"),
    [("org/a", "1" * 40, False), ("org/a", "2" * 40, True), ("org/b", "1" * 40, True)],
)
def test_hub_models_are_told_apart_by_commit(
    source: Path, tmp_path: Path, repo_id: str, commit: str, noted: bool
) -> None:
    checkpoint = open_checkpoint(source)
    for key, value in {"kind": "hub", "repo_id": repo_id, "commit": commit}.items():
        object.__setattr__(checkpoint, key, value)
    of = {**masks.SOURCE, "model": "a", "kind": "hub", "repo_id": "org/a", "commit": "1" * 40}
    made = masks.random_masks(weights(torch.float32), [UP])
    path = masks.write(tmp_path / "m", made, source=json.dumps(of))
    plan = plan_prune(checkpoint, by(path))
    assert bool(plan.notes) == noted
    assert all("org/a at commit 111111111111" in note for note in plan.notes)


def test_the_name_of_a_source_does_not_reach_the_terminal_as_it_is(
    source: Path, tmp_path: Path
) -> None:
    of = {**masks.SOURCE, "model": "\x1b[2J\nevil", "files": [{"name": "x", "size": 1}]}
    made = masks.random_masks(weights(torch.float32), [UP])
    path = masks.write(tmp_path / "m", made, source=json.dumps(of))
    (note,) = plan_prune(source, by(path)).notes
    assert "made from ?[2J?evil," in note


def test_the_manifest_records_the_file(source: Path, tmp_path: Path) -> None:
    made = masks.random_masks(weights(torch.float32), [UP, DOWN])
    path = masks.write(tmp_path / "m", made)
    prune(source, tmp_path / "out", by(path))
    document = json.loads((tmp_path / "out" / "prunectl.json").read_bytes())
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert document["arguments"] == {
        "method": "mask",
        "mask": {
            "file": "m",
            "blake3": blake3(path.read_bytes()).hexdigest(),
            "source": masks.SOURCE,
        },
        "max_shard_size": 5_000_000_000,
    }
    assert document["totals"]["prunable"]["requested"] is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pruning by a file of masks" in card
    assert "scope" not in card


def test_the_output_does_not_replace_the_file_of_masks(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = masks.random_masks(weights(torch.float32), [UP])
    path = masks.write(out / "m.safetensors", made)
    (out / "config.json").write_text('{"model_type": "x"}')
    before = reference.contents(out)
    with pytest.raises(OutputConflict, match=re.escape(str(path))):
        prune(source, out, by(path), force=True)
    assert reference.contents(out) == before


# --- interrupted ------------------------------------------------------------------------------


def test_a_killed_run_goes_on_with_the_same_masks_only(source: Path, tmp_path: Path) -> None:
    tensors = weights(torch.float32)
    made = {seed: masks.random_masks(tensors, [EMBED, UP, DOWN], seed) for seed in (1, 2)}
    paths = {seed: masks.write(tmp_path / f"m{seed}", made[seed]) for seed in (1, 2)}
    for seed, kept in ((1, 2), (2, 0)):
        out = tmp_path / "out"

        def work(out: Path = out) -> None:
            dying_after(Journal, "add", 2)
            prune(source, out, by(paths[1]), max_shard_size=500, jobs=1)

        assert forked(work) == -9
        assert not out.exists()
        result = prune(source, out, by(paths[seed]), max_shard_size=500)
        assert result.resumed_shards == kept
        bits = made[seed]
        expected = {n: masks.applied(t, bits[n][1]) if n in bits else t for n, t in tensors.items()}
        reference.assert_same(
            dict(sorted(reference.stored(out).items())), dict(sorted(expected.items()))
        )
        shutil.rmtree(out)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"sparsity": 0.5}, "--sparsity"),
        ({"pattern": "2:4"}, "--pattern"),
        ({"scope": "row"}, "--scope"),
        ({"include": "a"}, "--include"),
        ({"exclude": "a"}, "--exclude"),
        ({"rules": [Rule(("a",), skip=True)]}, "--recipe"),
    ],
)
def test_a_mask_goes_with_nothing_else(other: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidOption, match=f"--mask and {name} are given together"):
        PruneSettings(mask="m", **other)  # type: ignore[arg-type]


# --- the command line -----------------------------------------------------------------------------


def test_from_prune_to_masks_and_back(tiny: Tiny, typed: Typed) -> None:
    assert typed("prune", tiny("llama"), "-s", "0.4", "-o", "first", "-q") == (0, "", "")
    code, text, _ = typed("export", "first", "--masks-only", "-o", "masks.safetensors")
    assert code == 0
    assert "prunectl prune MODEL --mask masks.safetensors -o DIR" in text
    code, text, _ = typed("prune", tiny("llama"), "--mask", "masks.safetensors", "-o", "again")
    assert code == 0
    assert "by mask" in text
    assert "the masks of masks.safetensors" in text
    assert "threshold" not in text
    assert weights_of(Path("again")) == weights_of(Path("first"))
    assert typed("verify", "again")[0] == 0


def test_json_documents(tiny: Tiny, typed: Typed) -> None:
    typed("prune", tiny("llama"), "-p", "2:4", "-o", "first", "-q")
    code, text, _ = typed("export", "first", "--masks-only", "-o", "m", "--json")
    assert code == 0
    exported = json.loads(text)
    assert exported["schema"] == "prunectl.masks/1"
    assert (exported["output"], exported["tensors"]) == ("m", 14)
    assert exported["nbytes"] == Path("m").stat().st_size
    code, text, _ = typed("prune", tiny("llama"), "--mask", "m", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(text)
    (pool,) = plan["pools"]
    assert (pool["pattern"], pool["scope"], pool["sparsity"]) == ("mask", None, None)
    assert (pool["weights"], pool["zeros"]) == (exported["weights"], exported["zeros"])
    assert {t["pattern"] for t in plan["tensors"] if t["action"] == "prune"} == {"2:4"}
    code, text, _ = typed("prune", tiny("llama"), "--mask", "m", "-o", "again", "--json")
    assert code == 0
    result = json.loads(text)
    assert result["prunable_zeros"] == exported["zeros"]
    assert result["pools"][0]["pattern"] == "mask"
    assert {t["pattern"] for t in result["tensors"] if t["action"] == "prune"} == {"2:4"}


def test_a_dry_run_shows_the_masks_share_and_writes_nothing(tiny: Tiny, typed: Typed) -> None:
    typed("prune", tiny("bert"), "-s", "0.5", "-o", "first", "-q")
    typed("export", "first", "--masks-only", "-o", "m", "-q")
    code, text, errors = typed("prune", tiny("bert"), "--mask", "m", "--dry-run")
    assert (code, errors) == (0, "")
    assert "50.0%" in text
    assert "prune unstructured by its mask" in text
    assert {path.name for path in Path().iterdir()} == {"first", "m"}
    masks.write(Path("m"), {}, masks="{}")
    assert typed("prune", tiny("bert"), "--mask", "m", "--dry-run")[0] == 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--mask", "gone"], 1, "gone: no such file"),
        (["--mask", "."], 1, "is a folder"),
        (["--mask", "text"], 1, "not a safetensors file"),
        (["--mask", "weights"], 1, "not a file of masks"),
        (["--mask", "newer"], 1, "pip install -U prunectl"),
        (["--mask", "misfit"], 2, "does not fit"),
        (["--mask", "text", "-s", "0.5"], 2, "--mask and --sparsity"),
        (["--mask", "text", "-p", "unstructured"], 2, "--mask and --pattern"),
        (["--mask", "text", "--scope", "global"], 2, "--mask and --scope"),
        (["--mask", "text", "--include", "a", "--exclude", "b"], 2, "--mask and --include, --ex"),
        (["--mask", "text", "--recipe", "gone.toml"], 2, "--mask and --recipe"),
    ],
)
def test_exit_codes_of_prune(
    source: Path, typed: Typed, options: list[str], code: int, words: str
) -> None:
    Path("text").write_text("no masks in here")
    shutil.copyfile(source / "model.safetensors", "weights")
    ones = {"gone": ((1,), [0])}
    masks.write(Path("newer"), ones, format="prunectl.masks/9")
    masks.write(Path("misfit"), ones)
    found, text, errors = typed("prune", source, *options, "-o", "out")
    assert (found, text) == (code, "")
    assert words in errors
    assert len(errors.splitlines()) == 2
    assert not Path("out").exists()


def test_exit_codes_of_export(source: Path, tiny: Tiny, typed: Typed) -> None:
    code, _, errors = typed("export", tiny("bert"), "--masks-only", "-o", "m")
    assert code == 2
    assert "no masks to write" in errors
    code, _, errors = typed("export", source, "--masks-only", "-o", source / "m")
    assert code == 2
    assert "lies in the source" in errors
    code, _, errors = typed("export", source, "--masks-only", "-o", "no/m")
    assert code == 1
    assert "there is no folder" in errors
    assert typed("export", source, "--masks-only", "-o", "m", "-q") == (0, "", "")
    code, _, errors = typed("export", source, "--masks-only", "-o", "m")
    assert code == 2
    assert "--force" in errors
    assert typed("export", source, "--masks-only", "-o", "m", "-q", "--force")[0] == 0


# --- trained models -------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "settings"),
    few(
        [
            ("minilm", PruneSettings(sparsity=0.4)),
            ("minilm", GROUPS),
            ("rxnfp/bert_ft", PruneSettings(sparsity=0.4)),
            ("rxnmapper", GROUPS),
            ("smollm2-bin", PruneSettings(sparsity=0.4)),
        ],
        ("minilm", GROUPS),
        ("rxnmapper", GROUPS),
    ),
)
def test_real_models_there_and_back(
    real_model: Callable[[str], Path], tmp_path: Path, name: str, settings: PruneSettings
) -> None:
    source = real_model(name)
    first = prune(source, tmp_path / "first", settings)
    exported = export_masks(tmp_path / "first", tmp_path / "m")
    again = prune(source, tmp_path / "again", by(tmp_path / "m"))
    names = [path.name for path in (tmp_path / "first").glob("*.safetensors")]
    assert len(names) == first.shards
    for file in names:
        one, other = (tmp_path / side / file for side in ("first", "again"))
        assert blake3().update_mmap(one).digest() == blake3().update_mmap(other).digest()
    assert again.prunable_zeros == first.prunable_zeros
    assert exported.nbytes < exported.weights / 8 + 64_000
    assert (tmp_path / "m").stat().st_size == exported.nbytes
    assert_verified(tmp_path / "again")
