"""Bad input of ``export`` and of the loaders: the right error, the tensor's name, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export_cases as cases
import numpy as np
import pytest
import reference
import tiny_models
import torch
from blake3 import blake3
from export_cases import WEIGHTS, Header
from full import few

import prunectl
from prunectl import (
    NM,
    PruneSettings,
    export,
    load_state_dict,
    open_checkpoint,
    open_weights,
    prune,
    verify,
)
from prunectl.cli.run import run
from prunectl.errors import (
    BadCheckpoint,
    BadManifest,
    CannotWrite,
    InvalidOption,
    InvalidPattern,
    NoSpace,
    OutputConflict,
    PatternMismatch,
    PrunectlError,
    UnsupportedCheckpoint,
)
from prunectl.events import Event
from prunectl.exporting.masks import export_masks
from prunectl.layouts.errors import Damaged
from prunectl.layouts.packing.scheme import read_scheme
from prunectl.loading.finished import check_finished
from prunectl.output import target
from prunectl.output.journal import Journal
from prunectl.output.manifest import read_manifest
from prunectl.output.resumable import ResumableFolder
from prunectl.output.target import journal_file, work_folder
from prunectl.parallel.run import PLAIN_RUN
from prunectl.tensorspec import DTYPES

UP = "model.layers.1.mlp.up_proj.weight"
INDEX = f"{WEIGHTS}.index.json"
Typed = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model, and an export of it in each layout; tests work on copies."""
    place = tmp_path_factory.mktemp("made")
    tiny_models.build("llama", place / "source")
    prune(place / "source", place / "pruned", PruneSettings(pattern=NM(2, 4)))
    for layout in cases.LAYOUTS:
        export(place / "pruned", place / layout, layout)
    export(place / "pruned", place / "shards", "packed", max_shard_size=20_000)
    return place


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return cases.copied(made / "pruned", tmp_path / "pruned")


