"""Pages of comparisons, lotteries and traces: all numbers are there, and texts are only texts.

``test_report_browser`` looks at them in a real browser."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import reference
import study_documents
import tiny_models
import torch
from full import few
from study_documents import NAMES, Documents

from prunectl import CompareSettings, compare, trace
from prunectl.report.charts import Line, lines_chart
from prunectl.report.compare_page import compare_page
from prunectl.report.trace_page import trace_page

HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}\u202e"


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    return study_documents.documents(tmp_path_factory.mktemp("models"))


class Elements(HTMLParser):
    """Names of a page's elements, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


@pytest.mark.parametrize("name", few(NAMES, "trace", "lottery"))
def test_texts_of_a_document_are_only_texts(documents: Documents, name: str) -> None:
    """The same elements, whatever names of models, tensors and commands are."""
    make, document = documents[name]

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(one, key) for one in value]
        if isinstance(value, str) and key not in ("kind", "name", "target"):
            return value + HOSTILE
        return value

    plain, spoilt = make(document), make(spoil(copy.deepcopy(document)))
    names = [
        [tag for tag in Elements(page).found if tag != "span"] for page in (plain, spoilt)
    ]  # a command's words are spans
    assert names[0] == names[1]
    assert "<img src=x" not in spoilt


def test_steps_keep_their_digits() -> None:
    """A chart has six digits of a number, and all of a step: tooltips show it."""
    line = Line("zero", ((1234567, 0.12345678), (1234568, 0.5)))
    chart = lines_chart(
        [line], x_title="Step", y_title="Share", x_format=",d", y_format="~g", height=100,
        marks=[1234567],
    )  # fmt: skip
    rows = chart["datasets"]["rows"]
    assert [(row["x"], row["y"]) for row in rows] == [(1234567, 0.123457), (1234568, 0.5)]
    assert chart["datasets"]["marks"] == [{"at": 1234567}]


@pytest.mark.parametrize("scale", [math.inf, 1e200])
def test_infinite_weights_and_squares_have_pages(tmp_path: Path, scale: float) -> None:
    """Some weights are infinite; or all are so large that their squares are."""
    tiny_models.build("llama", tmp_path / "checkpoint-1")
    for step in (2, 3):
        tensors = reference.stored(tmp_path / "checkpoint-1")
        for name, one in tensors.items():
            if name.endswith("q_proj.weight"):
                one[0] = math.inf
            if math.isfinite(scale) and one.ndim == 2:
                tensors[name] = torch.randn(one.shape, dtype=torch.float64) * scale
        reference.save(tmp_path / f"checkpoint-{step}", tensors)
        config = (tmp_path / "checkpoint-1/config.json").read_bytes()
        (tmp_path / f"checkpoint-{step}/config.json").write_bytes(config)
    traced = trace([tmp_path]).to_json()
    assert "Infinity" in trace_page(traced) or math.isfinite(scale)
    settings = CompareSettings((0.2,), ("2:4",))  # type: ignore[arg-type]
    compared = compare(tmp_path / "checkpoint-1", tmp_path / "checkpoint-2", settings).to_json()
    assert "Infinity" in compare_page(compared) or math.isfinite(scale)
    assert not any("nan" in text for text in (*traced["findings"], *compared["findings"]))
    json.dumps([traced, compared], allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_all_numbers_are_in_tables(documents: Documents, name: str) -> None:
    make, document = documents[name]
    page = re.sub(r"<[^>]+>", " ", make(document))
    expected = {
        "comparison": [f"{pair['jaccard']:.3f}" for pair in document.get("masks", ())],
        "trace": [str(point["model"]) for point in document.get("points", ())],
        "lottery": ["0.8500", "0.8000", "+0.0100", "-0.0100 to +0.0300", "the loss is NaN"],
    }[name]
    assert expected
    assert all(text in page for text in expected)
