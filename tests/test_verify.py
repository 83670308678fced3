"""``verify`` finds every kind of damage, and says what it could not check."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny_models
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from prunectl import NM, PruneSettings, VerifyReport, open_checkpoint, prune, verify
from prunectl.errors import BadManifest
from prunectl.events import Event, Note
from prunectl.output.manifest import read_manifest

INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source and two sharded outputs of it; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    tiny_models.build("llama", folder / "source", torch.bfloat16)
    (folder / "source" / "notes.txt").write_text("of the source")
    source = folder / "source"
    prune(source, folder / "cut", PruneSettings(sparsity=0.4), max_shard_size=15_000)
    prune(source, folder / "groups", PruneSettings(pattern=NM(2, 4)), max_shard_size=15_000)
    return folder


@pytest.fixture
def cut(made: Path, tmp_path: Path) -> Path:
    """A copy of the unstructured output; the source it names is still reachable."""
    return Path(shutil.copytree(made / "cut", tmp_path / "cut"))


@pytest.fixture
def groups(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "groups", tmp_path / "groups"))


def kinds(report: VerifyReport) -> dict[str, set[str]]:
    """Where differences are, by kind; the checks must tell the same."""
    found: dict[str, set[str]] = {}
    for difference in report.differences:
        found.setdefault(difference.kind, set()).add(difference.where)
    assert {check.name for check in report.checks if check.passed is False} == found.keys()
    assert report.ok == (not found)
    return found


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_bytes())["weight_map"][name]


def change(folder: Path, name: str, how: Callable[[torch.Tensor], None]) -> None:
    """Change one stored tensor where it lies; every other byte of the file stays."""
    path = shard_of(folder, name)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])[name]
    begin, end = (start + offset for offset in entry["data_offsets"])
    tensor = load_file(path)[name].clone()
    how(tensor)
    data[begin:end] = reference.raw(tensor)
    path.write_bytes(data)


def edit_manifest(folder: Path, how: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "prunectl.json"
    document = json.loads(path.read_bytes())
    how(document)
    path.write_text(json.dumps(document))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def entry_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    entry: dict[str, Any]
    (entry,) = [tensor for tensor in document["tensors"] if tensor["name"] == name]
    return entry


def flip_lowest_bit(tensor: torch.Tensor, where: torch.Tensor) -> None:
    tensor.view(torch.int16)[tuple(where)] ^= 1


# --- intact -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["cut", "groups"])
def test_an_intact_output_passes_every_check(made: Path, which: str) -> None:
    report = verify(made / which)
    assert kinds(report) == {}
    assert all(check.passed for check in report.checks)
    output = reference.stored(made / which)
    assert report.tensors == len(output)
    assert report.zeros == reference.zeros(output.values())


def test_an_output_may_be_moved(cut: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    cut.rename(moved)
    report = verify(moved)
    assert kinds(report) == {}
    assert all(check.passed for check in report.checks)


def test_the_card_is_for_people_to_edit(cut: Path) -> None:
    (cut / "README.md").write_text("# My own words\n")
    assert kinds(verify(cut)) == {}
    (cut / "README.md").unlink()
    assert kinds(verify(cut)) == {"files": {"README.md"}}


# --- weights ------------------------------------------------------------------------------------


def test_one_flipped_bit_of_a_survivor(cut: Path) -> None:
    change(cut, UP, lambda t: flip_lowest_bit(t, t.nonzero()[-1]))
    report = verify(cut)
    assert kinds(report) == {"hashes": {UP}, "survivors": {UP}}
    assert kinds(verify(cut, source=None)) == {"hashes": {UP}}
    failed = {check.name: check.detail for check in report.checks if check.passed is False}
    assert failed == {
        "hashes": "failed, 1 difference: stored bytes have the hashes of the manifest",
        "survivors": "failed, 1 difference: survivors are bit-identical to the source",
    }
    (survivor,) = [one for one in report.differences if one.kind == "survivors"]
    assert survivor.detail == "1 weight with neither the source's bits nor +0.0"


def test_one_pruned_weight_restored(cut: Path, made: Path) -> None:
    original = reference.stored(made / "source")[UP]

    def restore(tensor: torch.Tensor) -> None:
        gone = (tensor == 0) & (original != 0)
        where = tuple(gone.nonzero()[original[gone].abs().argmin()])
        tensor[where] = original[where]

    change(cut, UP, restore)
    # It is the source's own weight, so only count, hash and threshold can tell.
    assert kinds(verify(cut)) == {"hashes": {UP}, "zeros": {UP}, "threshold": {UP}}
    assert kinds(verify(cut, source=None)) == {"hashes": {UP}, "zeros": {UP}}


def test_a_large_weight_pruned_instead_of_a_small_one(cut: Path, made: Path) -> None:
    original = reference.stored(made / "source")[UP]

    def swap(tensor: torch.Tensor) -> None:
        small = tuple(((tensor == 0) & (original != 0)).nonzero()[0])
        large = tuple((tensor.abs() == tensor.abs().max()).nonzero()[0])
        tensor[small], tensor[large] = original[small], 0

    change(cut, UP, swap)
    assert kinds(verify(cut)) == {"hashes": {UP}, "threshold": {UP}}


def test_a_group_with_three_weights(groups: Path, made: Path) -> None:
    original = reference.stored(made / "source")[UP]

    def refill(tensor: torch.Tensor) -> None:
        where = tuple((tensor == 0).nonzero()[7])
        tensor[where] = original[where]

    change(groups, UP, refill)
    assert kinds(verify(groups)) == {"hashes": {UP}, "zeros": {UP}, "pattern": {UP}}


def test_damage_is_found_even_if_the_manifest_was_made_to_agree(groups: Path, made: Path) -> None:
    original = reference.stored(made / "source")[UP]

    def move(tensor: torch.Tensor) -> None:
        # A zero more in one group and one less in the next: the count stays.
        row = tensor[0]
        (kept, *_), (gone, *_) = row[:4].nonzero(), (row[4:8] == 0).nonzero() + 4
        row[gone], row[kept] = original[0][gone], 0

    change(groups, UP, move)
    digest = blake3(reference.raw(reference.stored(groups)[UP])).hexdigest()
    edit_manifest(groups, lambda d: entry_of(d, UP).update(blake3=digest))
    assert kinds(verify(groups)) == {"pattern": {UP}}


def negate(tensor: torch.Tensor) -> None:
    where = tuple(tensor.nonzero()[0])
    tensor[where] = -tensor[where]


def edit_index(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / INDEX).read_bytes())
    how(document)
    (folder / INDEX).write_text(json.dumps(document))


def put(name: str, text: str) -> Damage:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text)

    return write


def link_to_nowhere(folder: Path) -> None:
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to("nowhere")


def of_up(**changes: Any) -> Damage:
    return lambda folder: edit_manifest(folder, lambda d: entry_of(d, UP).update(changes))


DAMAGES: dict[str, tuple[Damage, dict[str, set[str]]]] = {
    "survivor of the other sign": (
        lambda f: change(f, UP, negate), {"hashes": {UP}, "survivors": {UP}}
    ),
    "tensor that was not pruned": (
        lambda f: change(f, NORM, lambda t: t.mul_(2)), {"hashes": {NORM}, "untouched": {NORM}}
    ),
    "missing side file": (lambda f: (f / "notes.txt").unlink(), {"files": {"notes.txt"}}),
    "missing index": (lambda f: (f / INDEX).unlink(), {"files": {INDEX}, "index": {INDEX}}),
    "no index": (
        put(INDEX, "{"), {"index": {INDEX}, "side files": {INDEX}, "files": {"cut"}}
    ),
    "index without a tensor": (
        lambda f: edit_index(f, lambda d: d["weight_map"].pop(UP)),
        {"index": {UP}, "side files": {INDEX}},
    ),
    "link to nowhere": (
        link_to_nowhere, {"files": {"notes.txt"}, "side files": {"notes.txt"}}
    ),
    # It is compared with the source's, and would never end.
    "pipe": (
        lambda f: make_pipe(f / "config.json"),
        {"files": {"config.json"}, "side files": {"config.json"}},
    ),
    **{
        f"stray {name}": (put(name, "stray"), {"files": {name}})
        for name in ("more.txt", "sub/folder/more.txt", ".hidden", "x.safetensors")
    },
    "another count": (of_up(zeros=5), {"zeros": {UP, "prunectl.json"}}),
    "another hash": (of_up(blake3="0" * 64), {"hashes": {UP}}),
    "said to be dense": (of_up(pattern=None, threshold=None), {"untouched": {UP}}),
    "forgotten tensor": (
        lambda f: edit_manifest(f, lambda d: d["tensors"].remove(entry_of(d, NORM))),
        {"shapes": {NORM}, "index": {NORM}, "zeros": {"prunectl.json"}},
    ),
    "later minor version": (
        lambda f: edit_manifest(f, lambda d: d.update(schema="1.7", something_new=[1])), {}
    ),
    "git": (put(".git/HEAD", "ref: refs/heads/main\n"), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_each_damage_is_told_by_its_kind(cut: Path, case: str) -> None:
    damage, expected = DAMAGES[case]
    damage(cut)
    assert kinds(verify(cut)) == expected


# --- files --------------------------------------------------------------------------------------


def test_a_side_file_changed(cut: Path) -> None:
    (cut / "notes.txt").write_text("of the SOURCE")
    assert kinds(verify(cut)) == {
        "side files": {"notes.txt"},
        "side files of the source": {"notes.txt"},
    }
    assert kinds(verify(cut, source=None)) == {"side files": {"notes.txt"}}


def test_a_missing_shard(cut: Path) -> None:
    path = shard_of(cut, UP)
    path.unlink()
    report = verify(cut)
    assert kinds(report) == {"files": {path.name, cut.name}}
    assert any(path.name in d.detail for d in report.differences if d.where == cut.name)
    undone = {check.name for check in report.checks if check.passed is None}
    assert {"hashes", "zeros", "pattern", "survivors", "untouched", "loads"} <= undone


def test_a_truncated_shard(cut: Path) -> None:
    path = shard_of(cut, UP)
    os.truncate(path, path.stat().st_size - 3)
    report = verify(cut)
    assert kinds(report) == {"files": {cut.name}}
    assert path.name in report.differences[0].detail


def test_an_index_that_says_another_shard(cut: Path) -> None:
    document = json.loads((cut / INDEX).read_bytes())
    here = document["weight_map"][UP]
    document["weight_map"][UP] = document["weight_map"][NORM]
    assert document["weight_map"][UP] != here
    (cut / INDEX).write_text(json.dumps(document))
    found = kinds(verify(cut))
    assert found["index"] == {UP}
    assert found["side files"] == {INDEX}
    assert cut.name in found["files"]


def test_a_tensor_renamed(made: Path, tmp_path: Path) -> None:
    prune(made / "source", tmp_path / "out", PruneSettings(sparsity=0.4))
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    other = UP.replace("up", "upper")
    tensors[other] = tensors.pop(UP)
    save_file(tensors, path, metadata={"format": "pt"})
    found = kinds(verify(tmp_path / "out"))
    assert found["shapes"] == {UP, other}
    assert found["loads"] == {UP, other}
    assert found["untouched"] == {UP}


def test_a_tensor_of_another_shape(made: Path, tmp_path: Path) -> None:
    prune(made / "source", tmp_path / "out", PruneSettings(sparsity=0.4))
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    tensors[UP] = tensors[UP].t().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    found = kinds(verify(tmp_path / "out"))
    assert {"shapes", "hashes", "source", "loads"} <= found.keys()
    assert all(where == {UP} for where in found.values())


def test_what_transformers_cannot_convert(tmp_path: Path) -> None:
    # One expert of a stack is gone: from_pretrained raises instead of listing it.
    tiny_models.build("mixtral", tmp_path / "source")
    prune(tmp_path / "source", tmp_path / "out", PruneSettings(sparsity=0.4))
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    gone = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    report = verify(tmp_path / "out")
    found = kinds(report)
    assert found["shapes"] == {gone}
    (difference,) = [d for d in report.differences if d.kind == "loads"]
    assert "MixtralForCausalLM cannot be loaded" in difference.detail


def test_what_the_model_has_no_use_for_in_the_source_either(tmp_path: Path) -> None:
    tiny_models.build("bert", tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    extra = {"cls.seq_relationship.weight": torch.ones(2, 32)}
    save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})
    prune(tmp_path / "source", tmp_path / "out", PruneSettings(sparsity=0.4))
    notes: list[Event] = []
    report = verify(tmp_path / "out", on_event=notes.append)
    assert kinds(report) == {}
    assert any(isinstance(n, Note) and "cls.seq_relationship.weight" in n.text for n in notes)


def test_an_architecture_that_is_unknown_is_not_a_difference(tmp_path: Path) -> None:
    source = reference.save(tmp_path / "source", {UP: torch.randn(8, 8)})
    prune(source, tmp_path / "out", PruneSettings(sparsity=0.5))
    report = verify(tmp_path / "out")
    assert kinds(report) == {}
    assert {check.name for check in report.checks if check.passed is None} == {"loads"}


# --- manifest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("total", ["overall", "prunable"])
@pytest.mark.parametrize("change_by", [-5000, 5000])
def test_a_manifest_with_other_totals(cut: Path, total: str, change_by: int) -> None:
    def edit(document: dict[str, Any]) -> None:
        count = document["totals"][total]
        count["zeros"] += change_by
        count["achieved"] = count["zeros"] / count["weights"]

    edit_manifest(cut, edit)
    assert kinds(verify(cut)) == {"zeros": {"prunectl.json"}}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "prunectl.json").unlink(), "No such file"),
        (lambda folder: (folder / "prunectl.json").write_text("{"), "not JSON"),
        (lambda folder: make_pipe(folder / "prunectl.json"), "not a regular file"),
        (lambda folder: (folder / "prunectl.json").write_text("[]"), "prunectl.json"),
        (lambda folder: edit_manifest(folder, lambda d: d.update(schema="2.0")), "version 2.0"),
        (lambda folder: edit_manifest(folder, lambda d: d.pop("tensors")), "tensors"),
        (
            lambda folder: edit_manifest(folder, lambda d: d["files"][0].update(name="../x")),
            r"\.\./x",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used(cut: Path, damage: Damage, why: str) -> None:
    damage(cut)
    with pytest.raises(BadManifest, match=why) as caught:
        verify(cut)
    assert caught.value.path == str(cut / "prunectl.json")
    assert caught.value.exit_code == 1


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="No such file"):
        verify(tmp_path / "nothing")


# --- source -------------------------------------------------------------------------------------

NEED_SOURCE = {"source", "survivors", "untouched", "threshold", "side files of the source"}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A source of its own, and its output."""
    tiny_models.build("llama", tmp_path / "source")
    prune(tmp_path / "source", tmp_path / "out", PruneSettings(sparsity=0.4))
    return tmp_path / "source", tmp_path / "out"


