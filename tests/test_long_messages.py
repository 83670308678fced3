"""Errors of reading stay short, whatever a file holds."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_cases as cases
import masks
import pytest
import tiny_models
import torch
from export_cases import WEIGHTS
from safetensors.torch import save_file

from prunectl import PruneSettings, export, open_checkpoint, open_weights, prune
from prunectl.checkpoint.mask_file import read_masks
from prunectl.checkpoint.opening import open_stored
from prunectl.errors import MAX_MESSAGE, PrunectlError, shortened
from prunectl.output.manifest import read_manifest

LONG = "n" * 100_000
WIDE = "n" * 1000
"""As long as a tensor's name may be, about."""

INDEX = "model.safetensors.index.json"
FINE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, pruned, and exported."""
    place = tmp_path_factory.mktemp("made")
    tiny_models.build("llama", place / "source")
    prune(place / "source", place / "pruned", PruneSettings(sparsity=0.5))
    export(place / "pruned", place / "small", "packed")
    return place


def header(members: Any) -> Callable[[Path], object]:
    """Opens a safetensors file with this header, bytes or anything that JSON can say."""

    def read(folder: Path) -> object:
        raw = members if isinstance(members, bytes) else json.dumps(members).encode()
        content = len(raw).to_bytes(8, "little") + raw + bytes(4)
        (folder / "model.safetensors").write_bytes(content)
        return open_checkpoint(folder)

    return read


def entry(**changes: Any) -> Callable[[Path], object]:
    return header({WIDE: FINE | changes})


def index(content: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        save_file({"w": torch.ones(1)}, folder / "model-1.safetensors")
        (folder / INDEX).write_bytes(raw)
        return open_checkpoint(folder)

    return read


def mapped(*pair: Any) -> Callable[[Path], object]:
    return index({"weight_map": dict([pair])})


def pickled(state: Any, *, is_zip: bool = True) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        path = folder / "pytorch_model.bin"
        torch.save(state, path, _use_new_zipfile_serialization=is_zip)
        return open_checkpoint(folder)

    return read


def protocol_2(value: bytes) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "pytorch_model.bin").write_bytes(value)
        return open_checkpoint(folder)

    return read


def archive(folder: Path) -> object:
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("n" * 60_000, "text " * 1000)
    return open_checkpoint(folder)


def mask(name: str = "a", metadata: dict[str, str] | None = None, **changes: Any) -> Any:
    def read(folder: Path) -> object:
        described = masks.described((1,), [1]) | changes
        path = masks.write(folder / "m", {name: ((1,), [1])}, {name: described}, **metadata or {})
        return read_masks(path)

    return read


def config(**members: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        save_file({"w": torch.ones(1)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(members))
        return prune(folder, folder / "out", PruneSettings(sparsity=0.5))

    return read


READERS: dict[str, Callable[[Path], object]] = {
    "header: name": header({LONG: FINE}),
    "header: name that is no object": header({LONG: 1}),
    "header: name of surrogates": header({"\ud800" * 900: FINE}),
    "header: dtype": entry(dtype=LONG),
    "header: nested dtype": entry(dtype=[LONG] * 3),
    "header: shape": entry(shape=[LONG]),
    "header: sizes": entry(shape=[2**62] * 60),
    "header: offsets": entry(data_offsets=[LONG, LONG]),
    "header: bytes": entry(data_offsets=[0, 2**62]),
    "header: number": header(b'{"a": ' + b"9" * 100_000 + b"}"),
    "header: constant": header(b'{"a": 1e' + b"9" * 100_000 + b"}"),
    "header: no JSON": header(b"[" + LONG.encode()),
    "header: no UTF-8": header(b"\xff" * 100_000),
    "header: names twice": header(b'{"%b": 1, "%b": 1}' % (LONG.encode(), LONG.encode())),
    "header: a gap": header({WIDE: FINE, WIDE + "2": FINE | {"data_offsets": [8, 12]}}),
    "index: no UTF-8": index(b"\xff" * 100_000),
    "index: no JSON": index(LONG.encode()),
    "index: no map": index({LONG: 1}),
    "index: name": mapped(LONG, "model-1.safetensors"),
    "index: outside": mapped(WIDE, f"../{LONG}"),
    "index: no text": mapped(WIDE, [LONG]),
    "index: no weights": mapped(WIDE, LONG),
    "index: file": mapped(WIDE, f"{LONG}.safetensors"),
    "index: missing file": mapped(WIDE, f"{'n' * 200}.safetensors"),
    "index: tensor elsewhere": mapped(WIDE, "model-1.safetensors"),
    **{
        f"{form}: {kind}": pickled(state, is_zip=is_zip)
        for form, is_zip in (("zip", True), ("legacy", False))
        for kind, state in (
            ("name", {LONG: torch.ones(1)}),
            ("key", {-(10**600): torch.ones(1)}),
            ("sparse", {WIDE: torch.eye(2).to_sparse()}),
            ("repeats", {WIDE: torch.zeros(1).expand(10**6)}),
        )
    },
    "pickle: function": protocol_2(b"\x80\x02c" + b"n" * 900 + b"\n" + b"n" * 900 + b"\n."),
    "pickle: longer function": protocol_2(b"\x80\x02c" + LONG.encode() + b"\nn\n."),
    "pickle: text": protocol_2(pickle.dumps(LONG, protocol=2)),
    "pickle: damage": protocol_2(b"\x80\x02I" + LONG.encode() + b"\n."),
    "archive: record": archive,
    "masks: name": mask(LONG),
    "masks: format": mask(metadata={"format": f"prunectl.masks/{LONG}"}),
    "masks: no JSON": mask(metadata={"masks": LONG}),
    "masks: bits only": mask(WIDE, metadata={"masks": "{}"}),
    "masks: description only": mask(metadata={"masks": json.dumps({"a": {}, LONG: {}})}),
    "masks: shape": mask(WIDE, shape=LONG),
    "masks: sizes": mask(WIDE, shape=[1] * 63 + [2**62]),
    "masks: pattern": mask(WIDE, pattern=LONG),
    "config: quant_method": config(quantization_config={"quant_method": LONG}),
    "config: nested quant_method": config(quantization_config={"format": {LONG: LONG}}),
    "model": lambda folder: open_checkpoint(folder / LONG),
    "no model": lambda folder: open_checkpoint("/".join(["n" * 100] * 50)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", READERS)
def test_what_a_file_holds_is_cut(tmp_path: Path, case: str) -> None:
    with pytest.raises(PrunectlError) as caught:
        READERS[case](tmp_path)
    is_short(caught.value)


def is_short(error: PrunectlError) -> None:
    assert len(str(error)) <= MAX_MESSAGE
    assert str(error) == error.message
    assert len(error.hint) <= MAX_MESSAGE


MANIFEST: dict[str, Callable[[dict[str, Any]], object]] = {
    "schema": lambda d: d.update(schema=LONG),
    "newer": lambda d: d.update(schema=f"9.{'1' * 4000}"),
    "tool": lambda d: d.update(tool=[LONG]),
    "kind": lambda d: d["source"].update(kind=LONG),
    "model": lambda d: d["source"].update(model=LONG),
    "repo": lambda d: d["source"].update(repo_id=LONG),
    "bad repo": lambda d: d["source"].update(repo_id="n" * 290 + "!"),
    "file": lambda d: d["tensors"][0].update(file=f"../{LONG}"),
    "name": lambda d: d["tensors"][0].update(name=LONG),
    "surrogates": lambda d: d["tensors"][0].update(name="\ud800" * 1000),
    "twice": lambda d: [one.update(name=WIDE) for one in d["tensors"]],
    "dtype": lambda d: d["tensors"][0].update(dtype=LONG),
    "pattern": lambda d: d["tensors"][0].update(pattern=LONG),
    "role": lambda d: d["tensors"][0].update(role=LONG),
    "arguments": lambda d: d["arguments"].update(method=LONG),
    "number": lambda d: d["tensors"][0].update(zeros=10**4000),
}


@pytest.mark.parametrize("case", MANIFEST)
def test_what_a_manifest_holds_is_cut(made: Path, tmp_path: Path, case: str) -> None:
    folder = cases.copied(made / "pruned", tmp_path / "pruned")
    cases.edit_manifest(folder, MANIFEST[case])
    with pytest.raises(PrunectlError) as caught:
        read_manifest(folder)
    is_short(caught.value)


def test_a_manifest_that_is_no_text_is_not_quoted(made: Path, tmp_path: Path) -> None:
    folder = cases.copied(made / "pruned", tmp_path / "pruned")
    (folder / "prunectl.json").write_bytes(b"\xff" * 100_000)
    with pytest.raises(PrunectlError) as caught:
        read_manifest(folder)
    is_short(caught.value)


def move(document: Any, name: str, **changes: Any) -> None:
    """Describe the first tensor under another name and by other fields."""
    first = next(iter(document["tensors"]))
    document["tensors"][name] = document["tensors"].pop(first) | changes


DESCRIBED: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda d: d.update(format=LONG),
    "name": lambda d: move(d, LONG),
    "no parts": lambda d: move(d, WIDE),
    "dtype": lambda d: move(d, WIDE, dtype=LONG),
    "shape": lambda d: move(d, WIDE, shape=[LONG]),
    "layout": lambda d: move(d, WIDE, layout=LONG),
    "parts": lambda d: move(d, WIDE, parts=[LONG]),
    "mask": lambda d: [one["extra"].update(mask=LONG) for one in d["tensors"].values()],
    "chunk": lambda d: [one["extra"].update(chunk=LONG) for one in d["tensors"].values()],
    "symbols": lambda d: [one["extra"].update(symbols=[LONG]) for one in d["tensors"].values()],
}


@pytest.mark.parametrize("case", DESCRIBED)
def test_what_a_compressed_file_says_is_cut(made: Path, tmp_path: Path, case: str) -> None:
    folder = cases.copied(made / "small", tmp_path / "small")
    name = next(iter(cases.described(folder / WEIGHTS)))
    cases.edit_described(folder / WEIGHTS, DESCRIBED[case])
    with pytest.raises(PrunectlError) as caught:
        open_weights(folder)[name]
    is_short(caught.value)


def test_what_is_not_an_error_is_cut_too(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    method = {"quantization_config": {"quant_method": LONG}}
    (tmp_path / "config.json").write_text(json.dumps(method | {"model_type": LONG}))
    found = open_stored(tmp_path)
    assert len(found.quantization) < 100
    assert len(found.roles.detail) < 700


def test_the_middle_is_cut() -> None:
    assert shortened("a" * 500) == "a" * 500
    cut = shortened("b" * 300 + "c" * 201 + "d" * 100)
    assert len(cut) == 500
    assert cut.startswith("b" * 290)
    assert cut.endswith("c" * 90 + "d" * 100)
    assert " ... " in cut
