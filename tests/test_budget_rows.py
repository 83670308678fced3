"""``--budget rows``: blocks of 16 rows take N:M, the others keep their bits; and what follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import reference
import tiny_models
import torch
from blake3 import blake3
from docs_pages import call
from full import few
from reference import Tensors
from safetensors.torch import load_file, save_file
from test_modules import expected_prunable
from test_prune_tiny import SCHEMA, input_axis

from prunectl import NM, PruneSettings, open_checkpoint, prune, verify
from prunectl.checkpoint.mask_file import read_masks
from prunectl.errors import BadManifest, InvalidOption, PatternMismatch
from prunectl.events import Advanced, Event
from prunectl.exporting.masks import export_masks
from prunectl.exporting.verb import export
from prunectl.loading.compressed import open_model
from prunectl.output.manifest import read_manifest
from prunectl.parallel import streaming
from prunectl.pattern import pruned_count
from prunectl.plan.job import arguments, fingerprint, prepare
from prunectl.plan.settings import Budget, Rule
from prunectl.publishing.folder import card_of, local_card

BLOCK = 16
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


def settings(sparsity: float, pattern: str = "2:4") -> PruneSettings:
    return PruneSettings(sparsity=sparsity, pattern=pattern, budget="rows")  # type: ignore[arg-type]


# --- the definition, as plain loops ---------------------------------------------------------------


def rate(before: torch.Tensor, after: torch.Tensor) -> float:
    """Squared norm lost per weight pruned, to nine digits; of finite weights."""
    pruned = reference.zeros([after]) - reference.zeros([before])
    finite = before.double().where(before.isfinite(), 0.0)
    lost = ((finite - after.double().where(after.isfinite(), 0.0)) ** 2).sum().item()
    return float(f"{lost / pruned:.9g}") if pruned else 0.0


def by_rows(
    tensors: Tensors, names: list[str], axes: dict[str, int], n: int, m: int, sparsity: float
) -> tuple[Tensors, dict[str, set[int]]]:
    """The pruned tensors, and the rows of each that follow the pattern, stack by stack."""
    fitting = [name for name in names if tensors[name].shape[axes[name]] % m == 0]
    k = reference.count(sparsity, sum(tensors[name].numel() for name in names))
    wanted = k - reference.zeros(tensors[name] for name in names if name not in fitting)
    total = sum(tensors[name].numel() for name in fitting)
    result, rows = dict(tensors), {name: set[int]() for name in names}
    seen = reached = 0
    for name in fitting:
        stack = tensors[name].movedim(axes[name], -1)
        shape = stack.shape
        stack = stack.reshape(-1, *shape[-2:]).clone()
        for number, matrix in enumerate(stack):
            out = len(matrix)
            full = reference.nm(matrix, n, m)
            starts = list(range(0, out, BLOCK))
            starts.sort(key=lambda s: rate(matrix[s : s + BLOCK], full[s : s + BLOCK]))
            seen += matrix.numel()
            share = (Fraction(wanted * seen, total) + Fraction(1, 2)).__floor__()
            best, tried = matrix.clone(), matrix.clone()
            taken: list[int] = []
            for count, start in enumerate(starts, 1):
                tried[start : start + BLOCK] = full[start : start + BLOCK]
                near = abs(reached + reference.zeros([tried]) - share)
                if near < abs(reached + reference.zeros([best]) - share):
                    best, taken = tried.clone(), starts[:count]
            reached += reference.zeros([best])
            matrix.copy_(best)
            for start in taken:
                rows[name] |= {number * out + row for row in range(start, min(start + BLOCK, out))}
        result[name] = stack.reshape(shape).movedim(-1, axes[name]).contiguous()
    return result, rows


def as_rows(ranges: Any) -> set[int]:
    return {row for start, stop in ranges for row in range(start, stop)}


def assert_records(folder: Path, source: Tensors, rows: dict[str, set[int]]) -> None:
    """The manifest is valid and names the rows: none, all (then by null), or which."""
    document = json.loads((folder / "prunectl.json").read_bytes())
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    for record in read_manifest(folder).tensors:
        taken = rows.get(record.name, set())
        axis = record.input_axis
        count = 0 if axis is None else source[record.name].numel() // record.shape[axis]
        if not taken:
            assert (record.pattern, record.pattern_rows) == (None, None)
        elif len(taken) == count:
            assert (record.pattern, record.pattern_rows) == ("2:4", None)
        else:
            assert record.pattern == "2:4"
            assert as_rows(record.pattern_rows) == taken


@pytest.mark.parametrize("sparsity", few([0.2, 0.43]))
@pytest.mark.parametrize(
    "model", few(["bert", "gpt2", "gpt_oss", "mixtral", "granitemoe"], "bert", "gpt_oss")
)
def test_blocks_of_rows_of_every_kind_of_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, sparsity: float
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1500)  # so that small tensors come in blocks
    tiny_models.build(model, tmp_path / "source")
    source = reference.stored(tmp_path / "source")
    names = [name for name in source if name in expected_prunable(model, list(source))]
    axes = {name: input_axis(model, name, source) for name in names}
    expected, rows = by_rows(source, names, axes, 2, 4, sparsity)
    assert any(0 < len(rows[n]) < source[n].numel() // source[n].shape[axes[n]] for n in names)
    result = prune(tmp_path / "source", tmp_path / "out", settings(sparsity))
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    assert_records(tmp_path / "out", source, rows)
    k = reference.count(sparsity, sum(source[name].numel() for name in names))
    last = source[names[-1]].shape[axes[names[-1]]]
    assert abs(result.prunable_zeros - k) <= BLOCK * last // 4  # half a block's pruned weights
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16, torch.float64]))
@pytest.mark.parametrize(("n", "m", "sparsity"), few([(2, 4, 0.24), (1, 8, 0.4)]))
def test_earlier_zeros_inf_and_what_does_not_fit(
    tmp_path: Path, dtype: torch.dtype, n: int, m: int, sparsity: float
) -> None:
    """Zeros count, of both signs; so do the weights of a tensor that cannot take the pattern."""
    torch.manual_seed(1)
    tensors = {
        f"model.layers.{i}.mlp.{kind}_proj.weight": torch.randn(shape).to(dtype)
        for i in range(2)
        for kind, shape in (("up", (70, 40)), ("down", (40, 70)))
    }
    tensors[UP][16:32] *= 0.1
    tensors[UP][33:60, :30] = 0.0
    tensors[UP][3, 7] = -0.0
    tensors[UP][0, :6] = torch.inf  # more than a group keeps
    tensors[DOWN][5:15] = 0.0
    source = reference.save(tmp_path / "source", tensors)
    names = list(reference.stored(source))
    expected, rows = by_rows(tensors, names, dict.fromkeys(names, -1), n, m, sparsity)
    prune(source, tmp_path / "out", settings(sparsity, f"{n}:{m}"))
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    kept = {r.name: r for r in read_manifest(tmp_path / "out").tensors}
    assert "not divisible" in (kept[DOWN].reason or "")
    assert as_rows(kept[UP].pattern_rows) == rows[UP]
    assert verify(tmp_path / "out").ok


def test_none_and_all(tmp_path: Path) -> None:
    """Nothing is nearer than one block: all stay dense. Nearly all: the tensor is a whole 2:4."""
    torch.manual_seed(2)
    tensors = {UP: torch.randn(32, 32), DOWN: torch.randn(32, 32)}
    source = reference.save(tmp_path / "source", tensors)
    none = prune(source, tmp_path / "none", settings(0.01))
    reference.assert_same(reference.stored(tmp_path / "none"), tensors)
    assert "block of 16 rows in 2:4 is already further away than none" in none.pools[0].note
    assert "no block of 16 rows" in none.tensors[0].reason
    whole = prune(source, tmp_path / "all", settings(0.49))
    both = {name: reference.nm(one, 2, 4) for name, one in tensors.items()}
    reference.assert_same(reference.stored(tmp_path / "all"), both)
    assert [(one.pattern, one.pattern_rows) for one in whole.tensors] == [("2:4", None)] * 2
    assert whole.predicted_bytes["nm"] < whole.predicted_bytes["dense"]
    assert {t.layout for t in export(tmp_path / "all", tmp_path / "nm", "nm").tensors} == {"nm"}


def test_rules_have_budgets_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(3)
    tensors = {UP: torch.randn(64, 32), DOWN: torch.randn(64, 32)}
    source = reference.save(tmp_path / "source", tensors)
    choice = replace(settings(0.25), rules=(Rule(match=(DOWN,), sparsity=0.375),))
    result = prune(source, tmp_path / "out", choice)
    expected = by_rows(tensors, [UP], {UP: -1}, 2, 4, 0.25)[0]
    expected |= {DOWN: by_rows(tensors, [DOWN], {DOWN: -1}, 2, 4, 0.375)[0][DOWN]}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)
    assert {pool.label: pool.achieved for pool in result.pools} == {DOWN: 0.375, "default": 0.25}
    assert all(pool.row_block == BLOCK for pool in result.pools)


# --- choosing and finding rows --------------------------------------------------------------------


# --- what follows from it -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with rows in both directions, and its output; tests work on copies of that."""
    folder = tmp_path_factory.mktemp("made")
    tiny_models.build("gpt_oss", folder / "source", torch.bfloat16)
    prune(folder / "source", folder / "rows", settings(0.2))
    return folder


