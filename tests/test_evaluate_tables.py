"""Tables that metrics read: of each format, of each layout of a folder, and what is wrong."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from PIL import Image

from prunectl import demo
from prunectl.checkpoint.model_kind import ModelKind, model_kind_of
from prunectl.checkpoint.module_tree import build_on_meta, model_class
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data import table_files, tables
from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.source import parse_source
from prunectl.data.tables import Table, column, digest_rows, pick
from prunectl.errors import HubUnreachable, InvalidOption, MissingLibrary
from prunectl.evaluation.errors import NoData
from prunectl.evaluation.metric import Request
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.sources import splits_of, the_data

ROWS = [
    {"text": 'a "quoted" word, and a comma', "label": "good"},
    {"text": "two\nlines", "label": "bad"},
    {"text": "naïve café", "label": "good"},
]
"""What each format but TSV can hold."""


@pytest.fixture(scope="module")
def model_kind() -> ModelKind:
    folder = demo.model_folder()
    return model_kind_of(build_on_meta(*model_class(folder, trust_remote_code=False)), folder)


@pytest.fixture
def request_(model_kind: ModelKind) -> Request:
    return Request(open_checkpoint("demo"), model_kind, EvalSettings("choice"))


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                delimiter = "\t" if path.suffix == ".tsv" else ","
                table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
                table.writeheader()
                table.writerows(rows)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case _:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_each_format_gives_the_rows_that_were_written(
    request_: Request, tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path / f"mails{suffix}")
    found = splits_of(request_, str(path))
    assert list(found) == ["all"]
    assert found["all"].rows == ROWS
    assert found["all"].columns == ("text", "label")
    assert found["all"].facts == {
        "kind": "table", "files": [path.name], "split": "all", "rows": 3,
    }  # fmt: skip


def test_a_tsv_takes_quotes_as_characters(request_: Request, tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text('\ufeffsentence\tlabel\r\n"so he said\t1\r\nbut "why"?\t0\r\n', newline="")
    found = splits_of(request_, str(path))
    assert found["validation"].rows == [
        {"sentence": '"so he said', "label": "1"},
        {"sentence": 'but "why"?', "label": "0"},
    ]


def test_a_squad_file_is_the_list_in_it(request_: Request, tmp_path: Path) -> None:
    path = tmp_path / "dev-v1.1.json"
    path.write_text('{"version": "1.1", "data": [{"title": "a", "paragraphs": []}]}')
    assert splits_of(request_, str(path))["validation"].rows == [{"title": "a", "paragraphs": []}]


def test_a_folder_has_a_split_for_each_name(request_: Request, tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev_matched.tsv",
                 "dev_mismatched.tsv", "test.jsonl"):  # fmt: skip
        write(tmp_path / name, [{"text": name, "label": "1"}])
    (tmp_path / "dataset_infos.json").write_text("{}")
    found = splits_of(request_, str(tmp_path), skip=("test",))
    assert {name: [row["text"] for row in one.rows] for name, one in found.items()} == {
        "validation_matched": ["dev_matched.tsv"],
        "validation_mismatched": ["dev_mismatched.tsv"],
        "train": ["train-00000-of-00002.csv", "train-00001-of-00002.csv"],
    }


def test_the_files_of_mmlu_have_no_header_and_their_subject_in_the_name(
    request_: Request, tmp_path: Path
) -> None:
    for split in ("dev", "val", "test"):
        path = tmp_path / "data" / split / f"high_school_physics_{split}.csv"
        path.parent.mkdir(parents=True)
        path.write_text(f'"What, of {split}?",one,2,three,4,B\nAnd?,1,2,3,4,D\n')
    found = splits_of(request_, str(tmp_path))
    assert set(found) == {"dev", "validation", "test"}
    assert found["validation"].rows[0] == {
        "question": "What, of val?", "A": "one", "B": "2", "C": "three", "D": "4", "answer": "B",
        "subject": "high_school_physics",
    }  # fmt: skip
    assert len(found["test"].rows) == 2
    with_header = tmp_path / "one.csv"
    with_header.write_text("subject,question,A,B,C,D\nphysics,Why?,1,2,3,4\n")
    assert splits_of(request_, str(with_header))["all"].rows[0]["question"] == "Why?"


def test_a_folder_of_images(request_: Request, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            path = tmp_path / split / label / "deep" / f"{split}.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (2, 2)).save(path)
    found = splits_of(request_, str(tmp_path))
    assert set(found) == {"train", "test"}
    assert found["test"].rows == [
        {"image": tmp_path / "test" / name / "deep" / "test.png", "label": name}
        for name in ("cat", "dog")
    ]
    alone = splits_of(request_, str(tmp_path / "train"))
    assert [row["label"] for row in alone["all"].rows] == ["cat", "dog"]


def test_the_folder_of_tiny_imagenet(request_: Request, tmp_path: Path) -> None:
    for place in ("train/n01/images/n01_0.JPEG", "val/images/val_0.JPEG", "test/images/t_0.JPEG"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(path)
    lines = "val_0.JPEG\tn01\t0\t0\t62\t62\n../../../secret\tn01\t0\t0\t1\t1\n"
    (tmp_path / "val" / "val_annotations.txt").write_text(lines)
    found = splits_of(request_, str(tmp_path))
    assert {name: one.rows for name, one in found.items()} == {
        "train": [{"image": tmp_path / "train/n01/images/n01_0.JPEG", "label": "n01"}],
        "validation": [{"image": tmp_path / "val/images/val_0.JPEG", "label": "n01"}],
    }


def test_what_save_to_disk_wrote_and_the_names_of_classes(
    request_: Request, tmp_path: Path
) -> None:
    import datasets

    datasets.disable_progress_bars()
    picture = Image.new("RGB", (2, 2), "red")
    made = datasets.Dataset.from_dict({"label": [1, 0], "img": [picture, picture]})
    made = made.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    made = made.cast_column("img", datasets.Image())
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "saved")
    found = splits_of(request_, f"hf:{tmp_path / 'saved'}:")
    assert set(found) == {"train", "test"}
    assert found["train"].facts["classes"] == {"label": ["cat", "dog"]}
    assert [row["label"] for row in found["train"].rows] == [1, 0]
    assert found["train"].rows[0]["img"].startswith(b"\x89PNG")
    only = splits_of(request_, f"hf:{tmp_path / 'saved'}::test")
    assert list(only) == ["test"]
    with pytest.raises(BadData, match="no split 'dev'"):
        splits_of(request_, f"hf:{tmp_path / 'saved'}::dev")


def test_a_few_bad_rows_are_left_out_and_many_are_refused(
    request_: Request, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a,1\n" * 200 + "b,c,1\n")
    assert len(splits_of(request_, str(path))["all"].rows) == 200
    assert request_.notes == ["a.csv: 1 rows with too few or too many cells are left out"]
    path.write_text("text,label\na,1\nb,c,1\n")
    with pytest.raises(BadData, match="line 3 has another number of cells than the header's 2"):
        splits_of(request_, str(path))


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_long_document_is_read(request_: Request, tmp_path: Path, suffix: str) -> None:
    """Python's own limit is 131,072 characters of a cell."""
    path = tmp_path / f"a.{suffix}"
    path.write_text("text\n" + "long " * 100_000 + "\n")
    (row,) = splits_of(request_, str(path))["all"].rows
    assert row == {"text": "long " * 100_000}