@pytest.fixture
def small(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda layout: cases.copied(made / layout, tmp_path / layout)


Small = Callable[[str], Path]


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Runs ``prunectl ARGS`` in ``tmp_path``; gives the exit code and what a person reads."""
    monkeypatch.chdir(tmp_path)

    def type_it(*args: object) -> tuple[int, str]:
        code = run([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert out == "" or args[0] == "verify"
        assert "Traceback" not in err
        assert "this is a bug" not in err
        return code, out + err

    return type_it


def refused(
    typed: Typed,
    kind: type[PrunectlError],
    names: str,
    model: Path,
    out: str = "out",
    *more: object,
    code: int = 1,
    layout: str = "dense",
    **options: Any,
) -> PrunectlError:
    """The library raises, the command ends with ``code`` and one or two lines; nothing is left."""
    place = Path.cwd()
    before = reference.snapshot(place)
    with pytest.raises(PrunectlError) as caught:
        export(model, place / out, layout, **options)
    assert type(caught.value) is kind, caught.value
    assert names in str(caught.value)
    assert caught.value.hint
    found, text = typed("export", model, "-o", out, "-l", layout, "-q", *more)
    assert found == code == caught.value.exit_code
    assert names in text
    assert 1 <= len(text.strip().splitlines()) <= 2
    assert reference.snapshot(place) == before
    return caught.value


def damaged(typed: Typed, folder: Path, tensor: str, *says: str) -> None:
    """Every reader refuses the tensor by name, and ``verify`` finds a difference."""
    error = refused(typed, BadCheckpoint, f"'{tensor}'", folder)
    for text in says:
        assert text in str(error)
    refused(typed, BadCheckpoint, f"'{tensor}'", folder, layout="packed")
    for load in (load_state_dict, lambda path: open_weights(path)[tensor]):
        with pytest.raises(BadCheckpoint, match=f"'{tensor}'"):
            load(folder)
    code, text = typed("verify", folder)
    assert (code, tensor in text) == (3, True) or (code == 1 and tensor in text), text


def flip(data: bytes, place: int, bits: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def change_part(folder: Path, part: str, how: Callable[[bytes], bytes]) -> None:
    """Other bytes under a stored name; its shape follows where it has one dimension."""
    path = folder / WEIGHTS
    dtype, shape, data = cases.entries(path)[part]
    new = how(data)
    if len(new) != len(data):
        assert len(shape) == 1
        shape = (shape[0] * len(new) // len(data),)
    cases.replace_stored(path, {part: (dtype, shape, new)})


# --- damaged parts ------------------------------------------------------------------------------

PARTS = [
    ("packed", "data"),
    ("packed", "chunks"),
    ("bitmask", "mask"),
    ("bitmask", "values"),
    ("nm", "values"),
    ("nm", "positions"),
]


def shortened(folder: Path, part: str) -> None:
    dtype, shape, data = cases.entries(folder / WEIGHTS)[part]
    rows = shape[0] // 2
    short = (rows, *shape[1:]), data[: len(data) * rows // shape[0]]
    cases.replace_stored(folder / WEIGHTS, {part: (dtype, *short)})


def of_another_type(folder: Path, part: str) -> None:
    dtype, shape, data = cases.entries(folder / WEIGHTS)[part]
    other = {"U8": "I8", "U32": "I32", "F32": "I32"}[dtype]
    cases.replace_stored(folder / WEIGHTS, {part: (other, shape, data)})


def missing(folder: Path, part: str) -> None:
    path = folder / WEIGHTS
    header: Header = {"__metadata__": cases.read_file(path)[0]["__metadata__"]}
    data = b""
    for name, (dtype, shape, some) in cases.entries(path).items():
        if name != part:
            place = [len(data), len(data) + len(some)]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": place}
            data += some
    cases.write_file(path, header, data)


DAMAGES: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "the first byte": (lambda folder, part: change_part(folder, part, lambda d: flip(d, 0)), ""),
    "a byte inside": (
        lambda folder, part: change_part(folder, part, lambda d: flip(d, len(d) // 2)), "",
    ),
    "shortened": (shortened, ""),
    "another type": (of_another_type, "the part '{}' is "),
    "missing": (missing, "its part '{}' is missing"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "suffix"), few(PARTS, ("packed", "data"), ("bitmask", "values"), ("nm", "positions"))
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part(small: Small, typed: Typed, layout: str, suffix: str, damage: str) -> None:
    folder = small(layout)
    change, says = DAMAGES[damage]
    change(folder, f"{UP}.{suffix}")
    damaged(typed, folder, UP, says.format(suffix))


@pytest.mark.parametrize("bytes_left", [0, 100, -1])
def test_a_truncated_file(small: Small, typed: Typed, bytes_left: int) -> None:
    path = small("packed") / WEIGHTS
    os.truncate(path, bytes_left if bytes_left >= 0 else path.stat().st_size - 1)
    refused(typed, BadCheckpoint, WEIGHTS, path.parent)
    with pytest.raises(BadCheckpoint, match="truncated"):
        load_state_dict(path.parent)
    code, text = typed("verify", path.parent)
    assert (code, "truncated" in text) == (3, True)


@pytest.mark.parametrize("layout", ["packed", "bitmask", "nm"])
def test_parts_of_two_tensors_exchanged(small: Small, typed: Typed, layout: str) -> None:
    """Same layout, same shape, and everything decodes: only the hash can tell."""
    folder = small(layout)
    gate = UP.replace("up", "gate")
    described = cases.described(folder / WEIGHTS)
    stored = cases.entries(folder / WEIGHTS)
    assert described[gate]["shape"] == described[UP]["shape"]
    both = {}
    for suffix in described[UP]["parts"]:
        both[f"{UP}.{suffix}"] = stored[f"{gate}.{suffix}"]
        both[f"{gate}.{suffix}"] = stored[f"{UP}.{suffix}"]
    cases.replace_stored(folder / WEIGHTS, both)

    def exchange(document: Header) -> None:  # parameters belong to the parts
        one, other = document["tensors"][UP], document["tensors"][gate]
        one["extra"], other["extra"] = other["extra"], one["extra"]

    cases.edit_described(folder / WEIGHTS, exchange)
    with pytest.raises(BadCheckpoint, match="does not match its stored hash"):
        load_state_dict(folder)
    damaged(typed, folder, gate)


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("a\ud800", [4, 4], r"tensor name 'a\ud800' is not valid Unicode"),
        ("__metadata__", [4, 4], "tensor name '__metadata__' is reserved by safetensors"),
        (
            "a",
            [2**40, 2**40, 0],
            "tensor 'a': shape [1099511627776, 1099511627776, 0] has too many",
        ),
        ("a", [1] * 65, "tensor 'a': shape [1, 1, 1, 1, 1, 1, ...] is not a list of sizes"),
    ],
)
def test_a_description_of_what_no_dense_file_can_hold(
    small: Small, typed: Typed, name: str, shape: list[int], why: str
) -> None:
    folder = small("packed")

    def edit(document: Header) -> None:
        document["tensors"][name] = document["tensors"].pop(UP) | {"shape": shape}

    cases.edit_described(folder / WEIGHTS, edit)
    refused(typed, BadCheckpoint, why, folder)


def test_a_name_without_room_for_those_of_parts(tmp_path: Path) -> None:
    long, dotted = "a" * 1000 + ".up_proj.weight", "a." * 63 + "weight"
    tensors = {name: torch.eye(64, dtype=torch.bfloat16) for name in (UP, long, dotted)}
    reference.save(tmp_path / "dense", tensors)
    export(tmp_path / "dense", tmp_path / "small", "bitmask")
    assert list(cases.described(tmp_path / "small" / WEIGHTS)) == [UP]
    reference.assert_same(load_state_dict(tmp_path / "small"), tensors)


def test_a_foreign_shard(made: Path, small: Small, tmp_path: Path, typed: Typed) -> None:
    """A whole shard of another export, its own hashes right: the manifest's are the judge."""
    torch.manual_seed(5)
    other = cases.copied(made / "source", tmp_path / "other")
    state = {n: torch.randn_like(t) for n, t in reference.stored(other).items()}
    reference.save(other, state)
    prune(other, tmp_path / "other-pruned", PruneSettings(pattern=NM(2, 4)))
    export(tmp_path / "other-pruned", tmp_path / "foreign", "packed", max_shard_size=20_000)
    folder = small("shards")
    name = json.loads((folder / INDEX).read_bytes())["weight_map"][f"{UP}.data"]
    shutil.copyfile(tmp_path / "foreign" / name, folder / name)
    report = verify(folder)
    assert UP in {one.where for one in report.differences if one.kind == "hashes"}
    there = cases.entries(folder / name)
    with pytest.raises(BadCheckpoint, match="is damaged: it does not match") as caught:
        load_state_dict(folder)
    assert any(f"'{part.rpartition('.')[0]}'" in str(caught.value) for part in there)
    with pytest.raises(BadCheckpoint, match=f"'{UP}'"):
        open_weights(folder)[UP]
    code, text = typed("verify", folder)
    assert code == 3
    assert "hashes" in text


# --- files that are missing, or not what they were ----------------------------------------------


def test_a_part_that_the_description_leaves_out(small: Small, typed: Typed) -> None:
    folder = small("packed")

    def edit(document: Header) -> None:
        document["tensors"][UP]["parts"].remove("chunks")

    cases.edit_described(folder / WEIGHTS, edit)
    # The part is taken for a tensor of its own then, which the manifest does not know.
    refused(typed, BadCheckpoint, f"'{UP}.chunks'", folder)
    with pytest.raises(BadCheckpoint, match=f"'{UP}.chunks'"):
        load_state_dict(folder)
    (folder / "prunectl.json").unlink()
    with pytest.raises(BadCheckpoint, match=f"'{UP}' is damaged: the part 'chunks' is missing"):
        load_state_dict(folder)


def test_a_missing_shard(small: Small, typed: Typed) -> None:
    folder = small("shards")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    refused(typed, BadCheckpoint, gone.name, folder)
    with pytest.raises(BadCheckpoint, match=gone.name):
        load_state_dict(folder)
    code, text = typed("verify", folder)
    assert code == 3
    assert gone.name in text


def test_a_missing_shard_and_no_index(small: Small, typed: Typed) -> None:
    folder = small("shards")
    (folder / INDEX).unlink()
    sorted(folder.glob("*.safetensors"))[1].unlink()
    (folder / "prunectl.json").unlink()
    refused(typed, BadCheckpoint, "some are missing", folder)
    with pytest.raises(BadCheckpoint, match="some are missing"):
        load_state_dict(folder)


def test_no_index_is_no_obstacle_where_no_shard_is_missing(
    made: Path, small: Small, tmp_path: Path
) -> None:
    folder = small("shards")
    (folder / INDEX).unlink()
    export(folder, tmp_path / "back", "dense")
    cases.assert_same(cases.raw(tmp_path / "back"), cases.raw(made / "pruned"))
    assert not verify(folder).ok


def test_dense_and_compressed_weights_side_by_side(made: Path, small: Small, typed: Typed) -> None:
    folder = small("packed")
    shutil.copyfile(made / "pruned" / "model.safetensors", folder / "model.safetensors")
    refused(typed, BadCheckpoint, "a compressed and a dense checkpoint", folder)
    with pytest.raises(BadCheckpoint, match="a compressed and a dense"):
        load_state_dict(folder)


def test_a_compressed_name_on_an_ordinary_file(made: Path, tmp_path: Path, typed: Typed) -> None:
    folder = tmp_path / "renamed"
    folder.mkdir()
    shutil.copyfile(made / "pruned" / "model.safetensors", folder / WEIGHTS)
    refused(typed, BadCheckpoint, "does not describe its compression", folder)


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2", 1, None])
def test_a_newer_format(small: Small, typed: Typed, version: object) -> None:
    folder = small("packed")
    cases.edit_described(folder / WEIGHTS, lambda document: document.update(format=version))
    error = refused(typed, BadCheckpoint, f"format {version!r}", folder)
    assert "newer prunectl" in error.hint
    with pytest.raises(BadCheckpoint, match="this prunectl reads '1'"):
        load_state_dict(folder)


def test_a_newer_manifest(small: Small, typed: Typed) -> None:
    folder = small("packed")
    cases.edit_manifest(folder, lambda document: document.update(schema="2.0"))
    error = refused(typed, BadManifest, "schema version 2.0", folder)
    assert "newer prunectl" in error.hint
    code, text = typed("verify", folder)
    assert code == 1
    assert "2.0" in text
    # The weights files speak for themselves.
    assert load_state_dict(folder)


EDITS: list[tuple[str, dict[str, Any]]] = [
    ("rules", {"arguments": {"rules": 5}}),
    ("model", {"source": {"model": "a\0b"}}),
    ("repo_id", {"source": {"repo_id": "a/b\n<!-- prunectl:end -->\n"}}),
    ("role", {"tensors": {"role": "\ud800"}}),
    ("arguments", {"arguments": {"x": float("inf")}}),
]


@pytest.mark.parametrize(("field", "edit"), EDITS, ids=str)
def test_a_manifest_that_was_edited_by_hand(
    small: Small, typed: Typed, field: str, edit: dict[str, dict[str, Any]]
) -> None:
    def change(document: Header) -> None:
        for member, values in edit.items():
            inside = document[member]
            (inside[0] if isinstance(inside, list) else inside).update(values)

    folder = small("packed")
    cases.edit_manifest(folder, change)
    refused(typed, BadManifest, field, folder)


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_an_unreadable_manifest(small: Small, typed: Typed, text: str | None) -> None:
    """No JSON, no object, or a pipe, which is not waited for; the weights can be read."""
    folder = small("packed")
    (folder / "prunectl.json").unlink()
    if text is None:
        os.mkfifo(folder / "prunectl.json")
    else:
        (folder / "prunectl.json").write_text(text)
    refused(typed, BadManifest, "prunectl.json", folder)
    assert load_state_dict(folder)


def test_a_manifest_of_other_tensors(small: Small, typed: Typed) -> None:
    folder = small("packed")

    def forget(document: dict[str, Any]) -> None:
        document["tensors"] = [one for one in document["tensors"] if one["name"] != UP]

    cases.edit_manifest(folder, forget)
    refused(typed, BadCheckpoint, f"disagree about tensor '{UP}'", folder)
    with pytest.raises(BadCheckpoint, match=f"disagree about tensor '{UP}'"):
        load_state_dict(folder)


def test_a_tensor_that_is_seen_in_another_shape(small: Small, typed: Typed) -> None:
    """Of as many weights, and so of the same bytes and the same hash."""
    folder = small("bitmask")
    edit_tensor(folder, lambda one: one["shape"].reverse())
    refused(typed, BadCheckpoint, f"disagree about tensor '{UP}'", folder)
    for load in (load_state_dict, open_weights):
        with pytest.raises(BadCheckpoint, match=f"disagree about tensor '{UP}'"):
            load(folder)
    code, text = typed("verify", folder)
    assert code == 3
    assert UP in text


def test_a_manifest_whose_hash_is_another(small: Small, typed: Typed) -> None:
    """Weights and manifest of two exports: each is whole, and together they are not."""
    folder = small("packed")

    def other(document: dict[str, Any]) -> None:
        (record,) = [one for one in document["tensors"] if one["name"] == UP]
        record["blake3"] = "0" * 64

    cases.edit_manifest(folder, other)
    code, text = typed("verify", folder)
    assert code == 3
    assert UP in text
    refused(typed, BadCheckpoint, UP, folder)


# --- headers that mean harm ---------------------------------------------------------------------


def edit_tensor(folder: Path, how: Callable[[Header], None], tensor: str = UP) -> None:
    cases.edit_described(folder / WEIGHTS, lambda document: how(document["tensors"][tensor]))


HUGE = [[1 << 40], [1 << 31, 1 << 31], [1 << 20, 1 << 20, 64], [(1 << 61) - 1], [1 << 62, 1 << 62]]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two GB of address space more than now: who allocates what a header says cannot go on."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", few(HUGE, HUGE[2]), ids=str)
@pytest.mark.parametrize("layout", ["packed", "bitmask", "nm"])
def test_a_shape_that_is_huge(small: Small, tmp_path: Path, layout: str, shape: list[int]) -> None:
    folder = small(layout)
    (folder / "prunectl.json").unlink()
    edit_tensor(folder, lambda fields: fields.update(shape=shape))
    for use in (
        load_state_dict,
        lambda path: open_weights(path)[UP],
        lambda path: open_weights(path).rows(UP, 0, 1),
        lambda path: export(path, tmp_path / "out", "dense"),
        lambda path: export(path, tmp_path / "out", "packed"),
    ):
        with pytest.raises((BadCheckpoint, NoSpace)) as caught:
            use(folder)
        if isinstance(caught.value, BadCheckpoint):
            assert UP in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {layout}


