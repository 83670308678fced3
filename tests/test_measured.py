"""Results of bench beside an output: in the card and on the Hub if they are about its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from hubserver import WRITER, Hub, Worker

import prunectl
from prunectl.output.card import END, SECTION
from prunectl.output.manifest import read_manifest
from prunectl.output.measured import ResultFile, results_in, weights_of

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    tiny_models.build("bert", tmp_path / "source")
    settings = prunectl.PruneSettings(sparsity=0.5, pattern=prunectl.parse_pattern("unstructured"))
    prunectl.prune(prunectl.open_checkpoint(tmp_path / "source"), tmp_path / "out", settings)
    return tmp_path / "out"


def result_of(folder: Path) -> dict[str, Any]:
    """What ``prunectl bench FOLDER --against dense -o FILE`` writes, without what is not read."""
    weights = weights_of(folder, read_manifest(folder))
    zeros = {"matrices": 4, "weights": 2 * weights.zeros, "zeros": weights.zeros, "follow_2_4": 0}
    run = {
        "side": "dense", "workload": "batch 1, 128 tokens", "phase": "forward",
        "seconds": {"median": 0.0366}, "against": None,
    }  # fmt: skip
    side = {"label": "dense", "dtype": "float32", "disk_bytes": weights.stored_bytes}
    return {
        "schema": "prunectl.bench/1",
        "machine": {
            "device": "cpu", "name": "A CPU", "threads": 2,
            "versions": {"prunectl": "0.1", "torch": "2.13", "transformers": "5.0"},
        },
        "sides": [
            side | {"zeros": zeros | {"zeros": 0}}, side | {"label": "out", "zeros": zeros}
        ],
        "runs": [run, run | {"side": "out", "seconds": {"median": 1.5},
                             "verdict": "no difference found",
                             "against": {"ratio": 1.0123, "low": 0.99, "high": 1.031}}],
        "ok": True,
    }  # fmt: skip


def save(folder: Path, document: object, name: str = "bench.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder / name


def test_a_result_is_published_and_shown_and_goes_with_its_weights(
    hub: Hub, pusher: Worker, out: Path, tmp_path: Path
) -> None:
    file = save(out, result_of(out))
    assert prunectl.verify(out).ok
    pushed = pusher.push(out, "org/measured", WRITER)
    assert "bench.json" in pushed["uploaded"]
    assert hub.files("org/measured")["bench.json"] == file.read_bytes()
    card = hub.files("org/measured")["README.md"].decode()
    section = SECTION.search(card)
    assert section is not None
    lines = section[0].splitlines()
    assert lines[-1] == END
    times = "| 1.5 s | 1.01x | 0.99x to 1.03x | `no difference found` |"
    assert f"| `out` | `batch 1, 128 tokens` | `forward` {times}" in lines
    assert "| `dense` | `batch 1, 128 tokens` | `forward` | 36.6 ms | baseline |  |  |" in lines
    assert "measured on `cpu` (`A CPU`, 2 threads), dtype `float32`" in section[0]
    assert "bench.json" not in (out / "README.md").read_text()
    assert not pusher.push(out, "org/measured", WRITER)["changed"]
    # Without it, the card no longer speaks of it, and it does not stay beside other weights.
    hub.put("org/measured", {"bench-theirs.json": b"{}"})
    file.unlink()
    assert pusher.push(out, "org/measured", WRITER)["deleted"] == ["bench.json"]
    files = hub.files("org/measured")
    assert "bench-theirs.json" in files
    assert b"measured on" not in files["README.md"]


def test_a_result_of_other_weights_is_neither_published_nor_shown(
    hub: Hub, pusher: Worker, out: Path
) -> None:
    other = result_of(out)
    other["sides"][1]["zeros"]["zeros"] //= 2
    save(out, other)
    pushed = pusher.push(out, "org/other", WRITER)
    assert any("bench.json measures other weights" in note for note in pushed["notes"])
    assert "bench.json" not in hub.files("org/other")
    assert b"measured on" not in hub.files("org/other")["README.md"]


def test_a_result_that_came_with_the_source_is_a_side_file(out: Path, tmp_path: Path) -> None:
    save(out, result_of(out))
    small, source = tmp_path / "small", tmp_path / "source"
    prunectl.export(prunectl.open_checkpoint(out), small, "packed")
    assert results_in(small, read_manifest(small).files) == {}
    assert prunectl.verify(small, source=source).differences == ()
    # One of its own may take the same name.
    save(small, result_of(small))
    assert isinstance(results_in(small, read_manifest(small).files)["bench.json"], ResultFile)
    assert prunectl.verify(small, source=source).differences == ()
    # And one that the source got later is not missed.
    save(source, result_of(out), "bench-2.json")
    assert prunectl.verify(small, source=source).differences == ()


def _set(path: str, value: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        *keys, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
        inner: Any = document
        for key in keys:
            inner = inner[key]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_set("schema", "prunectl.bench/99"), "is not known"),
        (_set("schema", 1), "schema is not a string"),
        (_set("runs", {}), "runs is not a list"),
        (_set("runs.0", 3), "is not an object"),
        (_set("runs.0.seconds.median", "NaN"), "median is not a number"),
        (_set("runs.1.against.low", True), "low is not a number"),
        (_set("machine.threads", -1), "threads is not a whole number"),
        (_set("sides.0.zeros", None), "is not an object"),
        (_set("ok", "yes"), "ok is not true or false"),
    ],
)
def test_what_is_no_result_is_a_stray_file(out: Path, change: Change, why: str) -> None:
    document = result_of(out)
    change(document)
    save(out, document)
    (difference,) = prunectl.verify(out, source=None).differences
    assert difference.where == "bench.json"
    assert difference.detail.startswith("is not in the manifest, nor a readable result: ")
    assert why in difference.detail


@pytest.mark.parametrize("data", [b"", b"[", b"[" * 100_000, b"\xff", b"1", b"{}"])
def test_what_is_no_json_is_a_stray_file(out: Path, data: bytes) -> None:
    (out / "sweep-1.json").write_bytes(data)
    assert [d.where for d in prunectl.verify(out, source=None).differences] == ["sweep-1.json"]


def test_links_and_other_names_are_no_results(out: Path, tmp_path: Path) -> None:
    save(tmp_path, result_of(out))
    (out / "bench.json").symlink_to(tmp_path / "bench.json")
    for name in ("benchmark.json", "my-bench.json"):
        save(out, result_of(out), name)
    found = {d.where for d in prunectl.verify(out, source=None).differences}
    assert found == {"bench.json", "benchmark.json", "my-bench.json"}


def test_text_in_a_result_does_nothing(out: Path) -> None:
    evil = f"a|b\n\n{END}\n<img src=x onerror=y> `](http://x) \x1b[31m $$x$$" + "y" * 500
    document = result_of(out)
    document["runs"][1] |= {"side": evil, "workload": evil, "phase": evil}
    document["machine"] |= {"name": evil, "device": evil}
    save(out, document)
    result = results_in(out, ())["bench.json"]
    assert isinstance(result, ResultFile)
    row = result.lines[-1]
    # Each cell is one span of code, in which nothing has a meaning but the bars of the table.
    assert all("\n" not in line and "\x1b" not in line for line in result.lines)
    assert END not in "\n".join(result.lines)
    assert row.replace("\\|", "").count("|") == 8
    assert len(row) < 400
    first = row.split(" | ")[0].removeprefix("| ")
    assert first.startswith("`` a\\|b")
    assert first.endswith("\u2026 ``")


def evaluation_of(folder: Path) -> dict[str, Any]:
    """What ``prunectl evaluate FOLDER -o FILE`` writes, without what is not read."""
    weights = weights_of(folder, read_manifest(folder))
    return {
        "schema": "prunectl.evaluate/1", "metric": "similarity", "higher_is_better": True,
        "score": 0.81234, "interval": {"low": 0.78, "high": 0.84}, "samples": 1379,
        "unit": "pairs", "device": "cpu", "dtype": "float32", "zeros": weights.zeros,
        "weights": 2 * weights.zeros, "disk_bytes": weights.stored_bytes,
    }  # fmt: skip


def test_a_score_is_shown_if_it_is_of_these_weights(out: Path) -> None:
    save(out, evaluation_of(out), "evaluate.json")
    other = evaluation_of(out) | {"zeros": 0}
    save(out, other, "evaluate-other.json")
    found = results_in(out, read_manifest(out).files)
    own, foreign = found["evaluate.json"], found["evaluate-other.json"]
    assert isinstance(own, ResultFile)
    assert isinstance(foreign, ResultFile)
    weights = weights_of(out, read_manifest(out))
    assert own.is_about(weights)
    assert not foreign.is_about(weights)
    assert "**0.8123** (95% interval 0.78 to 0.84), higher is better, on 1,379" in own.lines[0]


def test_a_sweep_is_shown_a_line_a_curve(out: Path) -> None:
    essential = {"sparsity": 0.26, "status": "found", "text": "26% is within | <b>"}
    document = {
        "schema": "prunectl.sweep/1",
        "metric": {"name": "perplexity", "samples": 107},
        "settings": {"epsilon": 0.01, "epsilon_mode": "relative"},
        "curves": [
            {"label": "demo, unstructured", "essential": essential},
            {"label": "demo, 2:4", "essential": essential | {"sparsity": None, "status": "none"}},
        ],
    }
    save(out, document, "sweep.json")
    found = results_in(out, read_manifest(out).files)["sweep.json"]
    assert isinstance(found, ResultFile)
    rows = [line for line in found.lines if line.startswith("| `demo")]
    assert rows[0] == "| `demo, unstructured` | 26.0% | `found` | `26% is within \\| <b>` |"
    assert rows[1].startswith("| `demo, 2:4` | none |")
    assert found.is_about(weights_of(out, read_manifest(out)))


@pytest.mark.parametrize(
    "change", [{"score": "NaN"}, {"interval": {"low": 1}}, {"samples": -1}, {"zeros": None}]
)
def test_a_damaged_score_is_named(out: Path, change: dict[str, Any]) -> None:
    save(out, evaluation_of(out) | change, "evaluate.json")
    assert isinstance(results_in(out, read_manifest(out).files)["evaluate.json"], str)
