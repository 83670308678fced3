"""Calibration on datasets and on images: local ones, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hubserver import serve
from PIL import Image

from prunectl import demo
from prunectl.calibration.samples import load_samples
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import Kind, ModelKind, model_kind_of
from prunectl.checkpoint.module_tree import build_on_meta, model_class
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.datasets import Rows, read_images, table_rows
from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.images import find_images, open_image
from prunectl.data.source import Samples, parse_source
from prunectl.errors import HubUnreachable, InvalidOption, MissingLibrary

TEXTS = demo.calibration_text().read_text(encoding="utf-8").splitlines()[:40]


def opened(folder: Path, name: str = "") -> tuple[Checkpoint, ModelKind]:
    model_kind = model_kind_of(build_on_meta(*model_class(folder, trust_remote_code=False)), folder)
    return open_checkpoint(name or folder), model_kind


@pytest.fixture(scope="module")
def text_model() -> tuple[Checkpoint, ModelKind]:
    return opened(demo.model_folder(), "demo")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, ModelKind]:
    folder = tmp_path_factory.mktemp("vit")
    tiny_models.build("vit", folder)
    return opened(folder)


def save_rows(path: Path, texts: list[str] = TEXTS, column: str = "text") -> Path:
    rows = [{"number": n, column: text} for n, text in enumerate(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def windows_of(source: str, model: tuple[Checkpoint, ModelKind], **options: Any) -> Samples:
    return load_samples(parse_source(source, "--calibration"), *model, samples=4, **options)


# --- datasets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "data/train.jsonl"])
def test_local_datasets_of_each_format(
    text_model: tuple[Checkpoint, ModelKind], tmp_path: Path, name: str
) -> None:
    path = save_rows(tmp_path / name)
    source = path.parent if "/" in name else path
    found = windows_of(f"hf:{source}", text_model, sequence_length=64, seed=1)
    assert [one["input_ids"].shape for one in found.inputs] == [(1, 64)] * 4
    again = windows_of(f"hf:{source}", text_model, sequence_length=64, seed=1)
    other = windows_of(f"hf:{source}", text_model, sequence_length=64, seed=2)
    assert found.record == again.record
    assert found.record["blake3"] != other.record["blake3"]
    named = {key: found.record[key] for key in ("kind", "dataset", "split", "column")}
    assert named == {"kind": "hf", "dataset": source.name, "split": "train", "column": "text"}
    assert found.record["bytes_read"] == sum(len(text.encode()) for text in TEXTS if text.strip())
    assert str(tmp_path) not in json.dumps(found.record)


def test_a_dataset_that_was_saved_to_disk(
    text_model: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    import datasets

    one = datasets.Dataset.from_dict({"sentence": TEXTS})
    datasets.DatasetDict({"test": one, "dev": one}).save_to_disk(tmp_path / "saved")
    found = windows_of(f"hf:{tmp_path / 'saved'}::dev", text_model)
    assert (found.record["split"], found.record["column"]) == ("dev", "sentence")
    assert windows_of(f"hf:{tmp_path / 'saved'}", text_model).record["split"] == "test"


def test_no_more_rows_are_read_than_are_needed(
    text_model: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    path = save_rows(tmp_path / "a.jsonl", [TEXTS[0] * 20] * 3000)
    found = windows_of(f"hf:{path}", text_model)
    assert 1 << 20 <= found.record["bytes_read"] < (1 << 20) + 20 * len(TEXTS[0]) < 2 << 20
    assert "bytes_total" not in found.record


def test_columns(text_model: tuple[Checkpoint, ModelKind], tmp_path: Path) -> None:
    path = save_rows(tmp_path / "a.jsonl", column="verse")
    with pytest.raises(MissingColumn, match=r"no column that is known .* number, verse") as caught:
        windows_of(f"hf:{path}", text_model)
    assert caught.value.columns == ("number", "verse")
    with pytest.raises(MissingColumn, match="no column 'words'; it has number, verse"):
        windows_of(f"hf:{path}:::words", text_model)
    with pytest.raises(BadData, match="'number' holds int, not text"):
        windows_of(f"hf:{path}:::number", text_model)
    assert windows_of(f"hf:{path}:::verse", text_model).record["column"] == "verse"


@pytest.mark.parametrize(
    ("name", "data", "more", "message"),
    [
        ("a.jsonl", b"bad{{{\n", "", "JSON"),
        ("a.jsonl", b"", "", "no rows"),
        ("a.parquet", b"no parquet", "", "Parquet|magic"),
        ("a.bin", b"abc", "", "files that end in '.bin'"),
        ("a.jsonl", b'{"text": "a"}\n', "::test", "no split 'test'; it has train"),
        ("a.jsonl", b'{"text": "a"}\n', "", "has 1 tokens|has . tokens"),
        ("a.jsonl", b'{"text": ""}\n{"text": null}', "", "no text"),
        ("empty/a.bin", b"", "", r"[Nn]o \(supported\) data files"),
    ],
)
def test_bad_datasets(
    text_model: tuple[Checkpoint, ModelKind],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    data: bytes,
    more: str,
    message: str,
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    source = path.parent if "/" in name else path
    with pytest.raises(BadData, match=message) as caught:
        windows_of(f"hf:{source}{more}", text_model)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_file_that_changes_is_read_again(
    text_model: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    path = save_rows(tmp_path / "a.jsonl")
    first = windows_of(f"hf:{path}", text_model, sequence_length=64)
    save_rows(path, TEXTS[::-1])
    again = windows_of(f"hf:{path}", text_model, sequence_length=64)
    assert first.record["blake3"] != again.record["blake3"]
    assert [one.name for one in tmp_path.iterdir()] == ["a.jsonl"], "nothing beside the data"


HUB_IMAGES = """
from pathlib import Path
from sys import argv
from prunectl.data import datasets
from prunectl.data.errors import BadData
from prunectl.data.source import parse_source
source = parse_source("hf:org/pictures", "--calibration")
rows = datasets.open_rows(source, 0, datasets.IMAGE_COLUMNS)
found = list(datasets.read_images(rows, source))
splits, commit = datasets.open_splits(source)
again = [row["image"] for row in datasets.table_rows(splits["train"], source, "train")]
wanted = [path.read_bytes() for path in sorted(Path(argv[1]).iterdir())]
assert sorted(found) == sorted(again) == sorted(wanted), (found, again)
assert rows.facts() == {"split": "train", "column": "image", "revision": commit}
try:
    datasets.open_splits(parse_source("hf:org/script", "--calibration"))