@pytest.mark.parametrize(
    "lie",
    [
        lambda table: table * 0,
        lambda table: table * 0 + 0xFFFFFFFF,
        lambda table: np.roll(table, 1),
    ],
)
def test_a_chunk_table_that_lies(
    small: Small, typed: Typed, lie: Callable[[np.ndarray], np.ndarray]
) -> None:
    folder = small("packed")
    change_part(
        folder,
        f"{UP}.chunks",
        lambda data: lie(np.frombuffer(data, "<u4")).astype("<u4").tobytes(),
    )
    damaged(typed, folder, UP)


EXTRA: list[tuple[str, dict[str, Any]]] = [
    ("packed", {"mask": "other"}),
    ("packed", {"chunk": 1 << 60}),
    ("packed", {"axis": True}),
    ("packed", {"symbols": ["a"]}),
    ("nm", {"n": 4}),
    ("nm", {"order": 1}),
]
DESCRIPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("packed", {"layout": "zip"}, "unknown layout 'zip'"),
    ("packed", {"layout": ["packed"]}, "unknown layout"),
    ("packed", {"dtype": "F33"}, "unknown dtype 'F33'"),
    ("packed", {"dtype": None}, "unknown dtype"),
    ("packed", {"shape": "48"}, "shape"),
    ("packed", {"shape": [48, -32]}, "shape"),
    ("packed", {"shape": [48.0, 32]}, "shape"),
    ("packed", {"shape": [1 << 70]}, "shape"),
    ("packed", {"parts": [1, 2]}, "parts"),
    ("packed", {"parts": ["data", "nothing"]}, "'nothing' is missing"),
    ("packed", {"extra": None}, ""),
    ("packed", {"extra": {}}, ""),
    *((layout, {"extra.": extra}, "") for layout, extra in EXTRA),
]


