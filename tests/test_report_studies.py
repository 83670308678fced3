"""Pages of comparisons, lotteries and traces: all numbers are there, and texts are only texts.

``test_report_browser`` looks at them in a real browser."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import study_documents
from study_documents import NAMES, Documents

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


@pytest.mark.parametrize("name", NAMES)
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