BAD = {
    "a.csv": [
        (b"", "it has no rows"),
        (b"text,label\n", "it has no rows"),
        (b"text,text\na,b\n", "several columns 'text'"),
        (b'text,label\na,1\n"b\nc,1\n', "row that begins in line 3 .* unexpected end of data"),
        (b"text,label\n\xff,1\n", "not UTF-8 text .byte 0xff."),
        (b"text,label\na\0,1\n", "zero bytes"),
    ],
    "a.jsonl": [
        (b'{"text": 1}\n\n{"text": 2', "line 3 is no JSON: Expecting ',' delimiter"),
        (b'{"text": "a"}\n{"text": "b\\ud800"}\n', "row 2 holds half of a surrogate pair"),
        (b'{"a\\udc00": "a"}\n', "row 1 holds half of a surrogate pair"),
        (b"[1]\n", "line 1 is no object"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1 is no JSON: its lists and"),
    ],
    "a.json": [
        (b'{"a": 1}', "without a list of rows"),
        (b"3", "not a list of objects"),
        (b"[1]", "entry 1 is no object"),
        (b"[" * 100_000, "not a table that can be read"),
        (b"[]", "it has no rows"),
    ],
    "a.parquet": [(b"PAR1", "parquet|Parquet")],
}


@pytest.mark.parametrize(("name", "data", "why"), [(n, *c) for n, cs in BAD.items() for c in cs])
def test_files_that_are_no_tables(
    request_: Request, tmp_path: Path, name: str, data: bytes, why: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BadData, match=why) as caught:
        splits_of(request_, str(path))
    assert caught.value.hint
    assert len(str(caught.value)) < 700


def test_no_more_is_held_than_the_caps(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x" * 10}] * 9)
    monkeypatch.setattr(tables, "ROWS", 5)
    assert len(splits_of(request_, str(path))["all"].rows) == 5
    monkeypatch.setattr(tables, "BYTES", 40)
    assert len(splits_of(request_, str(path))["all"].rows) == 2
    assert request_.notes == [
        f"{path}: only its first 5 rows are read", f"{path}: only its first 2 rows are read",
    ]  # fmt: skip
    monkeypatch.setattr(table_files, "LINE", 8)
    with pytest.raises(BadData, match="a line of more than 8 characters"):
        splits_of(request_, str(path))
    monkeypatch.setattr(table_files, "DOCUMENT", 8)
    with pytest.raises(BadData, match="too much for one JSON document"):
        splits_of(request_, str(write(tmp_path / "a.json")))


def test_folders_that_are_not_clear(request_: Request, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="neither tables nor images"):
        splits_of(request_, str(tmp_path))
    write(tmp_path / "some.csv")
    assert list(splits_of(request_, str(tmp_path))) == ["all"]
    write(tmp_path / "other.csv")
    with pytest.raises(BadData, match=r"which of its tables is meant\? other.csv, some.csv"):
        splits_of(request_, str(tmp_path))
    write(tmp_path / "test.csv")
    write(tmp_path / "test.jsonl")
    with pytest.raises(BadData, match="'test' is there as"):
        splits_of(request_, str(tmp_path))


def test_forms_that_name_no_table(request_: Request, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv")
    for text in ("nowhere.csv", "org/name", f"hf:{path}:::text", f"hf:{path}:config", "text:a.txt"):
        with pytest.raises(InvalidOption) as caught:
            splits_of(request_, text)
        assert caught.value.hint, text
        assert ("no such file or folder" in str(caught.value)) == (":" not in text)
    with pytest.raises(HubUnreachable):
        splits_of(request_, "hf:cais/mmlu:all")
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.csv")
        with pytest.raises(BadData, match="no regular file"):
            splits_of(request_, str(tmp_path / "pipe.csv"))


@pytest.fixture
def lock() -> Iterator[Callable[[Path], None]]:
    """Takes all permissions of a path, until the test is over."""
    locked: list[tuple[Path, int]] = []

    def lock_one(path: Path) -> None:
        locked.append((path, path.stat().st_mode))
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("root may read anything")

    yield lock_one
    for path, mode in locked:
        path.chmod(mode)


@pytest.mark.parametrize("name", ["data", "data/test", "data/test/dog", "data/test/dog/0.png"])
def test_what_may_not_be_read_is_said_and_not_left_out(
    request_: Request, tmp_path: Path, lock: Callable[[Path], None], name: str
) -> None:
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            path = tmp_path / "data" / split / kind / "0.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"image")
    lock(tmp_path / name)
    with pytest.raises((BadData, BadData), match="cannot be read: Permission denied"):
        digest_rows(splits_of(request_, str(tmp_path / "data"))["test"].rows, ["image"])


def test_a_folder_of_texts_that_may_not_be_read(
    tmp_path: Path, lock: Callable[[Path], None]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    lock(tmp_path)
    with pytest.raises(InvalidOption, match="cannot be read: Permission denied"):
        parse_source(f"text:{tmp_path}", "--calibration")


def test_parquet_needs_the_library(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingLibrary, match="datasets"):
        splits_of(request_, str(path))


def test_columns_splits_and_data_are_chosen(request_: Request) -> None:
    table = Table("t.csv", ("Question", "answer", "Answer"), [])
    assert column(table, None, ("question", "text")) == "Question"
    assert column(table, None, ("Answer",)) == "Answer"
    assert column(table, "ANSWER", ()) == "answer"
    with pytest.raises(MissingColumn, match="no column 'body'; it has Question, answer, Answer"):
        column(table, "body", ("question",))
    with pytest.raises(MissingColumn, match="no column 'a' or 'b'"):
        column(table, None, ("a", "b"))
    assert pick({"train": table}, ("test",), "t") is table
    with pytest.raises(BadData, match="no split test; it has train, x"):
        pick({"train": table, "x": table}, ("test",), "t")
    with pytest.raises(NoData, match="--metric choice needs --data"):
        the_data(request_)


def test_the_hash_is_of_the_cells_that_are_used(tmp_path: Path) -> None:
    rows = [{"a": "é", "b": 1, "c": "x"}, {"a": None, "b": [2]}]
    plain = blake3('["é", 1]\n[null, [2]]\n'.encode()).hexdigest()
    assert digest_rows(rows, ["a", "b"]) == plain
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    stood = blake3(f'["{blake3(b"png").hexdigest()}"]\n'.encode()).hexdigest()
    assert digest_rows([{"image": picture}], ["image"]) == stood
    assert digest_rows([{"image": b"png"}], ["image"]) == stood


def test_what_is_wrong_with_data_is_said_of_the_option_that_named_them(
    request_: Request, tmp_path: Path
) -> None:
    with pytest.raises(InvalidOption, match=r"--train-data nowhere\.csv: there is no such file"):
        splits_of(request_, "nowhere.csv", "--train-data")
    (tmp_path / "bad.csv").write_bytes(b"a,b\n")
    with pytest.raises(BadData, match="it has no rows") as caught:
        splits_of(request_, str(tmp_path / "bad.csv"), "--train-data")
    assert caught.value.hint.startswith("--train-data takes a CSV")