@pytest.mark.parametrize(("layout", "fields", "says"), DESCRIPTIONS, ids=lambda one: str(one)[:30])
def test_a_description_that_is_none(
    small: Small, typed: Typed, layout: str, fields: dict[str, Any], says: str
) -> None:
    folder = small(layout)

    def edit(one: Header) -> None:
        one["extra"].update(fields.pop("extra.", {}))
        one.update(fields)

    edit_tensor(folder, edit)
    damaged(typed, folder, UP, says)


@pytest.mark.parametrize("tensors", [[], None, {UP: None}, {UP: []}, {UP: {}}, {"a" * 2000: {}}])
def test_a_list_of_tensors_that_is_none(small: Small, typed: Typed, tensors: object) -> None:
    folder = small("packed")
    cases.edit_described(folder / WEIGHTS, lambda document: document.update(tensors=tensors))
    refused(typed, BadCheckpoint, WEIGHTS, folder)


def test_names_that_mean_harm(small: Small, typed: Typed, tmp_path: Path) -> None:
    """A name is only ever a name: it leads to no file, and does not paint the terminal."""
    folder, name = small("packed"), "../../etc/\x1b[31mred"
    (folder / "prunectl.json").unlink()

    def rename(header: Header) -> None:
        document = json.loads(header["__metadata__"]["prunectl"])
        document["tensors"][name] = document["tensors"].pop(UP)
        header["__metadata__"]["prunectl"] = json.dumps(document)
        for suffix in ("data", "chunks"):
            header[f"{name}.{suffix}"] = header.pop(f"{UP}.{suffix}")

    expected = load_state_dict(folder)[UP]
    cases.edit_header(folder / WEIGHTS, rename)
    reference.assert_same({"": load_state_dict(folder)[name]}, {"": expected})
    export(folder, tmp_path / "out", "dense")
    reference.assert_same({"": reference.stored(tmp_path / "out")[name]}, {"": expected})
    change_part(folder, f"{name}.data", lambda data: flip(data, 50))
    code, text = typed("export", folder, "-o", "other", "-l", "dense", "-q")
    assert code == 1
    assert "\x1b" not in text
    assert not (tmp_path / "other").exists()


