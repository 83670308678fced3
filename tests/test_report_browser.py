"""Reports in a real browser: drawn, without a complaint or a request, and alive under a pointer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import report_documents
import study_documents
import tiny_models

import prunectl
from prunectl.analysis.result import Analysis
from prunectl.report.analyze_page import analyze_page
from prunectl.report.sweep_data import percent
from prunectl.report.sweep_page import sweep_page

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

WIDE, NARROW = 1400, 400

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.full,
]


@dataclass
class Looked:
    """A page as a browser shows it.

    Attributes:
        page: playwright's. said: what came to the console, errors of scripts and dialogs.
        requests: all addresses that were asked for.
    """

    page: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def drawn(self) -> None:
        """Wait until all charts are there."""
        self.page.wait_for_function("document.documentElement.dataset.drawn", timeout=300_000)

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.page.locator(selector).all_text_contents()]

    def becomes(self, get: Callable[[], Any], want: Any) -> None:
        """Charts are drawn a moment after they are asked for."""
        for _ in range(4000):
            if get() == want:
                return
            self.page.wait_for_timeout(30)
        assert get() == want

    def tooltip(self, mark: Any) -> str:
        """What is said where the pointer is on a mark."""
        mark.scroll_into_view_if_needed()
        box = mark.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x - 2, y)
        self.page.mouse.move(x, y)
        tip = self.page.locator("#vg-tooltip-element.visible")
        tip.wait_for(state="visible", timeout=120_000)
        return str(tip.inner_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # Its own process keeps what it is told of the world: no proxy, no user's folders.
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Of the embedded model."""
    return prunectl.analyze("demo", patterns=["2:4", "4:8"], use_cache=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, analysis: Analysis) -> Path:
    """All pages that are looked at."""
    folder = tmp_path_factory.mktemp("pages")
    documents = report_documents.EVERY | {"hostile": report_documents.hostile}
    for name, document in documents.items():
        (folder / f"{name}.html").write_text(sweep_page(document()), encoding="utf-8")
    page = analyze_page(analysis, "prunectl analyze demo")
    (folder / "analysis.html").write_text(page, encoding="utf-8")
    tiny_models.build("t5", folder / "t5")
    stacks = analyze_page(prunectl.analyze(folder / "t5", use_cache=False))
    (folder / "stacks.html").write_text(stacks, encoding="utf-8")
    for name, (make, document) in study_documents.documents(folder / "studies").items():
        (folder / f"{name}.html").write_text(make(document), encoding="utf-8")
    return folder


@pytest.fixture
def look(browser: Any, folder: Path) -> Iterator[Callable[..., Looked]]:
    """A function that opens a page, by name."""
    contexts = []

    def open_it(name: str, width: int = WIDE, scheme: str = "light") -> Looked:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(120_000)
        looked = Looked(context.new_page())
        looked.page.on("console", lambda message: looked.said.append(message.text))
        looked.page.on("pageerror", lambda error: looked.said.append(str(error)))
        looked.page.on("dialog", lambda dialog: looked.said.append(dialog.message))
        looked.page.on("request", lambda request: looked.requests.append(request.url))
        looked.page.goto((folder / f"{name}.html").as_uri())
        looked.drawn()
        return looked

    yield open_it
    for context in contexts:
        context.close()


# --- every page -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
@pytest.mark.parametrize(
    "name",
    [*report_documents.EVERY, "hostile", "analysis", "stacks", *study_documents.NAMES],
)
def test_every_page_is_drawn_quietly(
    look: Callable[..., Looked], name: str, width: int, scheme: str
) -> None:
    looked = look(name, width, scheme)
    assert looked.said == []
    assert len(looked.requests) == 1
    assert looked.requests[0].startswith("file:")
    assert looked.count("figure svg.marks") == looked.count("figure")
    assert looked.page.evaluate("document.documentElement.scrollWidth") <= width
    background = looked.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 50) == (scheme == "dark")
    for chart in looked.page.locator("figure .chart").all():
        assert chart.bounding_box()["width"] > 0.8 * chart.evaluate("e => e.parentNode.clientWidth")


