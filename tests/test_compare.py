"""``compare``: counts against masks made plainly, measures against their definitions."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
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

import prunectl
from prunectl import NM, PruneSettings, Scope, open_checkpoint, prune
from prunectl.errors import (
    InvalidOption,
    InvalidSparsity,
    NaNWeights,
    UnsupportedCheckpoint,
)
from prunectl.events import Event, Note
from prunectl.exporting.masks import export_masks
from prunectl.exporting.verb import export
from prunectl.plan.prunable import input_axis
from prunectl.studies.compare.matching import Candidate, match
from prunectl.studies.compare.result import Overlap, above_chance
from prunectl.studies.compare.verb import compare
from prunectl.studies.errors import NothingToCompare
from prunectl.studies.settings import CompareSettings


def other(folder: Path, target: Path, seed: int, amount: float = 1.0) -> Path:
    """A copy of a model with noise on all weights; amount 1 leaves nothing of what was there."""
    torch.manual_seed(seed)
    tensors = reference.stored(folder)
    changed = {
        name: ((1 - amount) * one.float() + amount * one.float().std() * torch.randn(one.shape))
        .to(one.dtype) if one.ndim > 1 else one
        for name, one in tensors.items()
    }  # fmt: skip
    reference.save(target, changed)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return target


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in bf16, where many magnitudes are equal, and one that is a little like it."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.build("llama", folder / "one", torch.bfloat16)
    return folder / "one", other(folder / "one", folder / "other", 1, 0.3)


def prunable(folder: Path) -> dict[str, int | None]:
    """Names of the prunable tensors, in file order, and their input axes."""
    checkpoint = open_checkpoint(folder)
    plan = prunectl.plan_prune(checkpoint, PruneSettings(sparsity=0.5))
    return {one.spec.name: input_axis(one.spec, one.role) for one in plan.tensors if one.prunable}


def pruned(folder: Path, sparsity: float | None, pattern: NM | None = None,
           scope: str = "global") -> dict[str, np.ndarray[Any, Any]]:  # fmt: skip
    """Which weights go, by the plain reference: True is pruned."""
    tensors, axes = reference.stored(folder), prunable(folder)
    if pattern is not None:
        made = {n: reference.nm(tensors[n], pattern.n, pattern.m, a or -1)
                for n, a in axes.items()}  # fmt: skip
    elif scope == "row":
        made = {n: reference.rows(tensors[n], sparsity or 0, a or -1) for n, a in axes.items()}
    else:
        made = reference.together(tensors, axes, sparsity or 0)
    return {name: (made[name] == 0).numpy().reshape(-1) for name in axes}


def counts(one: dict[str, Any], two: dict[str, Any]) -> tuple[list[int], int]:
    """Pruned in each, and in both."""
    return (
        [sum(int(m.sum()) for m in masks.values()) for masks in (one, two)],
        sum(int((one[name] & two[name]).sum()) for name in one),
    )


@pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16]))
def test_counts_are_those_of_plain_masks(
    llama: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    """Global, rows and N:M; the second model in another dtype than the first."""
    first, second = llama
    if dtype is not torch.bfloat16:
        tensors = {n: t.to(dtype) for n, t in reference.stored(second).items()}
        reference.save(tmp_path / "wide", tensors)
        (tmp_path / "wide/config.json").write_bytes((second / "config.json").read_bytes())
        second = tmp_path / "wide"
    found = compare(
        first, second, CompareSettings((0.1, 0.45), (NM(2, 4), NM(1, 4))), use_cache=False
    )
    targets: list[tuple[float | None, NM | None]] = [
        (0.1, None), (0.45, None), (None, NM(2, 4)), (None, NM(1, 4))
    ]  # fmt: skip
    assert [pair.target for pair in found.masks] == ["10%", "45%", "2:4", "1:4"]
    for pair, target in zip(found.masks, targets, strict=True):
        one, two = pruned(first, *target), pruned(second, *target)
        each, both = counts(one, two)
        assert ([pair.overlap.first, pair.overlap.second], pair.overlap.both) == (each, both)
        assert pair.overlap.weights == sum(mask.size for mask in one.values()) == found.weights
        expected = sum(one[n].sum() * two[n].sum() / one[n].size for n in one)
        assert pair.overlap.expected == pytest.approx(expected)
        for group in (pair.components, pair.layers):
            assert sum(part.both for part in group.values()) == both
        part = pair.layers["model.layers.1"]
        names = [name for name in one if ".layers.1." in name]
        assert part.both == sum(int((one[n] & two[n]).sum()) for n in names)
    rows = compare(
        first, second, CompareSettings((0.3,), scope=Scope.ROW), use_cache=False
    ).masks[0]  # fmt: skip
    each, both = counts(pruned(first, 0.3, scope="row"), pruned(second, 0.3, scope="row"))
    assert ([rows.overlap.first, rows.overlap.second], rows.overlap.both) == (each, both)


@pytest.mark.parametrize("name", few(["gpt2", "mixtral", "t5"], "gpt2"))
def test_architectures(tmp_path: Path, name: str) -> None:
    """Conv1D, stacked experts, two stacks: N:M along the inputs, wherever these are."""
    tiny_models.build(name, tmp_path / "one")
    other(tmp_path / "one", tmp_path / "two", 3, 0.5)
    found = compare(tmp_path / "one", tmp_path / "two", CompareSettings((0.2,), ("2:4",)))  # type: ignore[arg-type]
    prune(tmp_path / "one", tmp_path / "a", PruneSettings(pattern=NM(2, 4)))
    prune(tmp_path / "two", tmp_path / "b", PruneSettings(pattern=NM(2, 4)))
    masks = []
    for folder in ("a", "b"):
        tensors = reference.stored(tmp_path / folder)
        masks.append({n: (tensors[n] == 0).numpy() for n in prunable(tmp_path / "one")})
    each, both = counts(*masks)
    overlap = found.masks[1].overlap
    assert ([overlap.first, overlap.second], overlap.both) == (each, both)


def test_weights_side_by_side(llama: tuple[Path, Path]) -> None:
    """Every number of both models, from the tensors themselves."""
    found = compare(*llama, CompareSettings((0.2,), (NM(2, 4),)), use_cache=False)
    for side, folder in zip(found.models, llama, strict=True):
        tensors = reference.stored(folder)
        axes = prunable(folder)
        flat = torch.cat([tensors[name].double().reshape(-1) for name in axes])
        size, stats = flat.abs().sort().values, side.stats
        assert stats is not None
        assert (stats.weights, stats.zeros) == (flat.numel(), int((flat == 0).sum()))
        assert stats.std == pytest.approx(float(flat.std(correction=0)), rel=1e-12)
        assert stats.largest == size[-1]
        own = sum(
            int((t.abs() <= 0.01 * t.std(correction=0)).sum())
            for t in (tensors[name].double() for name in axes)
        )
        assert stats.near_zero == {
            **{f"{limit:g}": int((size <= limit).sum()) for limit in (1e-8, 1e-5, 1e-3)},
            **{f"{part:g}*std": int((size <= part * stats.std).sum()) for part in
               (0.001, 0.01, 0.1)},
            "0.01*own std": own,
        }  # fmt: skip
        assert stats.quantiles == {
            f"{q:g}": float(size[max(1, math.ceil(q * len(size))) - 1])
            for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
        }
        norm = float((flat**2).sum())
        for label, made in (
            ("0.2", reference.together(tensors, axes, 0.2)),
            ("2:4", {n: reference.nm(tensors[n], 2, 4, a or -1) for n, a in axes.items()}),
        ):
            kept = sum(float((made[n].double() ** 2).sum()) for n in axes) / norm
            assert {**stats.norm_kept, **stats.patterns}[label] == pytest.approx(kept, rel=1e-12)


def test_the_numbers_of_fp32_are_exact_too(tmp_path: Path) -> None:
    """Wide types have coarse histograms, which tolerances and quantiles must subdivide."""
    tiny_models.build("bert", tmp_path / "one")
    other(tmp_path / "one", tmp_path / "two", 5)
    test_weights_side_by_side((tmp_path / "one", tmp_path / "two"))


# --- sides ------------------------------------------------------------------------------------


def test_a_pruned_model_is_compared_by_its_zeros(llama: tuple[Path, Path], tmp_path: Path) -> None:
    """At its own sparsity, where the masks are the same; also exported, and as a file of masks."""
    first, second = llama
    prune(first, tmp_path / "pruned", PruneSettings(sparsity=0.37))
    export(tmp_path / "pruned", tmp_path / "small")
    export_masks(open_checkpoint(tmp_path / "pruned"), tmp_path / "m.safetensors")
    zeros = reference.count(0.37, sum(m.size for m in pruned(first, 0.37).values()))
    for side, kind in (("pruned", "zeros"), ("small", "zeros"), ("m.safetensors", "masks")):
        found = compare(first, tmp_path / side, use_cache=False)
        assert [one.kind for one in found.models] == ["weights", kind]
        (pair,) = found.masks
        assert pair.overlap.first == pair.overlap.second == pair.overlap.both == zeros
        assert (pair.overlap.kappa, pair.overlap.jaccard, pair.overlap.cosine) == (1, 1, 1)
        assert any("they are the same" in text for text in found.findings)
        # Beside another model, the other way round, and at another sparsity.
        found = compare(tmp_path / side, second, CompareSettings((0.2,)), use_cache=False)
        each, both = counts(pruned(first, 0.37), pruned(second, 0.2))
        overlap = found.masks[0].overlap
        assert ([overlap.first, overlap.second], overlap.both) == (each, both)
    prune(second, tmp_path / "third", PruneSettings(sparsity=0.5))
    found = compare(tmp_path / "third", tmp_path / "m.safetensors")
    each, both = counts(pruned(second, 0.5), pruned(first, 0.37))
    overlap = found.masks[0].overlap
    assert found.masks[0].target == "as they are"
    assert ([overlap.first, overlap.second], overlap.both) == (each, both)


def test_zeros_of_a_dense_model_are_no_mask(llama: tuple[Path, Path], tmp_path: Path) -> None:
    """A tenth is zero where 4 bits were made wide; what another tool pruned has far more."""
    for share, kind in ((0.1, "weights"), (0.3, "zeros")):
        prune(llama[0], tmp_path / str(share), PruneSettings(sparsity=share))
        (tmp_path / str(share) / "prunectl.json").unlink()
        found = compare(llama[1], tmp_path / str(share), use_cache=False)
        assert found.second.kind == kind


def test_files_of_masks_alone(llama: tuple[Path, Path], tmp_path: Path) -> None:
    """Selectors mean their masks; a sparsity that means nothing is said to."""
    masks = []
    for at, folder in enumerate(llama):
        prune(folder, tmp_path / f"p{at}", PruneSettings(sparsity=0.3))
        masks.append(tmp_path / f"{at}.safetensors")
        export_masks(open_checkpoint(tmp_path / f"p{at}"), masks[-1])
    events: list[Event] = []
    settings = CompareSettings((0.2,), exclude=("*q_proj*",))
    found = compare(*masks, settings, on_event=events.append)
    assert [one.text for one in events if isinstance(one, Note) and one.warning] == [
        "both already have masks: the sparsities and patterns are ignored"
    ]
    one, two = (
        {n: m for n, m in pruned(folder, 0.3).items() if "q_proj" not in n} for folder in llama
    )
    each, both = counts(one, two)
    overlap = found.masks[0].overlap
    assert ([overlap.first, overlap.second], overlap.both) == (each, both)
    assert not found.first.unmatched
    # Beside a model, what is excluded is missing nowhere.
    found = compare(llama[0], masks[1], CompareSettings(exclude=("*q_proj*",)))
    assert (found.tensors, found.second.unmatched) == (len(one), {})
    with pytest.raises(InvalidOption, match="'nothing' matches no tensor of either model"):
        compare(*masks, CompareSettings(exclude=("nothing",)))


def test_masks_of_tensors_that_are_usually_dense(tmp_path: Path, llama: tuple[Path, Path]) -> None:
    """What a file has masks for counts as prunable in the model beside it."""
    settings = PruneSettings(sparsity=0.5, include=("model.embed_tokens.weight",))
    prune(llama[0], tmp_path / "pruned", settings)
    export_masks(open_checkpoint(tmp_path / "pruned"), tmp_path / "m.safetensors")
    found = compare(llama[0], tmp_path / "m.safetensors")
    assert found.tensors == len(prunable(llama[0])) + 1
    assert found.masks[0].overlap.kappa == 1


def test_names_differ_by_a_prefix(tmp_path: Path) -> None:
    """A headless model beside one with a head; what only one has is listed."""
    tiny_models.build("bert", tmp_path / "head")
    tensors = reference.stored(tmp_path / "head")
    bare = {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
    gone = "encoder.layer.1.output.dense.weight"
    del bare[gone]
    bare["encoder.layer.0.output.dense.weight"] = torch.randn(4, 4)
    reference.save(tmp_path / "bare", bare)
    config = json.loads((tmp_path / "head/config.json").read_text())
    config["architectures"] = ["BertModel"]
    (tmp_path / "bare/config.json").write_text(json.dumps(config))
    found = compare(tmp_path / "head", tmp_path / "bare")
    assert found.tensors == len(prunable(tmp_path / "head")) - 2
    assert set(found.renamed) == {
        (f"bert.{n}", n) for n in prunable(tmp_path / "bare") if "layer.0.output.dense" not in n
    }
    assert set(found.first.unmatched) == {
        f"bert.{gone}", "bert.encoder.layer.0.output.dense.weight"
    }  # fmt: skip
    assert list(found.second.unmatched) == ["encoder.layer.0.output.dense.weight"]
    # A selector may mean a tensor of one side only.
    fewer = compare(
        tmp_path / "head", tmp_path / "bare", CompareSettings(exclude=("bert.*query*",))
    )
    assert fewer.tensors == found.tensors - 2
    # Only what both have is compared together: the counts are of that pool.
    assert found.masks[0].overlap.first == reference.count(0.1, found.weights)


def test_random_models_are_no_more_alike_than_chance(tmp_path: Path) -> None:
    """The control: two initialisations share nothing but each tensor's share of zeros."""
    tiny_models.build("llama", tmp_path / "one")
    other(tmp_path / "one", tmp_path / "two", 7)
    found = compare(tmp_path / "one", tmp_path / "two")
    for pair in found.masks:
        overlap, kappa = pair.overlap, pair.overlap.kappa
        assert kappa is not None
        assert abs(kappa) < 5 / math.sqrt(overlap.weights * (pair.sparsity or 0))
        assert not above_chance(overlap)
        assert overlap.cosine == pytest.approx(overlap.cosine_chance_by_tensor, abs=0.02)
    assert any("no more alike than chance" in text for text in found.findings)