except BadData as error:
    assert "scripts are no longer supported" in str(error), error
"""


@pytest.mark.full
def test_images_of_the_hub_stay_encoded_and_no_code_of_a_dataset_is_run(tmp_path: Path) -> None:
    paths = save_images(tmp_path / "own", 3)
    ran = tmp_path / "ran"
    with serve(tmp_path / "hub") as hub:
        files = {f"train/cat/{path.name}": path.read_bytes() for path in paths}
        hub.put("org/pictures", files, type_="dataset")
        script = f"import pathlib; pathlib.Path({str(ran)!r}).touch()"
        hub.put("org/script", {"script.py": script.encode()}, type_="dataset")
        done = subprocess.run(
            [sys.executable, "-c", HUB_IMAGES, tmp_path / "own"],
            env={**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not ran.exists()


def test_offline(text_model: tuple[Checkpoint, ModelKind]) -> None:
    with pytest.raises(HubUnreachable, match="offline mode is on"):
        windows_of("hf:nobody/nothing", text_model)


@pytest.mark.parametrize(("library", "source"), [("datasets", "hf:org/name"), ("PIL", "images:.")])
def test_missing_libraries(
    text_model: tuple[Checkpoint, ModelKind],
    vit: tuple[Checkpoint, ModelKind],
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    source: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(MissingLibrary) as caught:
        windows_of(source, text_model if library == "datasets" else vit)
    assert caught.value.hint == "pip install 'prunectl[data]'"


# --- images -------------------------------------------------------------------------------------


def save_images(folder: Path, count: int = 9) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{n}.png" for n in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return paths


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 30000 x 30000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))

    head = pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_images_without_a_processor(vit: tuple[Checkpoint, ModelKind], tmp_path: Path) -> None:
    assert vit[1] == ModelKind(Kind.VISION, None, 0, (3, 16, 16), frozenset())
    paths = save_images(tmp_path / "a") + save_images(tmp_path / "a" / "below", 2)
    found = windows_of(f"images:{tmp_path / 'a'}", vit)
    pixels = [one["pixel_values"] for one in found.inputs]
    assert {(one.dtype, one.shape) for one in pixels} == {(torch.float32, (1, 3, 16, 16))}
    plain = [np.asarray(Image.open(path)) / 127.5 - 1 for path in paths]  # of the size as they are
    for one in pixels:
        image = one[0].permute(1, 2, 0).numpy()
        assert sum(np.allclose(image, other, atol=1e-6) for other in plain) >= 1
    assert "no preprocessor_config.json: images are resized to 16x16" in found.notes[0]
    named = {key: found.record[key] for key in ("kind", "files", "images", "samples")}
    assert named == {"kind": "images", "files": ["a"], "images": 11, "samples": 4}
    assert "tokens" not in found.record
    again = windows_of(f"images:{tmp_path / 'a'}", vit)
    assert again.record == found.record
    assert windows_of(f"images:{tmp_path / 'a'}", vit, seed=1).record != found.record
    with torch.no_grad():
        assert tiny_models.make("vit")(**found.inputs[0]).logits.shape == (1, 2)


def test_images_through_the_models_own_processor(tmp_path: Path) -> None:
    tiny_models.build("vit", tmp_path / "vit")
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "image_mean": [0.25, 0.5, 0.5],
        "image_std": [0.5, 0.25, 0.5],
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    paths = save_images(tmp_path / "a")
    found = windows_of(f"images:{tmp_path / 'a'}", opened(tmp_path / "vit"))
    assert found.notes == ()
    plain = [(np.asarray(Image.open(path)) / 255 - [0.25, 0.5, 0.5]) / [0.5, 0.25, 0.5]
             for path in paths]  # fmt: skip
    for one in found.inputs:
        image = one["pixel_values"][0].permute(1, 2, 0).numpy()
        assert sum(np.allclose(image, other, atol=1e-5) for other in plain) == 1
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_processor_type": "X"}')
    with pytest.raises(BadData, match=r"image processor of .* does not load"):
        windows_of(f"images:{tmp_path / 'a'}", opened(tmp_path / "vit"))


def test_broken_images_are_left_out_and_counted(
    vit: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    good = save_images(tmp_path / "a", 3)
    broken = [b"", b"no image", good[0].read_bytes()[:300], bomb(), b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    for number, data in enumerate(broken):
        (tmp_path / "a" / f"broken{number}.png").write_bytes(data)
    found = windows_of(f"images:{tmp_path / 'a'}", vit)
    assert (found.record["samples"], found.record["broken"]) == (3, len(broken))
    assert "5 of the images could not be read, and were left out" in found.notes
    assert "3 samples instead of 4" in found.notes[-1]
    for path in good:
        path.unlink()
    with pytest.raises(BadData, match="none of its images can be read"):
        windows_of(f"images:{tmp_path / 'a'}", vit)


def test_images_are_opened_as_the_model_needs_them(tmp_path: Path) -> None:
    turned = Image.new("LA", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned.save(tmp_path / "b.png", exif=exif)
    image = open_image(tmp_path / "b.png", 3)
    assert image is not None
    assert (image.size, image.mode) == ((2, 4), "RGB")
    grey = open_image((tmp_path / "b.png").read_bytes(), 1)
    assert grey is not None
    assert grey.mode == "L"
    assert find_images(tmp_path) == [tmp_path / "b.png"]


def test_a_dataset_of_images(vit: tuple[Checkpoint, ModelKind], tmp_path: Path) -> None:
    save_images(tmp_path / "a" / "train" / "cat", 3)
    save_images(tmp_path / "a" / "train" / "dog", 3)
    found = windows_of(f"hf:{tmp_path / 'a'}", vit)
    assert (found.record["column"], found.record["samples"]) == ("image", 4)
    path = save_rows(tmp_path / "a.jsonl")
    with pytest.raises(BadData, match="column 'text' holds no images"):
        windows_of(f"hf:{path}:::text", vit)


@pytest.mark.parametrize("dataset", ["org/name", "local"])
def test_a_row_cannot_name_a_file_of_the_users_or_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    (own,) = save_images(tmp_path / "own", 1)
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.write(own, "a.png")
    inside = own.read_bytes()
    addresses = [f"file://{own}", f"zip://a.png::file://{tmp_path}/own.zip", f"local://{own}",
                 "http://127.0.0.1:9/a.png", f"simplecache::file://{own}", f"hf://::file://{own}",
                 "github://org:name@/a.png"]  # fmt: skip
    paths = [str(own), f"zip://a.png::{tmp_path}/own.zip"]  # what a local dataset's rows hold
    image = datasets.Features({"image": datasets.Image(decode=False)})
    values: list[Any] = [{"path": path, "bytes": None} for path in (*addresses, *paths)]
    values += [None, {"path": f"file://{own}", "bytes": inside}]
    rows = datasets.Dataset.from_dict({"image": values}, image).to_iterable_dataset()
    source = parse_source(f"hf:{dataset}", "--calibration")
    assert bool(source.local_dataset) == (dataset == "local")
    found = list(read_images(Rows(rows, ("image",), "image", "train", None), source))
    local = inside if source.local_dataset else b""
    assert found == [b""] * len(addresses) + [local] * 2 + [inside]
    for value, expected in zip([v for v in values if v], found, strict=True):
        one = datasets.Dataset.from_dict({"image": [value]}, image).to_iterable_dataset()
        if expected:
            assert list(table_rows(one, source, "train")) == [{"image": expected}]
        else:
            with pytest.raises(BadData, match="a row has no image"):
                list(table_rows(one, source, "train"))


def test_sources_that_are_not_for_the_model(
    vit: tuple[Checkpoint, ModelKind], text_model: tuple[Checkpoint, ModelKind], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.csv").write_text("a b,c d")
    for source in ("demo", f"text:{tmp_path}/a.txt", f"pairs:{tmp_path}/a.csv"):
        with pytest.raises(InvalidOption, match="which reads images"):
            windows_of(source, vit)
    with pytest.raises(InvalidOption, match="which reads text"):
        windows_of(f"images:{tmp_path}", text_model)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BadData, match="holds no images"):
        windows_of(f"images:{tmp_path}", vit)
