"""``prune`` against the plain reference: the same zeros and the same bits, and what is recorded."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
import reference
import torch
from full import drawn
from hypothesis import given
from hypothesis import strategies as st
from reference import Tensors

from prunectl import NM, PruneResult, PruneSettings, Rule, Scope, analyze, export, prune, verify
from prunectl.errors import NaNWeights
from prunectl.events import Event, Note
from prunectl.pruning.metadata import for_others

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LAYER = "model.layers.{}.mlp.{}_proj.weight"


def trained(shape: tuple[int, ...], dtype: torch.dtype, seed: int, kind: str) -> torch.Tensor:
    """Weights of a kind: ``plain``, ``ties`` (few values), ``zeros`` (of both signs), ``inf``."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05
    if kind == "ties":
        weights = (weights * 40).round() / 40
    if kind == "zeros":
        where = torch.rand(shape, generator=generator)
        weights[where < 0.5] = 0.0
        weights[where < 0.25] = -0.0
    if kind == "inf":
        where = torch.rand(shape, generator=generator)
        weights[where < 0.1] = torch.inf
        weights[where < 0.05] = -torch.inf
    return weights.to(dtype)


@st.composite
def checkpoints(draw: st.DrawFn, multiple: int = 1) -> Tensors:
    """A few block matrices of mixed dtypes and kinds, and tensors that are not pruned."""
    tensors: Tensors = {"model.embed_tokens.weight": trained((7, 5), torch.float32, 0, "zeros")}
    sizes = st.integers(1, 12)
    for layer in range(draw(st.integers(1, 3))):
        for part in ("up", "down"):
            shape = (draw(sizes), multiple * draw(sizes))
            dtype, kind = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(KINDS))
            seed = draw(st.integers(0, 10**6))
            tensors[LAYER.format(layer, part)] = trained(shape, dtype, seed, kind)
    tensors["model.norm.weight"] = torch.ones(5)
    return tensors


KINDS = ("plain", "ties", "zeros", "inf")
sparsities = st.sampled_from([0.01, 0.25, 0.3, 0.5, 0.75, 0.99]) | st.floats(1e-3, 0.999)


def matrices(tensors: Tensors) -> list[str]:
    return [name for name in tensors if "_proj" in name]


def pruned(tensors: Tensors, settings: PruneSettings) -> tuple[Tensors, Tensors, PruneResult]:
    """(source in file order, output, result); the output is verified too."""
    with tempfile.TemporaryDirectory() as folder:
        source = reference.save(Path(folder, "source"), tensors)
        output = Path(folder, "output")
        result = prune(source, output, settings)
        report = verify(output)
        assert report.ok, report.differences
        return reference.stored(source), reference.stored(output), result


# --- the same zeros, the same bits --------------------------------------------------------------


@given(checkpoints(), sparsities)
def test_one_threshold_for_all_weights(tensors: Tensors, sparsity: float) -> None:
    source, output, result = pruned(tensors, PruneSettings(sparsity=sparsity))
    names = matrices(source)
    expected = reference.together(source, names, sparsity)
    reference.assert_same(output, expected)
    assert result.prunable_zeros == reference.zeros(expected[name] for name in names)
    assert result.zeros == reference.zeros(expected.values())
    gone = torch.cat(
        [source[n][(expected[n] == 0) & (source[n] != 0)].double().abs().reshape(-1) for n in names]
    )
    if gone.numel():
        assert result.pools[0].threshold == gone.max().item()


@given(checkpoints(), sparsities)
def test_each_tensor_on_its_own(tensors: Tensors, sparsity: float) -> None:
    source, output, _ = pruned(tensors, PruneSettings(sparsity=sparsity, scope=Scope.TENSOR))
    expected = {n: reference.alone(source[n], sparsity) for n in matrices(source)}
    reference.assert_same(output, {**source, **expected})


@given(checkpoints(), sparsities)
def test_each_row_on_its_own(tensors: Tensors, sparsity: float) -> None:
    source, output, _ = pruned(tensors, PruneSettings(sparsity=sparsity, scope=Scope.ROW))
    expected = {n: reference.rows(source[n], sparsity) for n in matrices(source)}
    reference.assert_same(output, {**source, **expected})