# --- measures ---------------------------------------------------------------------------------


@given(st.data())
def test_measures_are_their_definitions(data: st.DataObject) -> None:
    """Of one tensor: scikit-learn's Jaccard index and kappa, numpy's cosine."""
    from sklearn.metrics import cohen_kappa_score, jaccard_score

    size = data.draw(st.integers(1, 40))
    masks = [np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
             for _ in range(2)]  # fmt: skip
    one, two = masks
    found = Overlap.of_tensor(size, int(one.sum()), int(two.sum()), int((one & two).sum()))
    kept = [(~mask).astype(float) for mask in masks]
    length = math.sqrt(kept[0].sum() * kept[1].sum())
    assert found.cosine == (pytest.approx(kept[0] @ kept[1] / length) if length else None)
    if one.any() or two.any():
        assert found.jaccard == pytest.approx(jaccard_score(one, two))
    else:
        assert found.jaccard is None
    if len({*one.tolist(), *two.tolist()}) == 2:
        assert found.kappa == pytest.approx(cohen_kappa_score(one, two))
    else:
        assert found.kappa is None


def test_chance_is_what_shuffling_gives() -> None:
    """Within tensors for chance by tensor, over all of them for chance."""
    rng = np.random.default_rng(0)
    sizes, shares = (4000, 8000), ((0.1, 0.2), (0.6, 0.5))
    masks = [[rng.permutation(n) < round(s * n) for s in pair]
             for n, pair in zip(sizes, shares, strict=True)]  # fmt: skip
    parts = [Overlap.of_tensor(n, int(a.sum()), int(b.sum()), int((a & b).sum()))
             for n, (a, b) in zip(sizes, masks, strict=True)]  # fmt: skip
    whole = parts[0] + parts[1]
    within, over = [], []
    for _ in range(40):
        shuffled = [(rng.permutation(a), b) for a, b in masks]
        within.append(sum(int((a & b).sum()) for a, b in shuffled))
        a, b = (np.concatenate([pair[i] for pair in masks]) for i in (0, 1))
        over.append(int((rng.permutation(a) & b).sum()))
    assert whole.expected == pytest.approx(np.mean(within), rel=0.02)
    either = whole.first + whole.second
    assert whole.jaccard_chance_by_tensor == pytest.approx(
        np.mean(within) / (either - np.mean(within)), rel=0.02
    )
    assert whole.jaccard_chance == pytest.approx(np.mean(over) / (either - np.mean(over)), rel=0.02)
    assert whole.cosine_chance == pytest.approx(
        math.sqrt((1 - whole.first / whole.weights) * (1 - whole.second / whole.weights))
    )


