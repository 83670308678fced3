"""Files of masks: what ``export --masks-only`` writes, and how little a reader trusts."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import masks
import numpy as np
import pytest
import reference
import tiny_models
import torch
from full import few
from safetensors.numpy import load_file

from prunectl import NM, PruneSettings, Scope, open_checkpoint, prune
from prunectl.checkpoint.mask_file import check_bits, read_masks
from prunectl.errors import (
    BadManifest,
    BadMaskFile,
    CannotWrite,
    NothingMasked,
    OutputConflict,
    OutputError,
)
from prunectl.events import Advanced, Event, PhaseStarted, ignore_events
from prunectl.exporting.masks import export_masks
from prunectl.exporting.verb import export
from prunectl.magnitude.masks import keep, kept_bits
from prunectl.output.manifest import read_manifest
from prunectl.output.mask_file import MaskEntry, MaskWriter

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, and outputs of it; tests do not write there."""
    folder = tmp_path_factory.mktemp("made")
    tiny_models.build("llama", folder / "source", torch.bfloat16)
    prune(folder / "source", folder / "half", PruneSettings(sparsity=0.5), max_shard_size=15_000)
    prune(folder / "source", folder / "groups", PruneSettings(pattern=NM(2, 4)))
    return folder


def plain(folder: Path) -> Path:
    """A checkpoint without manifest or config: two matrices of a block, an embedding, a norm."""
    torch.manual_seed(0)
    up = torch.randn(13, 9)
    up[2:4] = 0.0
    up[5] = -0.0
    tensors = {
        UP: up,
        DOWN: torch.randn(9, 13),
        "model.embed_tokens.weight": torch.zeros(7, 9),
        "model.layers.0.input_layernorm.weight": torch.zeros(9),
    }
    return reference.save(folder, tensors)