def undone(report: VerifyReport) -> dict[str, str]:
    assert report.ok
    return {check.name: check.detail for check in report.checks if check.passed is None}


def test_a_source_that_is_gone(pair: tuple[Path, Path]) -> None:
    source, out = pair
    shutil.rmtree(source)
    notes: list[Event] = []
    found = undone(verify(out, on_event=notes.append))
    assert found.keys() == NEED_SOURCE
    assert all("not reachable" in why and str(source) in why for why in found.values())
    assert any(isinstance(n, Note) and "without the source" in n.text for n in notes)


@pytest.mark.parametrize("model", ["x" * 4000, "a/" * 2000, "~nobody-of-this-name/x"])
def test_a_source_that_no_system_can_have(pair: tuple[Path, Path], model: str) -> None:
    edit_manifest(pair[1], lambda d: d["source"].update(model=model))
    found = undone(verify(pair[1]))
    assert found.keys() == NEED_SOURCE
    assert all("not reachable" in why for why in found.values())


def test_a_source_that_is_another_one_now(pair: tuple[Path, Path]) -> None:
    source, out = pair
    shutil.rmtree(source)
    tiny_models.build("bert", source)
    found = undone(verify(out))
    assert found.keys() == NEED_SOURCE
    assert all("not the ones that were pruned" in why for why in found.values())