def test_two_tensors_of_the_same_parts(small: Small, typed: Typed) -> None:
    folder = small("packed")

    def claim(document: Header) -> None:
        fields = document["tensors"][UP]
        # Another name whose parts are UP's: "model.layers.1.mlp.up_proj" + ".weight.data".
        short = UP.removesuffix(".weight")
        document["tensors"][short] = fields | {"parts": ["weight.data", "weight.chunks"]}

    cases.edit_described(folder / WEIGHTS, claim)
    with pytest.raises((BadCheckpoint, BadManifest)):
        export(folder, folder.with_name("out"), "dense")
    with pytest.raises(BadCheckpoint, match="up_proj"):
        load_state_dict(folder)
    shutil.rmtree(folder)
    folder, norm = small("packed"), "model.norm.weight"

    def repeat(document: Header) -> None:
        document["tensors"][norm] = document["tensors"][UP] | {"parts": []}

    cases.edit_described(folder / WEIGHTS, repeat)
    refused(typed, BadCheckpoint, f"'{norm}' is stored twice", folder)


def test_a_tensor_that_is_described_in_two_files(small: Small, typed: Typed) -> None:
    folder = small("shards")
    (folder / INDEX).unlink()
    files = sorted(folder.glob("*.safetensors"))
    name, fields = next(iter(cases.described(files[0]).items()))
    cases.edit_described(
        files[1], lambda document: document["tensors"].update({name: fields | {"parts": []}})
    )
    refused(typed, BadCheckpoint, name, folder)


# --- what is asked for --------------------------------------------------------------------------


def test_nm_of_a_tensor_that_does_not_follow_it(source: Path, typed: Typed) -> None:
    tensors = reference.stored(source)
    tensors[UP][3, 4:8] = 1.0
    reference.save(source, tensors)
    # The manifest knows the bytes that were written.
    refused(typed, BadCheckpoint, f"tensor '{UP}' is damaged", source, layout="nm")
    refused(typed, BadCheckpoint, f"tensor '{UP}' is damaged", source)

    def agree(document: dict[str, Any]) -> None:
        (record,) = [one for one in document["tensors"] if one["name"] == UP]
        record["blake3"] = blake3(reference.raw(tensors[UP])).hexdigest()

    cases.edit_manifest(source, agree)
    for layout in ("nm", "auto", "packed"):  # it promises 2:4, whatever is asked for
        error = refused(typed, PatternMismatch, UP, source, layout=layout)
        assert "2:4" in str(error)
    # Without a promise there is nothing to break.
    (source / "prunectl.json").unlink()
    export(source, source.with_name("out"), "nm")
    cases.assert_same(cases.decoded(source.with_name("out")), cases.raw(source))


def test_nm_of_a_model_that_follows_none(made: Path, typed: Typed) -> None:
    refused(
        typed, InvalidOption, "no tensor follows a known N:M", made / "source", layout="nm", code=2
    )


def test_a_pattern_that_the_weights_do_not_follow(made: Path, typed: Typed) -> None:
    refused(
        typed, PatternMismatch, "2:4", made / "source", "out", "-p", "2:4", layout="nm",
        pattern="2:4",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layout": "zip"}, "'zip'"),
        ({"layout": ""}, "''"),
        ({"jobs": 0}, "jobs"),
        ({"jobs": 1000}, "jobs"),
        ({"max_shard_size": 0}, "0"),
        ({"pattern": "2:4"}, "--pattern"),
        ({"pattern": "4:2"}, "4:2"),
        ({"pattern": "unstructured"}, "unstructured"),
    ],
)
def test_options_that_have_no_meaning(
    source: Path, typed: Typed, options: dict[str, Any], says: str
) -> None:
    place = source.parent
    before = reference.snapshot(place)
    with pytest.raises((InvalidOption, InvalidPattern), match=says) as caught:
        export(source, place / "out", **{"layout": "dense"} | options)
    assert caught.value.exit_code == 2
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    code, text = typed("export", source, "-o", "out", "--layout=dense", *flags)
    assert (code, says in text) == (2, True)
    assert reference.snapshot(place) == before


@pytest.mark.parametrize("layout", ["packed", "dense"])
def test_a_quantized_source(source: Path, typed: Typed, layout: str) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config))
    error = refused(typed, UnsupportedCheckpoint, "gptq", source, layout=layout)
    assert "before quantization" in error.hint