HIDDEN = """() => [...document.querySelectorAll("figure svg.marks")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const seen = [...svg.querySelectorAll("text")].filter(
    (text) => text.textContent.trim() && text.getAttribute("opacity") !== "0");
  const boxes = seen.map((text) => [text.textContent, text.getBoundingClientRect()]);
  const cut = boxes.filter(([_, box]) => box.top < frame.top - 1 || box.bottom > frame.bottom + 1
    || box.left < frame.left - 1 || box.right > frame.right + 1);
  const over = boxes.filter(([_, a], i) => boxes.slice(0, i).some(([_, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3));
  return [...cut, ...over].map(([text]) => text);
})"""
"""The texts of charts that are outside of their chart, or on another text."""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["many", "analysis", "stacks", *study_documents.NAMES])
def test_no_text_of_a_chart_is_cut_or_covered(
    look: Callable[..., Looked], name: str, width: int
) -> None:
    looked = look(name, width)
    assert looked.page.evaluate(HIDDEN) == []
    looked.page.set_viewport_size({"width": width + 20, "height": 900})
    looked.becomes(lambda: looked.page.evaluate(HIDDEN), [])


@pytest.mark.parametrize("name", study_documents.NAMES)
def test_every_choice_is_drawn_quietly(look: Callable[..., Looked], name: str) -> None:
    looked = look(name)
    for option in looked.page.locator("figure label").all():
        option.click()
        looked.page.wait_for_timeout(150)
    looked.becomes(lambda: looked.count("figure svg.marks"), looked.count("figure"))
    assert looked.count("figure path[aria-roledescription='point']") >= 2
    assert looked.said == []


def test_a_request_would_be_seen(look: Callable[..., Looked]) -> None:
    looked = look("real")
    looked.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    # The policy stops it before it leaves, and says so.
    looked.becomes(lambda: any("Content Security Policy" in text for text in looked.said), True)
    assert len(looked.requests) == 1 or looked.requests[1].startswith("http://127.0.0.1")
    looked.said.clear()
    looked.page.evaluate("console.error('seen')")
    assert looked.said == ["seen"]


def test_hostile_texts_do_nothing(look: Callable[..., Looked]) -> None:
    looked = look("hostile")
    assert looked.page.evaluate("typeof window.hacked") == "undefined"
    assert looked.count("img") == 0
    assert looked.count("script") == 3
    point = looked.page.locator("figure").first.locator("path[aria-roledescription='point']").nth(3)
    assert "</script><script>window.hacked = 1" in looked.tooltip(point)
    assert looked.count("#vg-tooltip-element img, #vg-tooltip-element script") == 0
    looked.page.locator(".legend button").first.click()
    assert looked.page.evaluate("typeof window.hacked") == "undefined"
    assert looked.said == []


# --- a sweep ------------------------------------------------------------------------------------


def test_a_sweep_shows_every_point_and_mark(look: Callable[..., Looked]) -> None:
    document = report_documents.real()
    looked = look("real")
    scores = looked.page.locator("figure").first
    points = sum(len(curve["points"]) for curve in document["curves"])
    marks = scores.locator("path[aria-roledescription='point']")
    assert marks.count() == points + 2  # and the essential sparsity, and the knee
    assert scores.locator("path[aria-roledescription='line mark']").count() == 2
    assert scores.locator("path[aria-roledescription='area mark']").count() == 2
    assert "dense 26.83" in scores.locator("svg.marks").text_content()
    losses = looked.page.locator("figure").nth(1).locator("svg.marks").text_content()
    assert "tolerance 1%" in losses
    assert looked.texts(".card b") == ["26%", "none"]


def test_a_point_says_what_it_is(look: Callable[..., Looked]) -> None:
    point = report_documents.real()["curves"][0]["points"][-1]
    looked = look("real")
    marks = looked.page.locator("figure").first.locator("path[aria-roledescription='point']")
    said = looked.tooltip(marks.nth(12))
    assert "demo, unstructured" in said
    assert percent(point["sparsity"]) in said
    assert f"{point['score']:.2f}" in said
    assert f"{point['low']:.2f} to {point['high']:.2f}" in said
    assert f"{point['change']:+.2%}" in said
    diamond = looked.tooltip(marks.nth(marks.count() - 2))
    assert "essential sparsity" in diamond
    assert "24% to 30%" in diamond


def test_scales_can_be_chosen(look: Callable[..., Looked]) -> None:
    looked = look("two points")
    figure = looked.page.locator("figure").first

    def axis() -> set[str]:
        return set(figure.locator("g.role-axis-label").last.locator("text").all_text_contents())

    for name, label in (("Linear", "30,000,000"), ("Near dense", "28"), ("Log", "10,000,000")):
        figure.get_by_label(name, exact=True).check()
        looked.becomes(lambda label=label: label in axis(), True)
    assert "30,000,000" not in axis()
    assert looked.said == []


def test_curves_can_be_seen_alone(look: Callable[..., Looked]) -> None:
    looked = look("real")

    def opacities() -> list[float]:
        lines = looked.page.locator("path[aria-roledescription='line mark']").all()
        return [float(line.get_attribute("stroke-opacity") or 1) for line in lines]

    assert opacities() == [1, 1, 1, 1]
    button = looked.page.get_by_role("button", name="demo, 2:4")
    button.click()
    looked.becomes(opacities, [0.125, 1, 0.125, 1])  # in both charts
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    looked.becomes(opacities, [1, 1, 1, 1])


