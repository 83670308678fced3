"""What ``--calibration`` means, form by form, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunectl.data.source import (
    DataSource,
    SourceKind,
    parse_source,
    without_folders,
)
from prunectl.errors import InvalidOption


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some files, which is the current one."""
    for name in ("b.txt", "a.txt", "x,y.txt", "c.md", "rows.jsonl", "pairs.csv"):
        (tmp_path / name).write_text("text")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("text:a.txt", ["a.txt"]),
        ("a.txt", ["a.txt"]),
        ("text:b.txt,a.txt", ["b.txt", "a.txt"]),
        ("text:x,y.txt", ["x,y.txt"]),
        ("text:[ab].txt", ["a.txt", "b.txt"]),
        ("text:**/d.txt", ["sub/d.txt"]),
        ("text:.", ["a.txt", "b.txt", "x,y.txt"]),
        ("sub", ["sub/d.txt"]),
        (["text:b.txt", "text:a.txt,b.txt"], ["b.txt", "a.txt"]),
        ("text:rows.jsonl", ["rows.jsonl"]),
    ],
)
def test_text(folder: Path, given: str | list[str], names: list[str]) -> None:
    found = parse_source(given, "--calibration")
    assert found == DataSource(SourceKind.TEXT, tuple(map(Path, names)))
    assert found.to_json() == {"kind": "text", "files": [Path(name).name for name in names]}


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("hf:org/name", ("org/name", None, None, None)),
        ("hf:name:conf", ("name", "conf", None, None)),
        ("hf:org/name::test", ("org/name", None, "test", None)),
        ("hf:org/name:conf:test:column of text", ("org/name", "conf", "test", "column of text")),
        ("hf:rows.jsonl:::text", ("rows.jsonl", None, None, "text")),
    ],
)
def test_datasets(folder: Path, given: str, fields: tuple[str | None, ...]) -> None:
    found = parse_source(given, "--calibration")
    assert (found.dataset, found.config, found.split, found.column) == fields
    assert (found.kind, found.files) == (SourceKind.HF, ())


def test_the_record_names_no_folder_of_the_user(folder: Path) -> None:
    assert parse_source("hf:org/name::test", "--calibration").name == "hf:org/name::test"
    assert parse_source("hf:org/name:conf", "--calibration").name == "hf:org/name:conf"
    found = parse_source(f"hf:{folder / 'sub'}", "--calibration")
    assert found.to_json() == {"kind": "hf", "dataset": "sub"}
    assert parse_source(f"images:{folder / 'sub'}", "--calibration").to_json()["files"] == ["sub"]
    assert str(folder) not in json.dumps(parse_source(str(folder), "--calibration").to_json())


def test_the_others(folder: Path) -> None:
    assert parse_source(["random"], "--calibration") == DataSource(SourceKind.RANDOM)
    (folder / "demo").mkdir()
    assert parse_source("demo", "--calibration") == DataSource(SourceKind.DEMO), (
        "everywhere the same"
    )
    assert parse_source("images:sub", "--calibration") == DataSource(
        SourceKind.IMAGES, (Path("sub"),)
    )
    found = parse_source("pairs:pairs.csv", "--calibration")
    assert found == DataSource(SourceKind.PAIRS, (Path("pairs.csv"),))


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ([], "no data given", "text:FILE"),
        ("", "'' is neither", "text:FILE"),
        ("org/name", "neither a file nor a form", "hf:org/name"),
        ("nothing.txt", "neither a file nor a form", "text:FILE"),
        ("c4:en", "neither a file nor a form", "hf:DATASET"),
        ("a\0b", "neither a file nor a form", "text:FILE"),
        ("text:", "names nothing", "text:FILE"),
        ("text:,", "names no file", ""),
        ("text:nothing.txt", "no such file", "check the path"),
        ("text:empty", "holds no \\*.txt", "empty/"),
        ("rows.jsonl", "could mean a table", "hf:rows.jsonl"),
        ("hf:", "names nothing", "hf:DATASET"),
        ("hf:a/b/c", "neither a path nor", "org/name"),
        ("hf:org/name:c:train:text:more", "more than four parts", "COLUMN"),
        ("hf:org/name:c:train[:10%]:text", "more than four parts", "slice"),
        ("images:nothing", "no such folder", ""),
        ("pairs:nothing.csv", "no such file", ""),
        ("pairs:a.txt", "not a table", ".csv, .tsv"),
        (["text:a.txt", "random"], "cannot be combined", "only text"),
        (["hf:a/b", "hf:c/d"], "cannot be combined", "only text"),
    ],
)
def test_refused(folder: Path, given: str | list[str], message: str, hint: str) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        parse_source(given, "--calibration")
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_what_others_read_names_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a.txt", "b,c.txt", "d.csv"):
        (tmp_path / "data" / name).touch()
    home = f"{tmp_path}/data"
    for text, expected in (
        (f"text:{home}/a.txt,data/b.txt", "text:a.txt,b.txt"),
        (f"text:{home}/b,c.txt", "text:b,c.txt"),
        (f"text:{home}/*.md", "text:*.md"),
        ("text:.", f"text:{tmp_path.name}"),
        (f"{home}/a.txt", "a.txt"),
        (f"images:{home}", "images:data"),
        (f"pairs:{home}/d.csv", "pairs:d.csv"),
        (f"hf:{home}/d.csv::train:text", "hf:d.csv::train:text"),
        ("hf:org/name:config", "hf:org/name:config"),
        ("random", "random"),
        ("demo", "demo"),
    ):
        assert without_folders(text) == expected