@given(drawn([(2, 4), (4, 8), (1, 4), (2, 3), (6, 8)], (2, 4), (4, 8)), st.data())
def test_n_of_every_m(pattern: tuple[int, int], data: st.DataObject) -> None:
    n, m = pattern
    tensors = data.draw(checkpoints(multiple=m))
    source, output, result = pruned(tensors, PruneSettings(pattern=NM(n, m)))
    expected = {name: reference.nm(source[name], n, m) for name in matrices(source)}
    reference.assert_same(output, {**source, **expected})
    assert result.prunable_zeros == reference.zeros(expected.values())


@given(
    st.sampled_from([(2, 4, 0.4), (2, 4, 0.1), (2, 4, 0.5), (1, 4, 0.6), (4, 8, 0.25)]), st.data()
)
def test_a_budget_takes_whole_matrices(case: tuple[int, int, float], data: st.DataObject) -> None:
    n, m, sparsity = case
    tensors = {
        name: tensor if tensor.isfinite().all() else torch.ones_like(tensor)
        for name, tensor in data.draw(checkpoints(multiple=m)).items()
    }
    source, output, result = pruned(tensors, PruneSettings(sparsity=sparsity, pattern=NM(n, m)))
    names = matrices(source)
    if sparsity < 1 - n / m:
        expected = reference.budget(source, names, n, m, sparsity)
    else:
        expected = {**source, **{name: reference.nm(source[name], n, m) for name in names}}
    reference.assert_same(output, expected)
    weights = sum(source[name].numel() for name in names)
    assert result.pools[0].achieved == reference.zeros(expected[n] for n in names) / weights


def test_a_tensor_of_many_blocks() -> None:
    # Larger than what is read at a time, so a block's end lies inside rows and ties.
    tensors = {
        LAYER.format(0, "up"): trained((1031, 1204), torch.float32, 1, "ties"),
        LAYER.format(0, "down"): trained((700, 1500), torch.bfloat16, 2, "ties"),
    }
    for choice in (
        PruneSettings(sparsity=0.37),
        PruneSettings(sparsity=0.37, scope=Scope.TENSOR),
        PruneSettings(pattern=NM(2, 4)),
    ):
        source, output, _ = pruned(tensors, choice)
        if isinstance(choice.pattern, NM):
            expected = {name: reference.nm(tensor, 2, 4) for name, tensor in source.items()}
        elif choice.scope is Scope.TENSOR:
            expected = {name: reference.alone(tensor, 0.37) for name, tensor in source.items()}
        else:
            expected = reference.together(source, source, 0.37)
        reference.assert_same(output, expected)


def test_every_weight_is_equal() -> None:
    # Only the tie rule decides: file order, then row-major.
    tensors = {LAYER.format(i, "up"): torch.full((5, 8), -0.5) for i in range(3)}
    source, output, _ = pruned(tensors, PruneSettings(sparsity=0.44))
    flat = torch.cat([output[name].reshape(-1) for name in source])
    assert flat.tolist() == [0.0] * 53 + [-0.5] * 67


@given(checkpoints(), st.lists(st.floats(0.01, 0.99), min_size=2, max_size=4, unique=True))
def test_zeros_of_a_higher_sparsity_contain_those_of_a_lower_one(
    tensors: Tensors, chosen: list[float]
) -> None:
    previous: dict[str, torch.Tensor] = {}
    for sparsity in sorted(chosen):
        _, output, _ = pruned(tensors, PruneSettings(sparsity=sparsity))
        gone = {name: output[name] == 0 for name in matrices(output)}
        assert all((gone[name] >= before).all() for name, before in previous.items())
        previous = gone


def test_zeros_that_are_more_than_asked_for_stay() -> None:
    weights = trained((40, 40), torch.float32, 3, "zeros")
    source, output, result = pruned({LAYER.format(0, "up"): weights}, PruneSettings(sparsity=0.1))
    reference.assert_same(output, source)
    assert result.prunable_zeros == result.prunable_zeros_before == reference.zeros([weights])
    assert result.sparsity > 0.4
    assert result.pools[0].requested == 0.1


def test_a_threshold_that_reaches_inf(tmp_path: Path) -> None:
    # JSON has no Inf, so the manifest leaves the threshold out.
    weights = torch.full((4, 4), -torch.inf)
    source = reference.save(tmp_path / "source", {LAYER.format(0, "up"): weights})
    result = prune(source, tmp_path / "out", PruneSettings(sparsity=0.5))
    assert result.pools[0].threshold == torch.inf
    manifest = json.loads((tmp_path / "out" / "prunectl.json").read_bytes())
    assert manifest["tensors"][0]["threshold"] is None
    (output,) = reference.stored(tmp_path / "out").values()
    assert output.reshape(-1).tolist() == [0.0] * 8 + [-torch.inf] * 8
    assert verify(tmp_path / "out").ok


