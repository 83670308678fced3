"""Reports as text and bytes: what is in them, that nothing in them runs, and what they refuse."""

from __future__ import annotations

import json
import re
import struct
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_documents
import tiny_models
import torch
from full import few
from report_documents import HOSTILE
from safetensors.torch import load_file

import prunectl
from prunectl import numbers
from prunectl.analysis.distribution import kind_of
from prunectl.analysis.result import Analysis
from prunectl.errors import MissingLibrary
from prunectl.report import analyze_charts, page, sweep_data
from prunectl.report.analyze_charts import (
    BY_LAYER,
    BY_MATRIX,
    BY_ROLE,
    heat_map,
    histograms,
    loss_rows,
    matrix_names,
    norm_curve,
)
from prunectl.report.analyze_page import analyze_page
from prunectl.report.charts import LINEAR, LOG, chart_version, check_libraries, finished, load
from prunectl.report.sweep_charts import SweepCharts
from prunectl.report.sweep_page import sweep_page, sweep_picture

Typed = Callable[..., tuple[int, str, str]]


class Read(HTMLParser):
    """The elements of a page, the texts of its scripts and cells, and all text that is seen."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.seen = ""
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "style" not in self._inside:
            self.seen += data
            if "td" in self._inside or "th" in self._inside:
                self.rows[-1][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.scripts[0])
        return document


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, dict[str, np.ndarray]]:
    """An encoder-decoder in fp32, which has two stacks, and its weights."""
    folder = tmp_path_factory.mktemp("models") / "t5"
    tiny_models.build("t5", folder, torch.float32)
    weights = {n: t.double().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    return prunectl.analyze(folder, patterns=["2:4", "1:4"], use_cache=False), weights


def compiled(spec: dict[str, Any], *, strict: bool = False) -> dict[str, Any]:
    """What Vega-Lite makes of a chart; raises if it is none, or with ``strict`` not to the letter.

    That is checked against the schema, which takes long.
    """
    if strict:
        load("altair").Chart.from_dict(spec)
    vega: dict[str, Any] = load("vl_convert").vegalite_to_vega(spec, vl_version=chart_version())
    return vega


# --- sweeps: rows and scales -------------------------------------------------------------------


def test_height_is_linear_between_points() -> None:
    rng = np.random.default_rng(1)
    x, y = np.sort(rng.random(9)), rng.random(9)
    points = [{"sparsity": a, "score": b} for a, b in zip(x, y, strict=True)]
    for place in rng.random(200):
        got = sweep_data.height(points, place, "score")
        if x[0] <= place <= x[-1]:
            assert got == pytest.approx(np.interp(place, x, y), abs=1e-12)
        else:
            assert got is None
    assert sweep_data.height(points[:1], x[0], "score") == y[0]
    assert sweep_data.height([{"sparsity": 0.1, "score": None}], 0.1, "score") is None


def test_rows_hold_the_documents_numbers() -> None:
    document = report_documents.accuracy()
    rows = list(sweep_data.point_rows(document))
    points = [point for curve in document["curves"] for point in curve["points"]]
    for key in ("sparsity", "score", "low", "high", "change"):
        assert [row[key] for row in rows] == [point[key] for point in points]
    assert [row["failed"] for row in rows if row["failed"]] == ["the loss became NaN"]
    dense = sweep_data.dense_rows(document)
    assert [(row["dense"], row["bound"]) for row in dense] == [(0.46, 0.45), (0.58, 0.57)]
    marks = list(sweep_data.mark_rows(report_documents.real()))
    assert [(m["kind"], round(m["sparsity"], 6)) for m in marks] == [
        ("essential sparsity", 0.26),
        ("knee", 0.5),
    ]


def test_labels_are_told_apart() -> None:
    curves = [{"label": "a"}, {"label": "a (2)"}, {"label": "a"}, {"label": "a"}]
    assert sweep_data.labels_of({"curves": curves}) == ["a", "a (2)", "a (3)", "a (4)"]


def test_numbers_in_words() -> None:
    assert [sweep_data.percent(x) for x in (0.26000001695, 0.305, 1e-9, None)] == [
        "26%", "30.5%", "0%", "",
    ]  # fmt: skip
    assert [sweep_data.score_text(x) for x in (26.8294, 0.5, 12345678.9, None)] == [
        "26.83", "0.5000", "12,345,679", "none",
    ]  # fmt: skip
    relative, absolute = sweep_data.Words(True), sweep_data.Words(False)
    assert [relative.loss(x) for x in (0.01, -0.0002, 31.5, None)] == [
        "+1.00%", "-0.02%", "+3,150%", "",
    ]  # fmt: skip
    assert absolute.loss(0.01) == "+0.0100"
    tree = {"a_b": {"c": {"d": 1}, "e": None}, "memory": 24 * 10**9, "joiner": "\n\n", "x": []}
    assert list(page.flat(tree)) == [
        ("a b, c", "d 1"),
        ("a b, e", "none"),
        ("memory", "24.0 GB"),
        ("joiner", '"\\n\\n"'),
        ("x", "none"),
    ]


def test_scales_that_are_offered() -> None:
    def points(*scores: float) -> list[dict[str, Any]]:
        return [{"score": score, "change": score / scores[0] - 1} for score in scores]

    dense = [{"dense": 20.0, "bound": 20.2}]
    explodes = sweep_data.score_scales(points(20, 21, 4e4), dense, higher_is_better=False)
    assert list(explodes) == ["Log", "Linear", "Near dense"]
    low, high = explodes["Log"]["domain"]
    assert 0 < low < 20
    assert high > 4e4
    low, high = explodes["Near dense"]["domain"]
    assert low < 20 < 20.2 < high < 22
    better = sweep_data.score_scales(
        points(0.9, 0.2), [{"dense": 0.9, "bound": 0.89}], higher_is_better=True
    )
    assert better["Near dense"]["domain"] == pytest.approx([0.82, 0.925])
    # Correlations may be negative: then there is no log scale.
    spearman = sweep_data.score_scales(points(0.8, -0.1), [], higher_is_better=True)
    assert list(spearman) == ["Linear"]
    assert sweep_data.score_scales([], [], higher_is_better=True) == {}

    losses = sweep_data.loss_ranges(points(20, 20.1, 4e4), 0.01)
    assert losses["Near the tolerance"][1] == pytest.approx(0.08)
    assert losses["All"][1] == pytest.approx(1999)
    assert list(sweep_data.loss_ranges(points(20, 20.1), 0.01)) == ["Near the tolerance"]
    assert list(sweep_data.loss_ranges(points(20, 20.1), 0.0)) == ["All"]


@pytest.mark.parametrize(
    ("name", "interactive"),
    few(
        [*((name, True) for name in report_documents.EVERY), ("real", False)],
        ("bare", True), ("real", False),
    ),
)  # fmt: skip
def test_charts_of_every_kind_of_sweep(name: str, interactive: bool) -> None:
    document = report_documents.EVERY[name]()
    charts = SweepCharts(document, interactive)
    kinds = [charts.scores(), charts.losses()]
    assert all(bool(found) == (name != "bare") for found in kinds)
    for found in kinds:
        for number, chart in enumerate(found.values()):
            # Of one kind they differ by a scale.
            strict = name == "accuracy" and not number
            vega = compiled(finished(chart, charts.datasets(), height=100), strict=strict)
            rows = next(d["values"] for d in vega["data"] if d["name"] == "points")
            assert len(rows) == sum(len(curve["points"]) for curve in document["curves"])


# --- sweeps: page and picture ------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_page() -> str:
    return sweep_page(report_documents.real())


@pytest.fixture(scope="module")
def accuracy_page() -> Read:
    return Read(sweep_page(report_documents.accuracy()))


def test_the_page_of_a_sweep_says_all_of_it(real_page: str) -> None:
    document = report_documents.real()
    assert sweep_page(document) == real_page, "made anew, it is the same"
    page = Read(real_page)
    for curve in document["curves"]:
        assert curve["essential"]["text"] in page.seen
        for point in curve["points"]:
            rows = [row for row in page.rows if row[0] == sweep_data.percent(point["sparsity"])]
            score = sweep_data.score_text(point["score"])
            assert any(row[2] == score for row in rows)
    for text in (document["command"], "26.83 (26.01 to 27.65)", "sequence length", "107 windows",
                 document["metric"]["record"]["blake3"], "torch 2.13.0", "25.3 GB"):  # fmt: skip
        assert text in page.seen
    command = [text for text in page.seen.split("\n") if text.startswith("prunectl prune")]
    assert command == ["prunectl prune demo --sparsity 0.26 -o out/ "]


def test_failed_points_seeds_and_parts_are_said(accuracy_page: Read) -> None:
    seen = accuracy_page.seen
    assert "org/second, unstructured: no score at 80%: the loss became NaN." in seen
    assert "seed 0: 0.4600, seed 1: 0.4600" in seen
    assert "stem" in seen


def test_nothing_is_fetched_and_only_our_scripts_may_run(real_page: str) -> None:
    page = Read(real_page)
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
    policy = next(
        a["content"] or ""
        for tag, a in page.elements
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert policy.count("sha256-") == len(page.scripts) - 1 == 2
    assert "@import" not in real_page


def test_texts_of_a_document_stay_texts(accuracy_page: Read) -> None:
    text = sweep_page(report_documents.hostile())
    clean, spoilt = accuracy_page, Read(text)
    # The parser sees the very same elements, and no attribute that only the hostile page has. Each
    # word of a command is a span, and hostile ones have more words.
    seen = [[tag for tag, _ in page.elements if tag != "span"] for page in (clean, spoilt)]
    assert seen[0] == seen[1]
    names = {name for _, attributes in clean.elements for name in attributes}
    assert {name for _, attributes in spoilt.elements for name in attributes} <= names
    assert spoilt.scripts[1:] == clean.scripts[1:]
    assert spoilt.seen.count("window.hacked = 1") > 30
    assert "{{ 7 * 7 }}" in spoilt.seen  # a template's words are not followed either
    assert "\\udcff" in spoilt.seen  # and the page can be saved
    text.encode()
    # What reaches Vega as an expression is ours alone.
    charts = json.dumps([s["figures"] for s in spoilt.data["sections"]])
    assert "window.hacked" not in "".join(re.findall(r'"(?:expr|test|filter)": "[^"]*"', charts))


def test_pictures() -> None:
    png = sweep_picture(report_documents.two_points(), "png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1640
    assert height > 1300
    assert len(png) > 30_000
    document = report_documents.accuracy()
    root = ET.fromstring(sweep_picture(document, "svg"))
    words = " ".join(text for element in root.iter() if (text := element.text))
    for label in ("org/first, unstructured", "org/second, 2:4", "essential sparsity", "dense"):
        assert label in words
    with pytest.raises(ValueError, match="not 'pdf'"):
        sweep_picture(document, "pdf")  # type: ignore[arg-type]


def test_texts_stay_texts_in_pictures_too() -> None:
    hostile = report_documents.hostile()
    root = ET.fromstring(sweep_picture(hostile, "svg"))  # raises if it is not well-formed
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not names & {"script", "img", "foreignObject", "a", "image"}
    assert not [name for e in root.iter() for name in e.attrib if name.lower().startswith("on")]


@pytest.mark.parametrize("name", few(["bare", "two points", "many"]))
def test_odd_sweeps_have_pages_and_pictures(name: str) -> None:
    document = report_documents.EVERY[name]()
    page = Read(sweep_page(document))
    assert ("interrupted" in page.seen) == (name == "bare")
    assert len([row for row in page.rows if row[0] == "sparsity"]) == len(document["curves"])
    root = ET.fromstring(sweep_picture(document, "svg"))
    words = " ".join(text for element in root.iter() if (text := element.text))
    assert "Essential sparsity of demo" in words


# --- analyses ------------------------------------------------------------------------------------


def test_histograms_count_the_weights(analyzed: tuple[Analysis, dict[str, np.ndarray]]) -> None:
    analysis, weights = analyzed
    charts = histograms(analysis)
    assert {group for group, _ in charts} == {BY_ROLE, BY_MATRIX, BY_LAYER}
    assert {scale for _, scale in charts} == {LINEAR, LOG}
    edges = np.array(analysis.magnitudes.edges)
    doubles = {numbers.real(e): (e, 2 * e) for e in edges[:-4]}
    for group, label_of in (
        (BY_ROLE, lambda t: t.role),
        (BY_MATRIX, lambda t: kind_of(t.component)),
        (BY_LAYER, lambda t: f"{t.stack}.{t.layer}"),
    ):
        values: dict[str, list[np.ndarray]] = {}
        for tensor in analysis.tensors:
            if tensor.prunable or group == BY_ROLE:
                values.setdefault(label_of(tensor), []).append(np.abs(weights[tensor.name]).ravel())
        rows = charts[group, LINEAR]["datasets"]["bins"]
        assert {row["label"] for row in rows} == set(values)
        for row in rows:
            own = np.concatenate(values[row["label"]])
            low, high = doubles[row["range"].split(" to ")[0]]
            inside = int(((own >= low) & (own < high)).sum())
            assert row["count"] == f"{inside:,}"
            assert row["share"] == pytest.approx(inside / own.size, rel=1e-5)
            assert row["below"] == numbers.share(int((own < low).sum()) / own.size)
    layers = [row["label"] for row in charts[BY_LAYER, LINEAR]["datasets"]["bins"]]
    assert list(dict.fromkeys(layers)) == [
        "decoder.block.0", "decoder.block.1", "decoder.block.2", "encoder.block.0",
        "encoder.block.1",
    ]  # fmt: skip


def test_layers_are_in_the_order_of_the_model(tmp_path: Path) -> None:
    from analysis_reference import stored, write

    values = np.random.default_rng(0).normal(0, 1, (8, 8))
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1, 10, 11, 2)]
    analysis = prunectl.analyze(write(tmp_path, {n: stored("F32", values) for n in names}))
    bins = histograms(analysis)[BY_LAYER, LOG]["datasets"]["bins"]
    assert [label.rpartition(".")[2] for label in dict.fromkeys(row["label"] for row in bins)] == [
        "0", "1", "2", "10", "11",
    ]  # fmt: skip


def test_all_charts_of_an_analysis_are_charts(
    analyzed: tuple[Analysis, dict[str, np.ndarray]],
) -> None:
    analysis, _ = analyzed
    charts = [
        *histograms(analysis).values(),
        *analyze_charts.pattern_losses(analysis).values(),
        heat_map(analysis.cuts),
        norm_curve(analysis.cuts, analysis.source.prunable_weights),
    ]
    assert len(charts) == 6 + 2 + 2
    for number, chart in enumerate(charts):
        compiled(chart, strict=number in (0, *range(6, 10)))  # one of each kind


def test_losses_are_those_of_each_tensor(
    analyzed: tuple[Analysis, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis, weights = analyzed

    def lost(values: np.ndarray) -> tuple[float, float]:
        groups = np.sort(np.abs(values).reshape(-1, 4), axis=1)
        return (groups[:, :2] ** 2).sum(), (values**2).sum()

    want = {t.name: lost(weights[t.name]) for t in analysis.tensors if t.prunable}
    rows = loss_rows(analysis.tensors, "2:4")
    assert {row["name"]: row["lost"] for row in rows} == pytest.approx(
        {name: part / whole for name, (part, whole) in want.items()}, rel=1e-5
    )
    # Too many tensors for the page: those of a cell are one point, weighted by their norms.
    monkeypatch.setattr(analyze_charts, "MANY", 5)
    monkeypatch.setattr(analyze_charts, "kind_of", lambda component: "all")
    for row in loss_rows(analysis.tensors, "2:4"):
        stack = {"encoder: all": "encoder.block", "decoder: all": "decoder.block"}[row["matrix"]]
        members = [
            want[t.name]
            for t in analysis.tensors
            if t.prunable and (t.stack, t.layer) == (stack, row["layer"])
        ]
        assert row["name"] == f"{len(members)} tensors of layer {row['layer']}"
        sums = np.sum(members, axis=0)
        assert row["lost"] == pytest.approx(sums[0] / sums[1], rel=1e-5)


def test_matrices_have_short_names_that_differ() -> None:
    assert matrix_names([("layers", "mlp.up"), ("layers", "mlp.experts.*.up")]) == {
        ("layers", "mlp.up"): "mlp.up",
        ("layers", "mlp.experts.*.up"): "mlp.experts.*.up",
    }
    two = matrix_names([("encoder.block", "layer.*.q"), ("decoder.block", "layer.*.q")])
    assert list(two.values()) == ["encoder: q", "decoder: q"]
    same = matrix_names([("model.a", "q"), ("model.b", "q")])
    assert list(same.values()) == ["model.a: q", "model.b: q"]
    clash = matrix_names([("a", "layer.*.q"), ("a", "part.*.q")])
    assert list(clash.values()) == ["layer.*.q", "part.*.q"]


def test_the_page_of_an_analysis_says_all_of_it(
    analyzed: tuple[Analysis, dict[str, np.ndarray]],
) -> None:
    analysis, _ = analyzed
    page = Read(analyze_page(analysis, "prunectl analyze t5 --html out.html"))
    for text in (analysis.advice, "prunectl analyze t5 --html out.html",
                 "T5ForConditionalGeneration", "Weights of t5"):  # fmt: skip
        assert text in page.seen
    by_name = {row[0]: row for row in page.rows}
    for tensor in analysis.tensors:
        assert by_name[tensor.name][3] == "x".join(map(str, tensor.shape))
    for row in analysis.thresholds:
        assert by_name[f"{row.sparsity:.0%}"][2] == f"{row.count:,}"
    assert by_name["2:4"][2] == numbers.share(analysis.patterns[0].norm_kept, 2)
    dense = by_name["dense (zeros stored like any weight)"]
    assert dense[1:] == [numbers.size(analysis.predicted_bytes["dense"]), "100.0%"]
    slider = next(s["slider"] for s in page.data["sections"] if s["slider"])
    shares = [numbers.share(z / analysis.source.prunable_weights, 2) for z in analysis.cuts.zeros]
    assert [text.split(" ")[0] for text in slider["texts"]] == shares


def test_texts_of_a_checkpoint_stay_texts(tmp_path: Path) -> None:
    from analysis_reference import stored, write

    name = f"model.layers.0.{HOSTILE.replace('.', ' ')}.up_proj.weight"
    values = np.random.default_rng(0).normal(0, 1, (8, 8))
    folder = write(tmp_path / "a<b", {name: stored("F32", values)})
    analysis = prunectl.analyze(folder, use_cache=False)
    page = Read(analyze_page(analysis, f"prunectl analyze {HOSTILE}"))
    assert "window.hacked = 1" in page.seen  # of the command
    assert "window hacked = 1" in page.seen  # of the tensor
    assert "Weights of a<b" in page.seen
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert len(page.scripts) == 3


@pytest.mark.parametrize(
    "values", few([[[float("inf")] * 4] * 4, [[0.0] * 4] * 4, [[1.0] * 4] * 4])
)
def test_analyses_without_much_to_draw_have_pages(tmp_path: Path, values: Any) -> None:
    from analysis_reference import stored, write

    linear = {"model.layers.0.mlp.up_proj.weight": stored("F32", values)}
    norm = {"norm.weight": stored("F32", [1.0, float("nan")])}
    for i, tensors in enumerate((linear, norm, linear | norm)):
        folder = write(tmp_path / str(i), tensors)
        page = Read(analyze_page(prunectl.analyze(folder, patterns=())))
        for section in page.data["sections"]:
            for figure in section["figures"]:
                for chart in figure.values():
                    rows = {name: page.data["tables"][i] for name, i in chart["datasets"].items()}
                    compiled(chart | {"datasets": rows})


# --- the command line, and what is not installed ------------------------------------------------


def test_html_goes_with_json_and_output(typed: Typed, tmp_path: Path) -> None:
    argv = ["analyze", "demo", "--json", "-o", "a.json", "--html", "a.html", "-p", "none"]
    code, out, err = typed(*argv)
    assert (code, err) == (0, "saved: a.json\nsaved: a.html\n")
    assert (tmp_path / "a.json").read_text() == out
    page = Read((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "prunectl analyze demo --json -o a.json --html a.html -p none" in page.seen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json"]
    # The command names the model also where it was left out.
    code, out, err = typed("analyze", "--html", "b.html", "-q")
    assert (code, out) == (0, "")
    assert "prunectl analyze demo --html b.html -q" in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ("analyze demo --html none/a.html", 1, "none/a.html: cannot write: there is no folder"),
        ("analyze demo --html .", 1, "it is a folder"),
        ("analyze demo --html a.json -o a.json", 2, "is given for two files"),
        ("analyze demo --html ./a.json -o x/../a.json", 1, "no folder x"),
        ("analyze demo --html a -o ../WD/a", 2, "is given for two files"),
        ("analyze org/name --remote --html a.html", 2, "--html shows what is measured on the w"),
    ],
)
def test_files_that_cannot_be_are_refused_first(
    typed: Typed, tmp_path: Path, argv: str, code: int, words: str
) -> None:
    found, out, err = typed(*argv.replace("WD", Path.cwd().name).split())
    assert (found, out) == (code, "")
    assert words in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "package"),
    [("altair", "altair"), ("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")],
)
def test_a_missing_library_is_named(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    code, out, err = typed("analyze", "demo", "--html", "a.html")
    assert (code, out) == (1, "")
    assert f"--html needs the library '{package}'" in err
    assert "pip install 'prunectl[report]'" in err
    with pytest.raises(MissingLibrary):
        check_libraries("a picture")
    with pytest.raises(MissingLibrary):
        load(module)
    assert list(tmp_path.iterdir()) == []