def test_compressed_folders_are_not_pruned_or_analyzed(small: Small, typed: Typed) -> None:
    folder = small("packed")
    with pytest.raises(UnsupportedCheckpoint, match="a compressed prunectl folder"):
        open_checkpoint(folder)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        prune(folder, folder.with_name("out"), PruneSettings(sparsity=0.5))
    assert "--layout dense" in caught.value.hint
    for command in (("prune", folder, "-s", "0.5", "-o", "out"), ("analyze", folder)):
        code, text = typed(*command)
        assert code == 1
        assert "--layout dense" in text


@pytest.mark.parametrize(
    "suffix", few(["data", "chunks", "mask", "values", "meta"], "data", "values")
)
def test_a_tensor_that_has_the_name_of_a_part(tmp_path: Path, suffix: str) -> None:
    """The tensor whose part would take its name stays dense; never is one read as the other."""
    torch.manual_seed(0)
    tensors = {UP: reference.nm(torch.randn(64, 64), 2, 4), f"{UP}.{suffix}": torch.arange(500)}
    source = reference.save(tmp_path / "source", tensors)
    for layout in ("packed", "bitmask", "nm"):
        out = tmp_path / layout
        result = export(source, out, layout)
        assert {tensor.layout for tensor in result.tensors if tensor.name == UP} == {"dense"}
        cases.assert_same(cases.decoded(out), cases.as_raw(tensors))
        reference.assert_same(load_state_dict(out), tensors)


# --- outputs ------------------------------------------------------------------------------------


def test_an_output_over_or_in_the_compressed_source(small: Small, typed: Typed) -> None:
    folder = small("bitmask")
    (folder.with_name("link")).symlink_to(folder)
    for layout, out in (("packed", "bitmask"), ("dense", "link"), ("packed", "bitmask/a/b/out")):
        error = refused(
            typed, OutputConflict, "source", folder, out, "--force", code=2, layout=layout,
            force=True,
        )  # fmt: skip
        assert "never changed" in error.message


def test_an_output_around_the_one_file_that_is_the_source(small: Small, typed: Typed) -> None:
    file = small("packed") / WEIGHTS
    refused(typed, OutputConflict, WEIGHTS, file, "packed", "--force", code=2, force=True)


def test_force_replaces_an_export(made: Path, small: Small, tmp_path: Path, typed: Typed) -> None:
    folder = small("packed")
    code, _ = typed("export", made / "pruned", "-o", "packed", "-q")
    assert code == 2
    code, _ = typed("export", made / "pruned", "-o", "packed", "--force", "-q", "-l", "nm")
    assert code == 0
    assert cases.without_metadata(folder) == cases.without_metadata(made / "nm")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