# --- names ------------------------------------------------------------------------------------


def test_twins_are_found_only_where_they_are_sure() -> None:
    shape = Candidate((4, 4))
    found = match({"a.x": shape, "a.y": shape, "z": shape}, {"x": shape, "y": Candidate((2, 4))})
    assert found.pairs == (("a.x", "x"),)
    assert set(found.only_first) == {"a.y", "z"}
    assert list(found.only_second) == ["y"]
    # Two that would fit: none is taken.
    found = match({"a.x": shape, "b.x": shape}, {"x": shape})
    assert found.pairs == ()
    # Equal names go before all others, and other shapes are no reason to look elsewhere.
    found = match({"x": shape, "a.x": shape}, {"x": Candidate((2, 2)), "a.x": shape})
    assert found.pairs == (("a.x", "a.x"),)
    assert found.only_first == {"x": "its shape is [4, 4], and [2, 2] on the other side"}


# --- bad input, and the command ---------------------------------------------------------------


def test_models_that_cannot_be_compared(llama: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_models.build("bert", tmp_path / "bert")
    with pytest.raises(NothingToCompare, match="no prunable tensor of one has the name or place"):
        compare(llama[0], tmp_path / "bert")
    tensors = reference.stored(llama[0])
    name = next(iter(prunable(llama[0])))
    tensors[name][0, 0] = math.nan
    reference.save(tmp_path / "nan", tensors)
    (tmp_path / "nan/config.json").write_bytes((llama[0] / "config.json").read_bytes())
    with pytest.raises(NaNWeights, match=rf"{tmp_path / 'nan'}: tensor '{name}'"):
        compare(llama[0], tmp_path / "nan")
    reference.save(tmp_path / "dense", reference.stored(llama[0]))
    config = json.loads((llama[0] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "dense/config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpoint, match="quantized"):
        compare(llama[0], tmp_path / "dense")


def test_settings_that_have_no_meaning(llama: tuple[Path, Path]) -> None:
    for bad in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(InvalidSparsity):
            CompareSettings((bad,))
    with pytest.raises(InvalidOption, match="'nothing' matches no tensor of either model"):
        compare(*llama, CompareSettings(exclude=("nothing",)))
    assert CompareSettings((0.4, 0.1, 0.4)).sparsities == (0.1, 0.4)


def test_the_command(
    llama: tuple[Path, Path], typed: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = typed("compare", *llama, "-s", "0.1,0.3", "-p", "2:4", "--json", "-o", "c.json")
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "prunectl.comparison/1"
    assert [one["target"] for one in document["masks"]] == ["10%", "30%", "2:4"]
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved["masks"] == document["masks"]
    code, out, _ = typed("compare", *llama)
    assert code == 0
    assert "Masks, and what chance alone would give" in out
    assert "At 40%, by layer" in out
    for bad, text in (
        (("-s", "x"), "--sparsity 'x' is not a number"),
        (("-s", "1.5"), "sparsity 1.5 is not valid"),
        (("-p", "4:2"), "pattern '4:2' is not valid"),
    ):
        code, out, err = typed("compare", *llama, *bad)
        assert (code, out) == (2, "")
        assert text in err
    code, out, err = typed("compare", llama[0], "")
    assert (code, out) == (2, "")
    code, out, err = typed("compare", llama[0], "nowhere/at/all")
    assert code != 0
    assert out == ""


def test_names_do_not_paint_the_screen(
    llama: tuple[Path, Path], typed: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Escape sequences and bad Unicode in a folder's name, which is a label everywhere."""
    name = "evil\x1b[31m\udcff"
    shutil.copytree(llama[0], tmp_path / name)
    prune(llama[0], tmp_path / f"{name}2", PruneSettings(sparsity=0.3))
    for second in (name, f"{name}2"):
        code, out, err = typed("compare", llama[0], tmp_path / second)
        assert code == 0
        assert "evil\\x1b[31m\\udcff" in out
        assert all(one.isprintable() for one in (out + err).split("\n"))


@pytest.mark.full
@pytest.mark.real
def test_bert_and_its_descendants(real_model: Callable[[str], Path]) -> None:
    """rxnfp's pre-trained BERT and what was fine-tuned from it: far above chance."""
    folder = real_model("rxnfp")
    found = compare(folder / "bert_pretrained", folder / "bert_ft", CompareSettings((0.4,)))
    assert (found.tensors, len(found.renamed)) == (72, 72)
    overlap = found.masks[0].overlap
    names = prunable(folder / "bert_pretrained")
    one, two = (
        reference.together(reference.stored(folder / side), prunable(folder / side), 0.4)
        for side in ("bert_pretrained", "bert_ft")
    )
    both = sum(
        int(((one[name] == 0) & (two[name.removeprefix("bert.")] == 0)).sum()) for name in names
    )
    assert overlap.both == both
    assert overlap.first == overlap.second == reference.count(0.4, found.weights)
    assert above_chance(overlap)
    assert overlap.kappa is not None
    assert overlap.kappa > 0.5


def test_a_page_is_not_put_over_a_file_of_masks(
    typed: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    masks = tmp_path / "masks.safetensors"
    prune("demo", tmp_path / "pruned", PruneSettings(sparsity=0.3))
    assert typed("export", tmp_path / "pruned", "--masks-only", "-o", masks)[0] == 0
    before = masks.read_bytes()
    code, out, err = typed("compare", masks, "demo", "-o", masks)
    assert (code, out) == (2, "")
    assert "is a file of the model, which is never changed" in err
    assert masks.read_bytes() == before