def test_inf_is_the_largest_and_warned_of() -> None:
    name = LAYER.format(0, "up")
    notes: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        weights = trained((8, 8), torch.float16, 4, "inf")
        source = reference.save(Path(folder, "source"), {name: weights})
        result = prune(
            source, Path(folder, "out"), PruneSettings(sparsity=0.5), on_event=notes.append
        )
        output = reference.stored(Path(folder, "out"))[name]
    assert output.isinf().sum() == weights.isinf().sum() > 0
    (warning,) = result.warnings[:1]
    assert name in warning
    assert "Inf" in warning
    assert Note(warning, warning=True) in notes


# --- which tensors ------------------------------------------------------------------------------


def four() -> Tensors:
    return {
        LAYER.format(layer, part): trained((16, 24), torch.float32, 10 * layer + len(part), "plain")
        for layer in range(2)
        for part in ("up", "down")
    } | {"model.embed_tokens.weight": trained((9, 24), torch.float32, 99, "plain")}


def test_include_and_exclude() -> None:
    source, output, result = pruned(
        four(),
        PruneSettings(
            sparsity=0.5, include=("model.embed_tokens",), exclude=("re:down", "*.1.mlp.up_*")
        ),
    )
    names = [n for n in source if n in {"model.embed_tokens.weight", LAYER.format(0, "up")}]
    reference.assert_same(output, reference.together(source, names, 0.5))
    assert {one.name for one in result.tensors if one.action == "prune"} == set(names)
    assert {one.reason for one in result.tensors if one.action == "copy"} == {"excluded"}


def test_scalars_vectors_and_buffers_may_be_included() -> None:
    tensors = four() | {
        "logit_scale": torch.tensor(2.5),
        "model.norm.weight": trained((24,), torch.float32, 5, "plain"),
        "model.position_ids": torch.arange(9),
        "model.layers.0.mlp.empty_proj.weight": torch.zeros(0, 4),
    }
    for scope in Scope:
        choice = PruneSettings(sparsity=0.5, scope=scope, include=("*",))
        source, output, _ = pruned(tensors, choice)
        names = [n for n, t in source.items() if t.is_floating_point() and t.numel()]
        if scope is Scope.GLOBAL:
            expected = reference.together(source, names, 0.5)
        else:
            expected = dict(source)
            for name in names:
                whole = scope is Scope.TENSOR or source[name].dim() == 0
                cut = reference.alone if whole else reference.rows
                expected[name] = cut(source[name], 0.5)
        reference.assert_same(output, expected)


@pytest.mark.parametrize("shape", [(32, 16, 1, 1), (32, 3, 8, 8), (12, 7, 5)])
def test_a_row_of_a_convolution_is_what_makes_one_output(shape: tuple[int, ...]) -> None:
    kernel = trained(shape, torch.float32, 7, "plain")
    choice = PruneSettings(sparsity=0.4, scope="row", include=("conv",), exclude=("model.layers",))  # type: ignore[arg-type]
    source, output, result = pruned(four() | {"conv.weight": kernel}, choice)
    expected = reference.rows(kernel.flatten(1), 0.4).reshape(shape)
    reference.assert_same(output, source | {"conv.weight": expected})
    assert result.prunable_zeros == shape[0] * reference.count(0.4, kernel[0].numel())