# --- disks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", few(["packed", "dense"]))
def test_a_disk_that_fills_up_on_the_way(
    source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    # The check passes, as if another program took the space after it.
    (source / "vocab.txt").write_bytes(bytes(110_000))
    before = reference.snapshot(source)
    with monkeypatch.context() as patched:
        patched.setattr(target, "free_bytes", lambda path: 1 << 40)
        with pytest.raises(NoSpace, match="are free") as caught:
            export(source, small_disk / "out", layout, max_shard_size=9_000)
    assert "finished shards are kept" in caught.value.hint
    assert {path.name for path in small_disk.iterdir()} == {
        ".out.prunectl-partial",
        ".out.prunectl-journal",
    }
    assert reference.snapshot(source) == before
    subprocess.run(["mount", "-o", "remount,size=4194304", small_disk], check=True)
    result = export(source, small_disk / "out", layout, max_shard_size=9_000)
    assert result.resumed_shards > 0
    assert [path.name for path in small_disk.iterdir()] == ["out"]
    report = verify(small_disk / "out")
    assert report.ok, report.differences


# --- killed -------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from prunectl import export
from prunectl.output.folder import OutputFolder
from prunectl.output.journal import Journal
from prunectl.output.manifest import read_manifest
from prunectl.output.resumable import ResumableFolder

source, out, layout, number = *sys.argv[1:4], int(sys.argv[4])
add, commit, shards = Journal.add, OutputFolder.commit, []

def add_and_die(self, shard, records):
    entry = add(self, shard, records)
    shards.append(shard)
    if len(shards) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return entry

def die(self):
    os.kill(os.getpid(), signal.SIGKILL)

Journal.add = add_and_die
if not number:
    OutputFolder.commit = die
export(source, out, layout, max_shard_size=1_000_000, force="force" in sys.argv)
"""


def killed(source: Path, out: Path, layout: str, number: int, *more: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, source, out, layout, str(number), *more],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of four shards, and its export to packed and back, as nothing interrupts them."""
    place = tmp_path_factory.mktemp("shards")
    torch.manual_seed(0)
    tensors = {
        f"model.layers.{i}.mlp.up_proj.weight": reference.nm(torch.randn(400, 500), 2, 4)
        for i in range(4)
    }
    reference.save(place / "source", tensors)
    export(place / "source", place / "packed", "packed", max_shard_size=1_000_000)
    export(place / "packed", place / "dense", "dense", max_shard_size=1_000_000)
    return place


@pytest.mark.parametrize(
    ("layout", "number"), few([("packed", 3), ("packed", 0), ("dense", 1), ("dense", 4)])
)
def test_killed_and_resumed(shards: Path, tmp_path: Path, layout: str, number: int) -> None:
    source = shards / {"packed": "source", "dense": "packed"}[layout]
    out = tmp_path / "out"
    killed(source, out, layout, number)
    assert not out.exists()
    lines = journal_file(out).read_text().splitlines()[1:]
    assert len(lines) >= number
    result = export(source, out, layout, max_shard_size=1_000_000)
    assert result.resumed_shards == len(lines)
    assert reference.contents(out) == reference.contents(shards / layout)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("layout", few(["packed", "dense"]))
def test_a_finished_file_that_was_damaged_is_written_again(
    shards: Path, tmp_path: Path, layout: str
) -> None:
    """One by a flipped bit, one by its size."""
    source = shards / ("packed" if layout == "dense" else "source")
    out, whole = tmp_path / "out", tmp_path / "whole"
    export(source, whole, layout, max_shard_size=1_000_000)
    killed(source, out, layout, 3)
    done = [json.loads(line)["shard"] for line in journal_file(out).read_text().splitlines()[1:]]
    reference.flip_bit(work_folder(out) / done[0])
    os.truncate(work_folder(out) / done[1], 1000)
    events: list[Event] = []
    result = export(source, out, layout, max_shard_size=1_000_000, on_event=events.append)
    assert result.resumed_shards == len(done) - 2
    assert "2 shards were damaged and are written again" in str(events)
    assert reference.contents(out) == reference.contents(whole)


@pytest.mark.parametrize("layout", few(["packed", "bitmask", "nm"]))
def test_any_flipped_byte_of_a_finished_file_is_found(tmp_path: Path, layout: str) -> None:
    """Paddings too: the output is the same to the byte."""
    tensors = {
        "model.layers.0.mlp.up_proj.weight": reference.nm(torch.randn(32, 32), 2, 4).bfloat16(),
        "model.layers.0.mlp.up_proj.bias": torch.randn(3),
    }
    out = tmp_path / "out"
    export(reference.save(tmp_path / "source", tensors), out, layout, pattern=NM(2, 4))
    sound = (out / WEIGHTS).read_bytes()
    records = [{"name": one.name, "blake3": one.blake3} for one in read_manifest(out).tensors]
    entry = {"shard": WEIGHTS, "size": len(sound), "records": records}
    with ResumableFolder(tmp_path / "work", tmp_path / "journal", out, "") as folder:

        def is_found_sound(data: bytes) -> bool:
            (folder.work / WEIGHTS).write_bytes(data)
            folder.finished = {WEIGHTS: entry}
            check_finished(folder, PLAIN_RUN)
            return WEIGHTS in folder.finished

        assert is_found_sound(sound)
        begin = 8 + int.from_bytes(sound[:8], "little")
        assert not [i for i in range(begin, len(sound)) if is_found_sound(flip(sound, i))]


@pytest.mark.full
def test_a_killed_replacement_leaves_the_old_output(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(shards / "source", out, "bitmask")
    old = reference.contents(out)
    for number in (2, 0):
        killed(shards / "source", out, "packed", number, "force")
        assert reference.contents(out) == old
    export(shards / "source", out, "packed", max_shard_size=1_000_000, force=True)
    assert reference.contents(out) == reference.contents(shards / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_on_the_way_leaves_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage in the last shard: what was written before it is of no use, and goes."""
    folder = cases.copied(shards / "packed", tmp_path / "packed")
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.write_bytes(flip(last.read_bytes(), last.stat().st_size - 1000))
    for layout in ("dense", "bitmask"):
        with pytest.raises(BadCheckpoint, match=r"model\.layers\.3"):
            export(folder, tmp_path / "out", layout, max_shard_size=1_000_000)
        assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_an_error_of_the_disk_keeps_what_is_finished(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, seen = Journal.add, []

    def full(self: Journal, shard: Any, records: Any) -> Any:
        seen.append(shard)
        if len(seen) == 3:
            raise OSError(5, "Input/output error")
        return add(self, shard, records)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", full)
        with pytest.raises(CannotWrite, match="Input/output error"):
            export(shards / "source", tmp_path / "out", "packed", max_shard_size=1_000_000)
    assert not (tmp_path / "out").exists()
    result = export(shards / "source", tmp_path / "out", "packed", max_shard_size=1_000_000)
    assert result.resumed_shards >= 2
    assert reference.contents(tmp_path / "out") == reference.contents(shards / "packed")


# --- what hostile readers once found: it stays mended -------------------------------------------


NORM = "model.norm.weight"


def test_an_alphabet_without_symbols_is_refused() -> None:
    """Its escape was digit 0, with which the last byte is filled up: a write past the end."""
    for per_byte in range(2, 9):
        extra = {"mask": "none", "chunk": 8, "per_byte": per_byte, "symbols": []}
        with pytest.raises(Damaged, match="do not fit"):
            read_scheme(DTYPES["U8"], (1,), extra)


def test_escapes_are_never_put_past_the_last_symbol() -> None:
    from prunectl.layouts.kernels import symbols as kernels

    table = np.zeros((256, 4), np.uint8)  # whatever the byte, four digits that are all escapes
    counts = np.full(256, 4, np.int64)
    room = np.full(8, 255, np.uint8)
    kernels.fill_escapes(
        np.zeros(1, np.uint8), table, 0, counts, np.arange(8, dtype=np.uint8), room[:2]
    )
    assert room.tolist() == [0, 1, 255, 255, 255, 255, 255, 255]


@pytest.mark.parametrize(
    ("layout", "dtype"), [("packed", "F4"), ("nm", "F6_E2M3"), ("bitmask", "F6_E3M2")]
)
def test_a_dtype_of_less_than_a_byte_is_damage(
    small: Callable[[str], Path], layout: str, dtype: str, tmp_path: Path
) -> None:
    folder = small(layout)
    (folder / "prunectl.json").unlink()

    def claim(document: dict[str, Any]) -> None:
        document["tensors"][UP]["dtype"] = dtype

    cases.edit_described(folder / WEIGHTS, claim)
    with pytest.raises(BadCheckpoint, match=UP):
        load_state_dict(folder)
    with pytest.raises(BadCheckpoint, match=UP):
        export(folder, tmp_path / "out", "dense")


def test_dense_tensors_have_a_hash_in_the_header_too(small: Callable[[str], Path]) -> None:
    folder = small("packed")
    (folder / "prunectl.json").unlink()
    dtype, shape, data = cases.entries(folder / WEIGHTS)[NORM]
    flipped = bytes([data[0] ^ 1]) + data[1:]
    cases.replace_stored(folder / WEIGHTS, {NORM: (dtype, shape, flipped)})
    with pytest.raises(BadCheckpoint, match=f"'{NORM}' is damaged"):
        load_state_dict(folder)


def test_masks_of_damaged_weights_are_refused(made: Path, tmp_path: Path) -> None:
    folder = cases.copied(made / "pruned", tmp_path / "pruned")
    path = folder / "model.safetensors"
    dtype, shape, data = cases.entries(path)[UP]
    cases.replace_stored(path, {UP: (dtype, shape, bytes(200) + data[200:])})
    with pytest.raises(PrunectlError, match=UP):
        export_masks(folder, tmp_path / "masks.safetensors")
    assert not (tmp_path / "masks.safetensors").exists()


def test_asking_for_a_name_decodes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_weights(made / "packed") as weights:
        monkeypatch.setattr(type(weights), "__getitem__", lambda self, name: pytest.fail("decoded"))
        assert UP in weights
        assert "nothing" not in weights


def test_verify_compares_how_tensors_are_stored(small: Callable[[str], Path]) -> None:
    folder = small("packed")
    assert verify(folder).ok

    def lie(document: dict[str, Any]) -> None:
        for tensor in document["tensors"]:
            if tensor["name"] == UP:
                tensor["layout"], tensor["stored_bytes"] = "bitmask", 1

    cases.edit_manifest(folder, lie)
    report = verify(folder)
    assert [(d.kind, d.where) for d in report.differences] == [("layout", UP)]


def test_groups_along_the_first_axis_are_found_without_a_manifest(tmp_path: Path) -> None:
    tiny_models.build("gpt2", tmp_path / "source")
    settings = PruneSettings(pattern="2:4")  # type: ignore[arg-type]
    prune(tmp_path / "source", tmp_path / "pruned", settings)
    (tmp_path / "pruned" / "prunectl.json").unlink()
    result = export(tmp_path / "pruned", tmp_path / "nm", "nm")
    patterns = {t.name: t.pattern for t in result.tensors if t.layout == "nm"}
    assert any(name.endswith("mlp.c_fc.weight") for name in patterns)
    assert set(patterns.values()) == {"2:4"}
    reference.assert_same(load_state_dict(tmp_path / "nm"), load_state_dict(tmp_path / "pruned"))


@pytest.mark.full
def test_a_header_is_no_longer_than_it_must_be(tmp_path: Path) -> None:
    """Thousands of tiny tensors, all dense: the file once grew sixfold."""
    tensors = {f"layer.{n}.scale": torch.randn(3, 5).bfloat16() for n in range(2000)}
    source = reference.save(tmp_path / "source", tensors)
    result = export(source, tmp_path / "out")
    header, _ = cases.read_file(tmp_path / "out" / WEIGHTS)
    needed = len(json.dumps(header, separators=(",", ":")))
    size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert size == result.nbytes
    assert size - result.dense_bytes < 1.15 * needed + 64


@pytest.mark.parametrize(
    "more", [["--layout", "packed"], ["--pattern", "2:4"], ["--max-shard-size", "1MB"]]
)
def test_flags_that_mean_nothing_for_masks_are_refused(
    made: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks.safetensors"
    assert run(["export", str(made / "pruned"), "--masks-only", "-o", str(out), *more]) == 2
    assert "have no meaning" in capsys.readouterr().err
    assert not out.exists()


def test_a_source_that_changes_meanwhile_is_noticed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunectl.exporting import verb

    folder = cases.copied(made / "pruned", tmp_path / "pruned")
    write_parts = verb.write_parts

    def touched(*args: Any, **options: Any) -> Any:
        (folder / "model.safetensors").touch()
        return write_parts(*args, **options)

    monkeypatch.setattr(verb, "write_parts", touched)
    with pytest.raises(BadCheckpoint, match="changed since it was opened"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_transformers_must_not_read_past_us(made: Path) -> None:
    """With disable_mmap it reads files by another function, and all weights would stay random."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(UnsupportedCheckpoint, match="past prunectl"):
        AutoModelForCausalLM.from_pretrained(made / "packed", disable_mmap=True)
    model = AutoModelForCausalLM.from_pretrained(made / "packed")
    reference.assert_same(
        {UP: model.state_dict()[UP].bfloat16()},
        {UP: load_state_dict(made / "packed")[UP].bfloat16()},
    )


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": []},
        {"quantization_config": {"quant_method": "prunectl", "weights": "gone.safetensors"}},
        {"num_hidden_layers": 3},
        {"architectures": ["PreTrainedModel"]},
    ],
)
def test_a_config_that_does_not_fit_is_a_typed_error(
    small: Callable[[str], Path], config: dict[str, Any]
) -> None:
    folder = small("packed")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(PrunectlError):
        prunectl.load_model(folder)