def test_a_source_that_is_damaged_now(pair: tuple[Path, Path]) -> None:
    source, out = pair
    os.truncate(source / "model.safetensors", 1000)
    assert undone(verify(out)).keys() == NEED_SOURCE


def test_a_source_is_left_out_as_asked(pair: tuple[Path, Path]) -> None:
    assert set(undone(verify(pair[1], source=None)).values()) == {"left out on request"}


def test_a_source_that_was_moved_can_be_named(pair: tuple[Path, Path]) -> None:
    source, out = pair
    moved = source.rename(source.with_name("moved"))
    assert undone(verify(out)).keys() == NEED_SOURCE
    assert undone(verify(out, source=open_checkpoint(moved))) == {}


def test_another_model_named_as_source(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_models.build("qwen2", tmp_path / "other")
    found = kinds(verify(pair[1], source=open_checkpoint(tmp_path / "other")))
    assert {"survivors", "untouched", "side files of the source"} <= found.keys()


def test_a_new_side_file_in_the_source(pair: tuple[Path, Path]) -> None:
    source, out = pair
    (source / "vocab.txt").write_text("new")
    assert kinds(verify(out)) == {"side files of the source": {"vocab.txt"}}


@pytest.mark.parametrize("depth", ["source", "org/source"])
def test_a_relative_source_seen_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: str
) -> None:
    # "org/source" could be a Hub id too: the Hub must not be asked.
    tiny_models.build("llama", tmp_path / depth)
    monkeypatch.chdir(tmp_path)
    prune(depth, "out", PruneSettings(sparsity=0.4))
    assert read_manifest(tmp_path / "out").source.model == depth
    assert undone(verify("out")) == {}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = undone(verify("../out"))
    assert found.keys() == NEED_SOURCE
    assert set(found.values()) == {f"the source is not reachable ({depth}: no such file or folder)"}


# --- the command line ---------------------------------------------------------------------------


def test_exit_codes(cut: Path, typed: Callable[..., tuple[int, str, str]]) -> None:
    assert typed("verify", cut, "--json", "-q")[0] == 0
    change(cut, NORM, lambda t: t.mul_(2))
    code, out, _ = typed("verify", cut, "--json", "-q")
    assert code == 3
    document = json.loads(out)
    assert document["ok"] is False
    assert {d["where"] for d in document["differences"]} == {NORM}