# --- bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_bits_of_codes_and_back(kind: Any) -> None:
    top = np.iinfo(kind).max
    for size in (*range(18), 64, 1001):
        rng = np.random.default_rng(size)
        codes = rng.choice(np.array([0, 1, top // 2 + 1, top, 77], kind), size)  # 0.0, -0.0 too
        bits = kept_bits(codes)
        assert bits.tobytes() == masks.packed([int(code != 0) for code in codes.tolist()]), size
        others = rng.integers(0, top, size, kind, endpoint=True)
        was = others.tolist()
        zeros = keep(others, bits)
        kept = [code if bits[i // 8] >> i % 8 & 1 else 0 for i, code in enumerate(was)]
        assert others.tolist() == kept, size
        assert zeros == sum(code in (0, top // 2 + 1) for code in kept), size


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 4])
def test_masks_of_an_unstructured_output(made: Path, tmp_path: Path, jobs: int) -> None:
    result = export_masks(made / "half", tmp_path / "m", jobs=jobs)
    output = reference.stored(made / "half")
    names = [r.name for r in read_manifest(made / "half").tensors if r.pattern]
    metadata, bits = masks.parts(tmp_path / "m")
    assert metadata["format"] == "prunectl.masks/1"
    assert list(bits) == names
    assert bits == {name: masks.packed(masks.bits_of(output[name])) for name in names}
    assert json.loads(metadata["masks"]) == {
        name: {
            "shape": list(output[name].shape),
            "zeros": masks.bits_of(output[name]).count(0),
            "pattern": None,
            "input_axis": 1,
        }
        for name in names
    }
    assert result.tensors == len(names) == 14
    assert result.weights == sum(output[name].numel() for name in names)
    assert result.zeros == reference.count(0.5, result.weights)
    assert result.nbytes == (tmp_path / "m").stat().st_size
    # The library reads it too, and its data is aligned.
    assert {name: array.tobytes() for name, array in load_file(tmp_path / "m").items()} == bits
    assert int.from_bytes((tmp_path / "m").read_bytes()[:8], "little") % 8 == 0


def test_it_says_what_the_masks_are_of_without_a_local_path(made: Path, tmp_path: Path) -> None:
    export_masks(made / "half", tmp_path / "m")
    source = json.loads(masks.parts(tmp_path / "m")[0]["source"])
    size = (made / "source" / "model.safetensors").stat().st_size
    assert source == {
        "model": "source",
        "kind": "folder",
        "repo_id": None,
        "commit": None,
        "files": [{"name": "model.safetensors", "size": size, "sha256": None}],
    }
    assert str(made).encode() not in (tmp_path / "m").read_bytes()


def test_of_a_hub_model_it_names_repository_and_commit(made: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(plain(tmp_path / "plain"))
    for key, value in {"kind": "hub", "repo_id": "org/name", "commit": "1" * 40}.items():
        object.__setattr__(checkpoint, key, value)
    export_masks(checkpoint, tmp_path / "m")
    source = json.loads(masks.parts(tmp_path / "m")[0]["source"])
    assert (source["repo_id"], source["commit"]) == ("org/name", "1" * 40)


def test_without_a_manifest_the_prunable_tensors_that_hold_a_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plain(tmp_path / "plain")
    monkeypatch.chdir(source)
    export_masks(".", tmp_path / "m")
    metadata, bits = masks.parts(tmp_path / "m")
    tensor = reference.stored(source)[UP]
    assert bits == {UP: masks.packed(masks.bits_of(tensor))}
    # A -0.0 stays: it is no +0.0.
    assert json.loads(metadata["masks"])[UP]["zeros"] == 2 * 9
    assert json.loads(metadata["source"])["model"] == "plain"


def test_groups_are_written_with_pattern_and_axis(tmp_path: Path) -> None:
    tiny_models.build("gpt2", tmp_path / "source")
    prune(tmp_path / "source", tmp_path / "out", PruneSettings(pattern=NM(2, 4)))
    export_masks(tmp_path / "out", tmp_path / "m")
    found = json.loads(masks.parts(tmp_path / "m")[0]["masks"])
    assert {(one["pattern"], one["input_axis"]) for one in found.values()} == {("2:4", 0)}
    assert all(2 * one["zeros"] == np.prod(one["shape"]) for one in found.values())


def test_a_tensor_of_several_blocks_and_threads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {UP: torch.randn(1201, 701).half(), DOWN: torch.randn(701, 1201)}
    reference.save(tmp_path / "source", tensors)
    prune(tmp_path / "source", tmp_path / "out", PruneSettings(sparsity=0.5, scope=Scope.ROW))
    export_masks(tmp_path / "out", tmp_path / "m", jobs=3)
    output = reference.stored(tmp_path / "out")
    bits = masks.parts(tmp_path / "m")[1]
    for name, tensor in output.items():
        kept = np.frombuffer(reference.raw(tensor), f"u{tensor.element_size()}") != 0
        found = np.frombuffer(bits[name], np.uint8)
        assert np.array_equal(np.unpackbits(found, bitorder="little")[: kept.size], kept)


@pytest.mark.parametrize(
    ("output", "layout"), few([("half", "bitmask"), ("half", "packed"), ("groups", "nm")])
)
def test_a_compressed_folder_has_the_same_masks(
    made: Path, tmp_path: Path, output: str, layout: str
) -> None:
    export(made / output, tmp_path / "small", layout)
    assert not list((tmp_path / "small").glob("model.safetensors"))
    export_masks(tmp_path / "small", tmp_path / "a")
    export_masks(made / output, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_progress_covers_all_that_is_read(made: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    export_masks(made / "half", tmp_path / "m", on_event=events.append)
    (begun,) = [event for event in events if isinstance(event, PhaseStarted)]
    assert begun.total == sum(event.count for event in events if isinstance(event, Advanced)) > 0


# --- what cannot be exported ----------------------------------------------------------------------


def test_a_dense_model_has_no_masks(made: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingMasked, match="no prunable tensor holds a zero") as caught:
        export_masks(made / "source", tmp_path / "m")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def edited(made: Path, tmp_path: Path, how: Callable[[dict[str, Any]], None]) -> Path:
    """The 2:4 output with another manifest."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for path in (made / "groups").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    document = json.loads((folder / "prunectl.json").read_bytes())
    how(document)
    (folder / "prunectl.json").write_text(json.dumps(document))
    return folder


def tensor_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(tensor for tensor in document["tensors"] if tensor["name"] == name)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (lambda d: [t.update(pattern=None) for t in d["tensors"]], NothingMasked, "lists no"),
        (lambda d: tensor_of(d, UP).update(name="gone"), BadManifest, "'gone' as pruned"),
        (lambda d: tensor_of(d, UP).update(shape=[32, 48]), BadManifest, "another shape"),
        (lambda d: tensor_of(d, UP).update(pattern="1:4"), BadManifest, "do not follow"),
        (
            lambda d: tensor_of(d, UP).update(pattern="2:5"),
            BadManifest,
            "which its shape rules out",
        ),
        (lambda d: d.pop("tensors"), BadManifest, "tensors is missing"),
    ],
)
def test_a_manifest_of_other_weights(
    made: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    error: type[Exception],
    why: str,
) -> None:
    folder = edited(made, tmp_path, change)
    with pytest.raises(error, match=why):
        export_masks(folder, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


# --- where it may be written --------------------------------------------------------------------


def test_nothing_is_written_into_the_source(made: Path, tmp_path: Path) -> None:
    source = plain(tmp_path / "plain")
    (tmp_path / "link").symlink_to(source)
    for place in (source / "m", source / "sub" / "m", tmp_path / "link" / "m"):
        with pytest.raises(OutputConflict, match="lies in the source"):
            export_masks(source, place)
    file = source / "model.safetensors"
    before = file.read_bytes()
    with pytest.raises(OutputConflict, match="lies in the source"):
        export_masks(file, file, force=True)
    assert file.read_bytes() == before
    assert export_masks(file, source / "m").tensors == 1  # beside one file there is room


def test_only_a_file_of_masks_is_replaced(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "m"
    for other in (b"my notes", (made / "source" / "model.safetensors").read_bytes()):
        target.write_bytes(other)
        with pytest.raises(OutputConflict, match="exists"):
            export_masks(made / "half", target)
        with pytest.raises(OutputConflict, match="not a file of masks") as caught:
            export_masks(made / "half", target, force=True)
        assert caught.value.exit_code == 2
        assert target.read_bytes() == other
    target.unlink()
    export_masks(made / "half", target)
    first = target.read_bytes()
    with pytest.raises(OutputConflict, match="exists"):
        export_masks(made / "half", target)
    export_masks(made / "groups", target, force=True)
    assert target.read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_places_that_cannot_hold_a_file(made: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputConflict, match="is a folder"):
        export_masks(made / "half", tmp_path)
    with pytest.raises(CannotWrite, match="there is no folder"):
        export_masks(made / "half", tmp_path / "no" / "m")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputConflict, match="not a file of masks"):
        export_masks(made / "half", tmp_path / "pipe", force=True)


def test_a_link_to_masks_stays_a_link(made: Path, tmp_path: Path) -> None:
    export_masks(made / "half", tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    export_masks(made / "groups", tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    export_masks(made / "groups", tmp_path / "same")
    assert (tmp_path / "m").read_bytes() == (tmp_path / "same").read_bytes()


@pytest.mark.parametrize("umask", few([0o022, 0o077]))
@pytest.mark.parametrize("nameless", [True, False])
def test_the_mode_follows_the_umask(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, nameless: bool
) -> None:
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")
    before = os.umask(umask)
    try:
        export_masks(made / "half", tmp_path / "m")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o666 & ~umask


# --- whole or not at all --------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.parametrize("nameless", [True, False])
def test_a_stopped_export_leaves_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")
    seen = []

    def on_event(event: Event) -> None:
        if isinstance(event, Advanced):
            seen.append([path.name for path in tmp_path.iterdir()])
            raise Stopped

    with pytest.raises(Stopped):
        export_masks(made / "half", tmp_path / "m", on_event=on_event)
    assert list(tmp_path.iterdir()) == []
    (names,) = seen
    assert len(names) == (not nameless)
    assert all(name.startswith(".masks-") for name in names)


@pytest.mark.parametrize("nameless", [True, False])
def test_what_came_in_the_meantime_is_not_replaced(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")

    def on_event(event: Event) -> None:
        if isinstance(event, Advanced):
            (tmp_path / "m").write_bytes(b"mine")

    with pytest.raises(OutputConflict, match="exists by now"):
        export_masks(made / "half", tmp_path / "m", on_event=on_event)
    assert reference.contents(tmp_path) == {"m": b"mine"}


def test_names_that_cannot_be_stored(tmp_path: Path) -> None:
    one = MaskEntry("a", (2,), 2)
    for entries in ([one, one], [MaskEntry("__metadata__", (2,), 2)]):
        with pytest.raises(OutputError, match="already taken"):
            MaskWriter(tmp_path / "m", entries, {}, force=False)
    assert list(tmp_path.iterdir()) == []


# --- reading ----------------------------------------------------------------------------------


def test_what_the_documentation_describes_is_read(tmp_path: Path) -> None:
    bits = [1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0]
    more = {"pattern": "2:4", "input_axis": 1}
    path = masks.write(
        tmp_path / "m", {"a": ((3, 4), bits)}, {"a": masks.described((3, 4), bits, **more)}
    )
    file = read_masks(path)
    mask = file.masks["a"]
    assert (mask.shape, mask.numel, mask.zeros) == ((3, 4), 12, 6)
    assert (mask.pattern, mask.input_axis) == (NM(2, 4), 1)
    with file.open() as reader:
        check_bits(file, reader, ignore_events)


A = {"a": ((3, 5), [1, 0, 1] * 5)}


def of(**changes: Any) -> Callable[[Path], Path]:
    """The file of A with a changed description."""
    return lambda path: masks.write(path, A, {"a": masks.described(*A["a"]) | changes})


def with_metadata(**texts: str) -> Callable[[Path], Path]:
    return lambda path: masks.write(path, A, **texts)


def raw_file(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


def cut_off(path: Path) -> Path:
    masks.write(path, A)
    path.write_bytes(path.read_bytes()[:-1])
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


DEEP = "[" * 100_000
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path, "no such file"),
    "folder": (folder, "is a folder"),
    "pipe": (pipe, "no such file|not a regular file"),
    "empty": (raw_file(b""), "truncated"),
    "text": (raw_file(b"these are not masks at all"), "not a safetensors file"),
    "cut off": (cut_off, "truncated"),
    "weights": (
        lambda path: masks.write_raw(path, {"format": "pt"}, {"a": b"1"}),
        "not a file of masks",
    ),
    "newer": (with_metadata(format="prunectl.masks/2"), "format version 2; this prunectl reads 1"),
    "odd version": (with_metadata(format="prunectl.masks/1.5"), "not a file of masks"),
    "no description": (with_metadata(masks="{}"), "'a' has bits only"),
    "no bits": (
        lambda path: masks.write(path, A, {"b": masks.described((1,), [1])}),
        "'b' has a description only",
    ),
    "nothing": (lambda path: masks.write(path, {}), "holds no mask"),
    "no JSON": (with_metadata(masks="{"), "'masks' is not JSON"),
    "deep JSON": (with_metadata(masks=DEEP), "'masks' is not JSON"),
    "long number": (with_metadata(masks='{"a": ' + "9" * 10_000 + "}"), "'masks' is not JSON"),
    "a list": (with_metadata(masks="[]"), "masks is not an object"),
    "no source": (with_metadata(source="null"), "source is not an object"),
    "bad source": (with_metadata(source='{"model": 7}'), "source.model is not a string"),
    "long source": (
        with_metadata(source=json.dumps({"model": "x" * 2000})),
        "source.model is not a string of length <= 1024",
    ),
    "bad files": (
        with_metadata(source='{"files": [{"name": 1}]}'),
        r"source.files\[0\].name is not a string",
    ),
    "no object": (lambda path: masks.write(path, A, {"a": 3}), "masks.a is not an object"),
    "no shape": (of(shape=None), "masks.a.shape is not a list"),
    "negative shape": (of(shape=[-3, -5]), r"masks.a.shape\[0\] is not a whole number >= 0"),
    "float shape": (of(shape=[3.0, 5]), r"masks.a.shape\[0\] is not a whole number"),
    "many dimensions": (of(shape=[1] * 65), "masks.a.shape is not a list of length <= 64"),
    "vast shape": (of(shape=[2**62] * 64), "too many elements"),
    "other shape": (of(shape=[4, 5]), "not one bit for each weight"),
    "many zeros": (of(zeros=16), "its 16 zeros are more than its weights"),
    "no zeros": (of(zeros=None), "masks.a.zeros is not a whole number"),
    "true zeros": (of(zeros=True), "masks.a.zeros is not a whole number"),
    "bad axis": (of(input_axis=2), "not an axis of its shape"),
    "negative axis": (of(input_axis=-1), "masks.a.input_axis is not a whole number"),
    "bad pattern": (of(pattern="4:2", input_axis=1), "neither N:M nor null"),
    "odd pattern": (of(pattern=24, input_axis=1), "masks.a.pattern is not a string or null"),
    "no axis": (of(pattern="1:5"), "no input axis of whole groups"),
    "torn groups": (of(pattern="2:4", input_axis=1), "no input axis of whole groups"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header_is_told_by_its_fault(tmp_path: Path, name: str) -> None:
    make, why = BAD[name]
    path = make(tmp_path / "m")
    with pytest.raises(BadMaskFile, match=why) as caught:
        read_masks(path)
    assert caught.value.exit_code == 1
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_another_dtype_than_bits(tmp_path: Path) -> None:
    masks.write(tmp_path / "m", A)
    data = (tmp_path / "m").read_bytes().replace(b'"U8"', b'"I8"')
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(BadMaskFile, match="not one bit for each weight"):
        read_masks(tmp_path / "m")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\x7f", "removes 0 weights, the header says 5"),
        (b"\x6d\xb6", "ones after its last weight"),
    ],
)
def test_bits_that_contradict_the_header(tmp_path: Path, data: bytes, why: str) -> None:
    path = masks.write(tmp_path / "m", A)
    path.write_bytes(path.read_bytes()[:-2] + data)
    file = read_masks(path)
    with file.open() as reader, pytest.raises(BadMaskFile, match=why):
        check_bits(file, reader, ignore_events)


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = masks.write(tmp_path / "m", A)
    file = read_masks(path)
    os.truncate(path, path.stat().st_size - 1)
    with file.open() as reader, pytest.raises(BadMaskFile, match="truncated"):
        check_bits(file, reader, ignore_events)