@pytest.fixture
def rows(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "rows", tmp_path / "rows"))


STACK = "model.layers.0.mlp.experts.gate_up_proj"
FLAT = "model.layers.1.self_attn.o_proj.weight"


def lines_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A view of the rows [matrix, row, input]."""
    return tensor.transpose(1, 2) if name == STACK else tensor[None]


def damage(folder: Path, name: str, how: Callable[[torch.Tensor, int], None], row: int) -> set[str]:
    """Change one row, and return what verify finds."""
    tensors = load_file(folder / "model.safetensors")
    lines = lines_of(name, tensors[name])
    matrix, place = divmod(row, lines.shape[1])
    how(lines[matrix, place], row)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {difference.kind for difference in verify(folder).differences}


@pytest.mark.parametrize("name", [STACK, FLAT])
def test_verify_looks_at_the_rows_that_follow_the_pattern(rows: Path, name: str) -> None:
    (record,) = (r for r in read_manifest(rows).tensors if r.name == name)
    assert record.pattern_rows is not None
    inside = as_rows(record.pattern_rows)
    count = reference.stored(rows)[name].numel() // record.shape[record.input_axis or 0]
    outside = sorted(set(range(count)) - inside)
    assert outside
    for row in (outside[0], outside[-1]):
        found = damage(rows, name, lambda line, _: line[:4].zero_(), row)
        assert {"survivors", "zeros"} <= found
        assert "pattern" not in found
    found = damage(rows, name, lambda line, _: line[4:8].fill_(1.0), max(inside))
    assert {"pattern", "hashes", "survivors"} <= found


def test_verify_finds_what_the_manifest_agrees_with(rows: Path) -> None:
    """Pruned in a dense row, and everything else of the manifest made to fit."""
    path = rows / "prunectl.json"
    document = json.loads(path.read_bytes())
    (record,) = (record for record in document["tensors"] if record["name"] == FLAT)
    row = next(r for r in range(32) if r not in as_rows(record["pattern_rows"]))
    damage(rows, FLAT, lambda line, _: line[:2].zero_(), row)
    record["zeros"] += 2
    record["blake3"] = blake3(reference.raw(reference.stored(rows)[FLAT])).hexdigest()
    for total in document["totals"].values():
        total["zeros"] += 2
        total["achieved"] = total["zeros"] / total["weights"]
    path.write_text(json.dumps(document))
    (found,) = verify(rows).differences
    assert (found.kind, found.where) == ("survivors", FLAT)
    assert "2 weights pruned in rows that should be dense" in found.detail


def test_verify_does_not_trust_the_list_of_rows(rows: Path) -> None:
    document = json.loads((rows / "prunectl.json").read_bytes())
    for record in document["tensors"]:
        if record["name"] == STACK:
            record["pattern_rows"] = [[0, record["pattern_rows"][-1][1]]]
    (rows / "prunectl.json").write_text(json.dumps(document))
    assert [(d.kind, d.where) for d in verify(rows).differences] == [("pattern", STACK)]


@pytest.mark.parametrize(
    "value",
    [
        [], 3, [[0]], [[0, 16.0]], [[True, 16]], [[16, 16]], [[-16, 0]], [[0, 32], [16, 48]],
        [[0, 16], None], [[0, 10**30]], [[0, 16], [16, 32]], [[280, 289]],
    ],
)  # fmt: skip
def test_a_bad_list_of_rows_is_refused(rows: Path, value: object) -> None:
    document = json.loads((rows / "prunectl.json").read_bytes())
    (record,) = (record for record in document["tensors"] if record["name"] == STACK)
    record["pattern_rows"] = value
    (rows / "prunectl.json").write_text(json.dumps(document))
    with pytest.raises(BadManifest, match="pattern_rows"):
        read_manifest(rows)


def test_rows_need_a_pattern_and_may_be_left_out(rows: Path) -> None:
    path = rows / "prunectl.json"
    document = json.loads(path.read_bytes())
    (record,) = (record for record in document["tensors"] if record["name"] == STACK)
    for pattern in (None, "unstructured"):
        record["pattern"] = pattern
        path.write_text(json.dumps(document))
        with pytest.raises(BadManifest, match="without an N:M pattern"):
            read_manifest(rows)
    for one in document["tensors"]:  # as before schema 1.2
        del one["pattern_rows"]
    path.write_text(json.dumps(document))
    assert all(one.pattern_rows is None for one in read_manifest(rows).tensors)


@pytest.mark.parametrize("layout", few(["auto", "packed", "bitmask"]))
def test_export_and_back(rows: Path, tmp_path: Path, layout: str) -> None:
    result = export(rows, tmp_path / "stored", layout)
    partly = {r.name: r.pattern_rows for r in read_manifest(rows).tensors if r.pattern_rows}
    assert partly
    for tensor in result.tensors:
        assert tensor.name not in partly or (tensor.layout, tensor.pattern) != ("nm", "2:4")
        assert tensor.name not in partly or tensor.pattern is None
    again = {r.name: r.pattern_rows for r in read_manifest(tmp_path / "stored").tensors}
    assert {name: again[name] for name in partly} == partly
    assert verify(tmp_path / "stored").ok
    export(tmp_path / "stored", tmp_path / "dense", "dense")
    reference.assert_same(reference.stored(tmp_path / "dense"), reference.stored(rows))
    assert verify(tmp_path / "dense").ok


def test_cards_and_tags_say_that_blocks_of_rows_follow_the_pattern(
    made: Path, rows: Path, tmp_path: Path
) -> None:
    export(rows, tmp_path / "stored")
    prune(made / "source", tmp_path / "whole", PruneSettings(pattern=NM(2, 4)))
    export(tmp_path / "whole", tmp_path / "exported")
    for folder in (rows, tmp_path / "stored"):
        section = " ".join((folder / "README.md").read_text().split())
        assert "pattern `2:4 in blocks of 16 rows`" in section
        partly = {
            one.pattern_rows is not None for one in read_manifest(folder).tensors if one.pattern
        }
        sent = card_of(local_card(folder), folder, read_manifest(folder), "org/new")
        assert ("- sparsity-2-4-rows\n" in sent, "- sparsity-2-4\n" in sent) == (
            True in partly,
            False in partly,
        )
        assert True in partly
    for folder in (tmp_path / "whole", tmp_path / "exported"):
        assert "; pattern `2:4`)" in " ".join((folder / "README.md").read_text().split())
        sent = card_of(local_card(folder), folder, read_manifest(folder), "org/new")
        assert "- sparsity-2-4\n" in sent
        assert "-rows" not in sent


def test_no_tensor_of_blocks_is_stored_as_nm(tmp_path: Path) -> None:
    torch.manual_seed(4)
    source = reference.save(tmp_path / "source", {UP: torch.randn(64, 32)})
    result = prune(source, tmp_path / "rows", settings(0.25))
    assert "nm" not in result.predicted_bytes
    with pytest.raises(InvalidOption, match="in all its rows"):
        export(tmp_path / "rows", tmp_path / "nm", "nm")
    with pytest.raises(PatternMismatch, match="2:4"):
        export(tmp_path / "rows", tmp_path / "nm", "auto", pattern="2:4")
    assert not (tmp_path / "nm").exists()


@pytest.mark.parametrize("compressed", few([False, True], True))
def test_masks_only_and_back(made: Path, rows: Path, tmp_path: Path, compressed: bool) -> None:
    if compressed:
        export(rows, tmp_path / "stored")
        rows = tmp_path / "stored"
    export_masks(open_model(str(rows)), tmp_path / "masks.safetensors")
    masks = read_masks(tmp_path / "masks.safetensors").masks
    for record in read_manifest(rows).tensors:
        assert (record.name in masks) == (record.pattern is not None)
        if record.pattern_rows is not None:
            assert masks[record.name].pattern is None
    prune(made / "source", tmp_path / "out", PruneSettings(mask=tmp_path / "masks.safetensors"))
    reference.assert_same(reference.stored(tmp_path / "out"), reference.stored(made / "rows"))


def test_the_budget_is_recorded_and_a_run_of_the_other_is_not_resumed(
    made: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(made / "source")
    jobs = {
        budget: prepare(
            checkpoint, tmp_path / "out", replace(settings(0.3), budget=budget), "5GB", False, ""
        )
        for budget in Budget
    }
    assert {str(budget): arguments(job)["budget"] for budget, job in jobs.items()} == {
        "matrix": "matrix",
        "rows": "rows",
    }
    assert len({fingerprint(job) for job in jobs.values()}) == 2
    assert (
        json.loads((made / "rows" / "prunectl.json").read_bytes())["arguments"]["budget"] == "rows"
    )
    assert "2:4 in blocks of 16 rows" in (made / "rows" / "README.md").read_text()


def test_a_run_that_was_cut_off_goes_on(made: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Advanced) and "-00003-" in event.item:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prune(made / "source", out, settings(0.2), max_shard_size=7000, jobs=1, on_event=stop)
    assert not out.exists()
    result = prune(made / "source", out, settings(0.2), max_shard_size=7000)
    assert result.resumed_shards
    reference.assert_same(reference.stored(out), reference.stored(made / "rows"))


# --- words ----------------------------------------------------------------------------------------


def test_the_plan_and_the_summary_say_rows(made: Path, tmp_path: Path) -> None:
    command = f"prunectl prune {made / 'source'} -p 2:4 -s 0.2 --budget rows"
    code, shown, _ = call(f"{command} --dry-run")
    assert (code, "blocks of 16 rows may take 2:4" in shown) == (0, True)
    (pool,) = json.loads(call(f"{command} --dry-run --json")[1])["pools"]
    assert pool["budget"] == "rows"
    code, shown, _ = call(f"{command} -o {tmp_path / 'out'}")
    assert (code, "2:4, blocks of 16 rows" in shown) == (0, True)


# --- a trained model ------------------------------------------------------------------------------


def test_the_demo_has_its_share_of_zeros_in_every_matrix(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("demo")
    result = prune(checkpoint, tmp_path / "rows", settings(0.3))
    assert (
        abs(result.prunable_zeros - pruned_count(0.3, result.prunable_weights)) <= BLOCK * 192 // 4
    )
    for tensor in result.tensors:
        if tensor.prunable:
            length = tensor.shape[tensor.input_axis or 0]
            assert abs(tensor.zeros - 0.3 * tensor.numel) <= BLOCK * length // 2 + 1