def test_a_page_follows_the_system_into_the_dark(look: Callable[..., Looked]) -> None:
    looked = look("real")

    def colour() -> str | None:
        line = looked.page.locator("path[aria-roledescription='line mark']").first
        return str(line.get_attribute("stroke"))

    looked.page.get_by_role("button", name="demo, 2:4").click()
    light = colour()
    looked.page.emulate_media(color_scheme="dark")
    looked.page.wait_for_function(
        "old => document.querySelector(\"path[aria-roledescription='line mark']\")"
        "?.getAttribute('stroke') !== old",
        arg=light,
    )
    assert colour() != light
    line = looked.page.locator("path[aria-roledescription='line mark']").first
    assert line.get_attribute("stroke-opacity") == "0.125"  # what was chosen stays
    assert looked.said == []


# --- an analysis --------------------------------------------------------------------------------


def test_the_slider_moves_the_heat_map(look: Callable[..., Looked], analysis: Analysis) -> None:
    looked = look("analysis")
    heat = looked.page.locator("figure").nth(1)
    slider = looked.page.get_by_label("Sparsity", exact=True)
    cells = sorted(analysis.cuts.cells, key=lambda cell: cell.layer or 0)

    def shown() -> list[str]:
        return list(heat.locator("g.mark-text.layer_1_marks text").all_text_contents())

    assert heat.locator("g.layer_0_marks path").count() == len(cells) == 42
    colours = set()
    for at in (30, 70, 0):
        slider.fill(str(at))
        looked.becomes(shown, [f"{cell.zeros[at] / cell.weights:.0%}" for cell in cells])
        share = analysis.cuts.zeros[at] / analysis.source.prunable_weights
        assert looked.texts(".slider output")[0].startswith(f"{share:.2%} of the prunable")
        tiles = heat.locator("g.layer_0_marks path").all()
        colours.add(tuple(tile.get_attribute("fill") for tile in tiles))
    assert len(colours) == 3
    slider.focus()
    looked.page.keyboard.press("ArrowRight")
    assert looked.texts(".slider output")[0].startswith("1.00% of the prunable")
    said = looked.tooltip(heat.locator("g.layer_0_marks path").first)
    assert f"{cells[0].weights:,}" in said
    assert cells[0].component in said
    assert looked.said == []


def test_histograms_can_be_grouped(look: Callable[..., Looked], analysis: Analysis) -> None:
    looked = look("analysis")
    figure = looked.page.locator("figure").first
    lines = figure.locator("path[aria-roledescription='line mark']")
    found = analysis.magnitudes
    for name, group in (("By role", found.roles), ("By matrix", found.components),
                        ("By layer", found.layers)):  # fmt: skip
        for scale in ("Log", "Linear"):
            figure.get_by_label(name, exact=True).check()
            figure.get_by_label(scale, exact=True).check()
            looked.becomes(lines.count, len(group))
    point = figure.locator("path[aria-roledescription='point']").nth(25)
    said = looked.tooltip(point)
    assert "model.layers.0" in said
    assert "share of all" in said
    assert "undefined" not in said


def test_patterns_can_be_chosen(look: Callable[..., Looked], analysis: Analysis) -> None:
    looked = look("analysis")
    figure = looked.page.locator("figure").nth(3)
    points = figure.locator("path[aria-roledescription='point']")
    for pattern in ("4:8", "2:4"):
        figure.get_by_label(pattern, exact=True).check()
        looked.becomes(points.count, 42)
    said = looked.tooltip(points.first)
    name = next(t.name for t in analysis.tensors if t.name in said)
    tensor = next(t for t in analysis.tensors if t.name == name)
    kept = tensor.patterns["2:4"].norm_kept
    assert kept is not None
    assert f"{1 - kept:.2%}" in said


def test_tables_hold_the_numbers_without_scripts(browser: Any, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "real.html").as_uri())
    assert "need JavaScript" in page.locator("noscript").inner_text()
    assert page.locator("tbody tr").count() == 13 + 10
    context.close()


@pytest.mark.slow
def test_the_pictures_of_the_documentation_can_be_made(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "make_page_screens.py", "--folder", tmp_path]
    subprocess.run([*command, "--browser", str(CHROMIUM)], check=True)
    stored = {path.name for path in (ROOT / "docs" / "images").glob("page-*.png")}
    assert {path.name for path in tmp_path.iterdir()} == stored
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
