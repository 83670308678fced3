"""The manifest: its schema, its round trip, and what somebody else may have put into one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import make_schemas
from prunectl.errors import BadManifest
from prunectl.output.manifest import Manifest, Totals, read_manifest
from prunectl.output.records import Count, FileRecord, SourceFile, SourceRecord, TensorRecord
from prunectl.tensorspec import DTYPES

DOCS = Path(__file__).parent.parent / "docs"
SCHEMA = json.loads((DOCS / "manifest.schema.json").read_text())
DIGEST = "0123456789abcdef" * 4

EXAMPLE = Manifest(
    tool="prunectl",
    version="0.1.0",
    source=SourceRecord(
        "org/name@main", "hub", "org/name", "main", "c" * 40, "https://user:secret@hub.example/x?t=1",
        (SourceFile("sub/model.safetensors", 1000, "a" * 64), SourceFile("b.bin", 5, None)),
    ),
    arguments={"method": "omp", "sparsity": 0.4, "exclude": ["*.q_proj"], "recipe": None},
    totals=Totals(Count.of(100, 1, 40, 0.4), Count.of(300, 2, 41)),
    tensors=(
        TensorRecord("a.weight", "model.safetensors", "BF16", (10, 10), "block linear", 3,
                     "unstructured", None, 40, 1, 0.1, DIGEST, "dense", None, True, None, 1),
        TensorRecord("b.bias", "model.safetensors", "F32", (), "bias", None, None, None, 1, 1,
                     None, DIGEST, "dense", "bias", False, "a.weight", None),
    ),
    files=(FileRecord("config.json", 12, DIGEST),),
)  # fmt: skip


def local(model: str) -> SourceRecord:
    return SourceRecord(model, "folder", None, None, None, None, ())


def validate(manifest: Manifest) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(manifest.to_json()))


def test_the_schemas_are_those_of_the_types() -> None:
    for path, text in make_schemas.schemas().items():
        assert path.read_text(encoding="utf-8") == text, "run make screens"
        jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_the_example_validates_and_comes_back() -> None:
    validate(EXAMPLE)
    back = Manifest.from_json(EXAMPLE.to_json())
    endpoint = "https://hub.example/x"
    assert back == replace(EXAMPLE, source=replace(EXAMPLE.source, endpoint=endpoint))
    assert b"secret" not in EXAMPLE.to_json()
    assert back.to_json() == EXAMPLE.to_json()


def test_one_line_a_tensor() -> None:
    lines = EXAMPLE.to_json().decode().splitlines()
    assert json.loads(next(x for x in lines if "a.weight" in x).rstrip(","))["layer"] == 3


names = st.text(st.characters(codec="utf-8"), max_size=20)
shown = names.filter(str.isprintable)
paths = st.from_regex(r"[a-z_\-]{1,5}(/[a-z]{1,3})?\.[a-z]{1,4}", fullmatch=True)
finite = st.floats(0, allow_infinity=False, allow_nan=False)


@st.composite
def tensors(draw: st.DrawFn) -> TensorRecord:
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    weights = 1
    for size in shape:
        weights *= size
    return TensorRecord(
        name=draw(names),
        file=draw(paths),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        shape=shape,
        role=draw(shown),
        layer=draw(st.none() | st.integers(0, 200)),
        pattern=draw(st.sampled_from([None, "unstructured", "2:4", "1:2"])),
        sparsity=draw(st.none() | st.floats(0, 1)),
        zeros=draw(st.integers(0, weights)),
        zeros_before=draw(st.integers(0, weights)),
        threshold=draw(st.none() | finite),
        blake3=DIGEST,
        layout="dense",
        reason=draw(st.none() | names),
        prunable=draw(st.booleans()),
        tied_to=draw(st.none() | names),
        input_axis=draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None,
    )


@given(
    drawn=st.lists(tensors(), max_size=4, unique_by=lambda t: t.name),
    files=st.lists(paths, max_size=3, unique=True),
)
def test_any_manifest_validates_and_comes_back_exactly(
    drawn: list[TensorRecord], files: list[str]
) -> None:
    manifest = replace(
        EXAMPLE,
        source=local("m"),
        tensors=tuple(drawn),
        files=tuple(FileRecord(name, 1, DIGEST) for name in files),
    )
    validate(manifest)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_numbers_that_json_cannot_hold_are_not_written() -> None:
    broken = replace(EXAMPLE.tensors[0], threshold=float("inf"))
    with pytest.raises(ValueError, match="JSON"):
        replace(EXAMPLE, tensors=(broken,)).to_json()


Document = dict[str, Any]


def put(*place: str | int, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        inner: Any = document
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    return change


def drop(*place: str | int) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        inner: Any = document
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("schema"), "schema is missing"),
        (put("schema", value=1.0), "schema is not a string"),
        (put("schema", value="one"), "not a version"),
        (put("schema", value="-1.0"), "not a version"),
        (put("source", value=[]), "source is not an object"),
        (put("source", "kind", value="ftp"), "source.kind: invalid enum value 'ftp'"),
        (put("source", "files", 0, "name", value="../../x"), "leaves the folder"),
        (put("tensors", value={}), "tensors is not a list"),
        (put("tensors", 0, value=None), r"tensors\[0\] is not an object"),
        (put("tensors", 1, "file", value="/etc/passwd"), r"tensors\[1\].file.*leaves the folder"),
        (put("tensors", 1, "file", value="..\\x"), "leaves the folder"),
        (put("tensors", 0, "zeros", value=True), r"tensors\[0\].zeros is not a whole number"),
        (put("tensors", 0, "zeros", value=-1), "whole number"),
        (put("tensors", 0, "zeros", value=101), "more than there are weights"),
        (put("tensors", 0, "zeros", value=2**70), "whole number"),
        (put("tensors", 0, "layer", value="3"), "whole number"),
        (
            put("tensors", 0, "shape", value=[10, 1.5]),
            r"tensors\[0\]\.shape\[1\] is not a whole number",
        ),
        (put("tensors", 0, "shape", value="10"), "shape is not a list"),
        (put("tensors", 0, "shape", value=[1] * 100), "shape is not a list of length <= 64"),
        (put("tensors", 0, "dtype", value="F33"), "not a dtype"),
        (put("tensors", 0, "pattern", value="4:2"), "did you mean 2:4"),
        (put("tensors", 0, "threshold", value=10**400), "threshold: number out of range"),
        (put("tensors", 0, "threshold", value=float("nan")), "threshold is not a number >= 0"),
        (put("tensors", 0, "threshold", value=False), "not a number"),
        (put("tensors", 0, "blake3", value="ABC"), r"tensors\[0\]\.blake3 is not a string"),
        (put("tensors", 0, "blake3", value=DIGEST + "\n"), r"tensors\[0\]\.blake3 is not a string"),
        (put("tensors", 0, "prunable", value=1), "prunable is not true or false"),
        (put("tensors", 0, "threshold", value=float("inf")), "threshold is not a number <= 1.79"),
        (put("source", "endpoint", value="http://[x"), "source.endpoint is not a URL"),
        (drop("tool"), "tool is missing"),
        (drop("totals", "overall", "achieved"), "totals.overall.achieved is missing"),
        (drop("tensors", 0, "prunable"), "prunable is missing"),
        (put("tensors", 0, "tied_to", value=3), "tied_to is not a string"),
        (drop("tensors", 0, "tied_to"), "tied_to is missing"),
        (put("tensors", 0, "input_axis", value=2), "input_axis is not an axis"),
        (put("tensors", 0, "input_axis", value=-1), "input_axis is not a whole number"),
        (put("tensors", 0, "input_axis", value=True), "input_axis is not a whole number"),
        (put("tensors", 1, "input_axis", value=0), "input_axis is not an axis"),
        (drop("tensors", 0, "input_axis"), "input_axis is missing"),
        (put("tensors", 1, "name", value="a.weight"), "'a.weight' twice"),
        (put("tensors", 1, "name", value="a\ud800"), r"name 'a\\ud800' is not valid Unicode"),
        (put("tensors", 1, "name", value="a" * 1025), r"\[1\]\.name .* is over 1,024 bytes"),
        (put("tensors", 1, "tied_to", value="__metadata__"), "is reserved by safetensors"),
        (put("files", 0, "name", value=""), "leaves the folder"),
        (put("totals", "prunable", "achieved", value=0.5), "not zeros / weights"),
        (put("totals", "overall", "zeros", value=500), "more than there are weights"),
        (put("arguments", value="--all"), "arguments is not an object"),
        (put("arguments", "rules", value=5), r"arguments\.rules is not a list"),
        (put("arguments", "rules", value=["x"]), r"arguments\.rules\[0\] is not an object"),
        (put("arguments", "rules", value=[{"skip": "no"}]), "skip is not true or false"),
        (put("arguments", "method", value=["x"]), "method is not a string"),
        (put("arguments", "pattern", value="\ud800"), "pattern holds characters"),
        (put("arguments", "scope", value="x" * 301), "scope is not a string of length <= 300"),
        (put("arguments", "sparsity", value="0.4"), "sparsity is not a number"),
        (put("arguments", "calibration", value=[1]), "calibration is not an object"),
        (put("arguments", "calibration", value={"samples": -1}), "samples is not a whole number"),
        (put("arguments", "calibration", value={"kind": "a\nb"}), "kind holds characters"),
        (put("arguments", "x", value=[float("inf")]), "arguments cannot be written again"),
        (put("export", value={"x": float("nan")}), "export cannot be written again"),
        (put("source", "model", value="a\0b"), "source.model holds a zero byte"),
        (put("source", "model", value="\ud800"), "source.model holds characters"),
        (
            put("source", "model", value="x" * 5000),
            "source.model is not a string of length <= 4096",
        ),
        (
            put("source", "repo_id", value="a/b\n<!-- prunectl:end -->"),
            "repo_id is not a string matching",
        ),
        (put("source", "repo_id", value="a/b)](c"), "repo_id is not a string matching"),
        (put("source", "repo_id", value="\ud800"), "repo_id is not a string"),
        (put("source", value="\ud800"), r"the document holds \\ud800, which is not valid Unicode"),
        (put("source", "kind", value="hub\udcff"), r"holds \\udcff, which is not valid Unicode"),
        (put("source", "revision", value="\x1b[2J"), "revision holds characters"),
        (put("source", "kind", value="x" * 1000), "source.kind: invalid enum value 'xxx"),
        (put("tensors", 0, "role", value="\ud800"), r"tensors\[0\]\.role holds characters"),
        (put("tensors", 0, "role", value="x" * 301), "role is not a string of length"),
        (put("tensors", 0, "layout", value="x\n"), "layout holds characters"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Document], None], said: str) -> None:
    document = json.loads(EXAMPLE.to_json())
    change(document)
    with pytest.raises(BadManifest, match=said):
        Manifest.from_json(json.dumps(document), "out/prunectl.json")


@pytest.mark.parametrize("model", ["a\nb", "a\u00a0b \u202e", "caf\udce9", "~/x", "a" * 4096])
def test_any_path_may_be_a_source(model: str) -> None:
    manifest = replace(EXAMPLE, source=local(model))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_newer_major_version_asks_for_a_newer_prunectl() -> None:
    with pytest.raises(BadManifest, match=r"schema version 2\.0") as caught:
        Manifest.from_json('{"schema": "2.0", "anything": "else"}')
    assert "newer prunectl" in caught.value.hint


def test_a_newer_minor_version_is_read() -> None:
    document = json.loads(EXAMPLE.to_json())
    document["schema"] = "1.7"
    document["tensors"][0]["new"] = "member"
    assert Manifest.from_json(json.dumps(document)).tensors == EXAMPLE.tensors


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{", b"[" * 200_000, b"null", b"[]", b'"x"'])
def test_what_is_no_manifest_at_all(data: bytes) -> None:
    with pytest.raises(BadManifest):
        Manifest.from_json(data)


@given(data=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(list(json.loads(EXAMPLE.to_json()))), inner)
)))  # fmt: skip
def test_nothing_else_than_a_manifest_is_taken_for_one(data: object) -> None:
    with pytest.raises(BadManifest):
        Manifest.from_json(json.dumps(data))


def test_read_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="No such file"):
        read_manifest(tmp_path)
    os.mkfifo(tmp_path / "prunectl.json")  # it would never end
    with pytest.raises(BadManifest, match="not a regular file"):
        read_manifest(tmp_path)
    (tmp_path / "prunectl.json").unlink()
    (tmp_path / "prunectl.json").write_bytes(EXAMPLE.to_json())
    assert read_manifest(tmp_path).tensors == EXAMPLE.tensors


def test_the_page_explains_every_member() -> None:
    page = (DOCS / "manifest.md").read_text()
    members = set(SCHEMA["properties"]) - {"totals"} | set(
        SCHEMA["$defs"]["TensorRecord"]["properties"]
    )
    members |= set(SCHEMA["$defs"]["SourceRecord"]["properties"]) | {
        "totals.prunable",
        "totals.overall",
    }
    members |= set(SCHEMA["$defs"]["Count"]["properties"])
    assert {m for m in members if f"`{m}`" not in page} == set()


def test_the_page_says_that_the_card_is_not_listed() -> None:
    page = (DOCS / "manifest.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `files` | list of files"))
    assert "Not the model card `README.md`" in row