def test_a_recipe_has_pools_of_its_own() -> None:
    rules = (
        Rule(match=("model.layers.0.mlp.down_proj",), skip=True),
        Rule(match=("model.layers.0.*",), pattern=NM(2, 4)),
        Rule(match=("*.up_proj.weight",), sparsity=0.7, scope=Scope.ROW),
    )
    tensors = four() | {
        LAYER.format(2, part): trained((16, 24), torch.float16, 50 + i, "ties")
        for i, part in enumerate(("up", "down", "gate"))
    }
    source, output, result = pruned(tensors, PruneSettings(sparsity=0.3, rules=rules))
    rest = [n for n in source if n.endswith(("down_proj.weight", "gate_proj.weight"))]
    rest = [n for n in rest if ".0." not in n]
    expected = reference.together(source, rest, 0.3)
    first = LAYER.format(0, "up")
    expected[first] = reference.nm(source[first], 2, 4)
    for layer in (1, 2):
        name = LAYER.format(layer, "up")
        expected[name] = reference.rows(source[name], 0.7)
    reference.assert_same(output, expected)
    assert [(pool.pattern, pool.scope, pool.requested) for pool in result.pools] == [
        ("2:4", "", None),
        ("unstructured", "row", 0.7),
        ("unstructured", "global", 0.3),
    ]
    skipped = [one for one in result.tensors if one.name == LAYER.format(0, "down")]
    assert skipped[0].reason == "skipped by the recipe"
    assert skipped[0].zeros == skipped[0].zeros_before


def test_what_does_not_fit_n_m_counts_in_the_budget_and_stays_dense() -> None:
    tensors = four() | {LAYER.format(2, "up"): trained((16, 26), torch.float32, 7, "plain")}
    source, output, result = pruned(tensors, PruneSettings(sparsity=0.4, pattern=NM(2, 4)))
    fitting = [n for n in matrices(source) if ".2." not in n]
    weights = sum(source[n].numel() for n in matrices(source))
    k = reference.count(0.4, weights)
    full = 16 * 24 // 2
    assert result.prunable_weights == weights
    assert result.prunable_zeros == min(range(0, 5 * full, full), key=lambda z: abs(z - k))
    (odd,) = [one for one in result.tensors if one.name == LAYER.format(2, "up")]
    assert odd.prunable
    assert odd.reason == "input dimension 26 is not divisible by 4"
    reference.assert_same({odd.name: output[odd.name]}, {odd.name: source[odd.name]})
    dense = [one for one in result.tensors if one.name in fitting and one.action == "copy"]
    assert all("budget" in one.reason for one in dense)


def test_an_analysis_that_was_kept_changes_nothing_but_time(tmp_path: Path) -> None:
    source = reference.save(tmp_path / "source", four())
    choices = [
        PruneSettings(sparsity=0.35),
        PruneSettings(sparsity=0.4, pattern=NM(2, 4)),
        PruneSettings(sparsity=0.35, scope=Scope.TENSOR),
    ]
    for i, choice in enumerate(choices):
        prune(source, tmp_path / f"cold-{i}", choice, use_cache=False)
    analyze(source)
    for i, choice in enumerate(choices):
        prune(source, tmp_path / f"warm-{i}", choice)
        assert reference.contents(tmp_path / f"warm-{i}") == reference.contents(
            tmp_path / f"cold-{i}"
        )


@pytest.mark.parametrize(
    ("choice", "dtype"),
    [
        (PruneSettings(sparsity=0.5), torch.float64),
        (PruneSettings(sparsity=0.5, scope=Scope.TENSOR), torch.float32),
        (PruneSettings(sparsity=0.5, scope=Scope.ROW), torch.float16),
        (PruneSettings(pattern=NM(2, 4)), torch.bfloat16),
        (PruneSettings(sparsity=0.3, pattern=NM(2, 4)), torch.float32),
    ],
)
def test_nan_stops_with_the_tensors_name(
    tmp_path: Path, choice: PruneSettings, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in four().items()}
    bad = LAYER.format(1, "up")
    tensors[bad][3, 4] = torch.nan
    source = reference.save(tmp_path / "source", tensors)
    with pytest.raises(NaNWeights, match=r"'model\.layers\.1\.mlp\.up_proj\.weight'") as caught:
        # One tensor a file, so that some are finished before the bad one is come to.
        prune(source, tmp_path / "out", choice, max_shard_size=1000)
    assert (caught.value.tensor, caught.value.count) == (bad, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nan_in_a_tensor_that_is_not_pruned_is_copied() -> None:
    tensors = four()
    tensors["model.embed_tokens.weight"][0, 0] = torch.nan
    source, output, _ = pruned(tensors, PruneSettings(sparsity=0.5))
    names = matrices(source)
    reference.assert_same(output, reference.together(source, names, 0.5))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("prunectl prune org/name@v1 -s 0.4 -o out", "prunectl prune org/name@v1 -s 0.4 -o out"),
        ("prunectl prune /home/me/secret/model -o /home/me/out", "prunectl prune model -o out"),
        ("prunectl prune m --output=/home/me/out", "prunectl prune m --output=out"),
        ("prunectl prune org/name -o runs/of/me", "prunectl prune org/name -o me"),
        ("prunectl prune m -o/home/me/out", "prunectl prune m -oout"),
        ("prunectl prune ../me/m --recipe ~/r.toml", "prunectl prune m --recipe r.toml"),
        ("prunectl prune m --data=text:/me/a.txt", "prunectl prune m --data=text:a.txt"),
        ("prunectl prune m -i 're:^a/b' -m ~/x", "prunectl prune m -i 're:^a/b' -m x"),
        ("made by 'somebody", "made by 'somebody"),
    ],
)  # fmt: skip
def test_a_card_says_nothing_of_the_folders_of_the_machine(command: str, told: str) -> None:
    assert for_others(command) == told


# --- the card of the source ---------------------------------------------------------------------


def card_after(source: Path, out: Path, verb: str) -> tuple[str, list[str]]:
    """The card of an output, and what is warned of."""
    notes: list[Event] = []
    if verb == "export":
        export(source, out, "packed", on_event=notes.append)
    else:
        prune(source, out, PruneSettings(sparsity=0.5), on_event=notes.append)
    warned = [note.text for note in notes if isinstance(note, Note) and note.warning]
    return (out / "README.md").read_text(), [text for text in warned if "README" in text]


@pytest.mark.parametrize("verb", ["prune", "export"])
def test_a_card_that_is_not_utf_8_keeps_its_bytes_and_is_warned_of(
    tmp_path: Path, verb: str
) -> None:
    weights = {LAYER.format(0, "up"): trained((8, 8), torch.float32, 0, "plain")}
    source, out = reference.save(tmp_path / "source", weights), tmp_path / "out"
    (source / "README.md").write_bytes(b"of a caf\xe9\n")
    notes: list[Event] = []
    if verb == "export":
        result = export(source, out, "packed", on_event=notes.append)
    else:
        result = prune(source, out, PruneSettings(sparsity=0.5), on_event=notes.append)
    assert (out / "README.md").read_bytes().endswith(b"of a caf\xe9\n")
    text = (
        "README.md of the source is not UTF-8 (byte 8): its bytes are kept; "
        "save the output's as UTF-8 before you push it"
    )
    assert text in result.warnings
    assert Note(text, warning=True) in notes


@pytest.mark.parametrize(
    ("verb", "kind"),
    [("export", "own"), ("export", "link out")]
    + [
        ("prune", kind) for kind in ("own", "link", "link out", "link to a folder", "pipe", "large")
    ],
)
def test_the_card_is_the_source_s_own(tmp_path: Path, kind: str, verb: str) -> None:
    source = reference.save(
        tmp_path / "source", {LAYER.format(0, "up"): trained((8, 8), torch.float32, 0, "plain")}
    )
    (tmp_path / "private.txt").write_text("a secret")
    (source / "docs").mkdir()
    (source / "docs" / "card.md").write_text("a secret of the source's own")
    card = source / "README.md"
    if kind == "own":
        card.write_text("a secret of the source's own")
    elif kind == "pipe":
        os.mkfifo(card)  # it would never end
    elif kind == "large":
        card.write_text("a secret\n" * 300_000)
    else:
        where = {"link": "docs/card.md", "link out": "../private.txt", "link to a folder": ".."}
        card.symlink_to(where[kind])
    text, warned = card_after(source, tmp_path / "out", verb)
    assert ("a secret" in text) == (kind in ("own", "link"))
    if kind == "large":
        assert warned == [
            "left out: README.md, the source's text: it has 2,700,000 bytes, "
            "and a model card at most 2,000,000 here"
        ]


@pytest.mark.parametrize("blob", [True, False])
def test_a_card_in_the_hub_s_cache_is_a_link_to_its_blob(tmp_path: Path, blob: bool) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "c0ffee"
    reference.save(snapshot, {LAYER.format(0, "up"): trained((8, 8), torch.float32, 0, "plain")})
    place = tmp_path / "models--org--name" / ("blobs" if blob else "other")
    place.mkdir()
    (place / "b1").write_text("its text")
    (snapshot / "README.md").symlink_to(f"../../{place.name}/b1")
    text, _ = card_after(snapshot, tmp_path / "out", "prune")
    assert ("its text" in text) == blob
