"""A page as data, and as one HTML file that holds everything it needs and loads nothing.

The texts of a page are plain: markup in them is shown and not interpreted. A content security
policy allows no script other than the page's own, and no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunectl import numbers
from prunectl._version import __version__
from prunectl.report.charts import chart_version, load
from prunectl.report.theme import DARK, LIGHT, css_variables, vega_config

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

_FILES = Path(__file__).parent / "template"


@dataclass(frozen=True, slots=True)
class Figure:
    """Charts of which one is shown.

    Attributes:
        charts: Vega-Lite specifications by their options, one for each of ``choices``. Their rows
            are in ``datasets``.
        title, text: above the chart. label: describes the chart for screen readers.
        choices: names of the rows of buttons.
    """

    title: str
    charts: dict[tuple[str, ...], dict[str, Any]]
    text: str = ""
    label: str = ""
    choices: tuple[str, ...] = ()

    @property
    def options(self) -> list[tuple[str, list[str]]]:
        """The rows of buttons: each choice with its options, of which the first is chosen."""
        found = [list(dict.fromkeys(column)) for column in zip(*self.charts, strict=True)]
        return list(zip(self.choices, found, strict=True))


@dataclass(frozen=True, slots=True)
class Slider:
    """Sets a parameter in all charts of its section to one of the numbers 0, 1 .. n-1.

    Attributes:
        parameter: of the charts. texts: shown next to the slider, one for each number.
    """

    label: str
    parameter: str
    texts: tuple[str, ...]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Legend:
    """Names of curves in the colours of the theme's series; pressed names are chosen.

    Attributes:
        parameter: of all charts in the section; its value is the list of chosen names.
    """

    parameter: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell of a table with a bar behind its text; ``share`` is its length, 0..1."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts. ``left``: columns without numbers. ``folded``: shown on request."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | Bar, ...], ...]
    left: tuple[int, ...] = (0,)
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values under a title. ``code``: the names whose values are commands."""

    title: str
    rows: tuple[tuple[str, str], ...]
    code: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """A result at a glance.

    Attributes:
        series: number of the curve whose colour the card takes; None for no curve.
        value, detail: in large letters, and in small letters next to it. lines: (name, value).
        command: to run next.
    """

    title: str
    value: str
    detail: str = ""
    text: str = ""
    lines: tuple[tuple[str, str], ...] = ()
    command: str = ""
    series: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page, in the order of the fields."""

    title: str
    text: str = ""
    legend: Legend | None = None
    slider: Slider | None = None
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: tuple[Facts, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page. ``warnings``: sentences at its top."""

    title: str
    subtitle: str
    cards: tuple[Card, ...] = ()
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


def render(page: Page) -> str:
    """The page as HTML, which can be encoded as UTF-8 whatever the texts hold.

    Raises:
        MissingLibrary: a library that draws is not installed.
    """
    jinja2 = load("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` writes <, >, & and ' as \uXXXX, so that no text can end its script element.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    # Nothing in the library may end its script element.
    library = load("vl_convert").javascript_bundle(vl_version=chart_version())
    library = library.replace("</script", r"<\/script").replace("<!--", r"<\!--")
    own = (_FILES / "page.js").read_text(encoding="utf-8")
    html: str = environment.get_template("page.html").render(
        page=page,
        version=__version__,
        policy=_policy(library, own),
        style=(_FILES / "page.css").read_text(encoding="utf-8"),
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
        library=library,
        own=own,
        data=_data(page),
        is_bar=lambda cell: isinstance(cell, Bar),
        colours=len(LIGHT.series),
    )
    return visible(html)


def visible(text: str) -> str:
    """Escape the characters that no page may hold; a path may be invalid Unicode."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def _policy(*scripts: str) -> str:
    """The policy under which only these scripts run, and nothing is loaded."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _data(page: Page) -> dict[str, Any]:
    """The data of the page's script: charts by section and figure, sliders, themes.

    Charts that differ only in a scale share their table of rows.
    """
    tables: dict[str, int] = {}
    data = {
        "sections": [
            {
                "figures": [_charts(figure, tables) for figure in section.figures],
                "slider": section.slider and asdict(section.slider),
                "legend": section.legend and asdict(section.legend),
            }
            for section in page.sections
        ],
        "themes": {"light": vega_config(LIGHT), "dark": vega_config(DARK)},
    }
    return data | {"tables": [json.loads(text) for text in tables]}


def _charts(figure: Figure, tables: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The charts by the numbers of the chosen options, such as ``0|2``; rows become numbers."""
    places = [{option: str(i) for i, option in enumerate(row)} for _, row in figure.options]
    return {
        "|".join(place[option] for place, option in zip(places, chosen, strict=True)): chart
        | {
            "datasets": {
                name: tables.setdefault(json.dumps(rows), len(tables))
                for name, rows in chart["datasets"].items()
            }
        }
        for chosen, chart in figure.charts.items()
    }


def as_shown(value: Any) -> Any:
    """Copy a document without what cannot be shown: invalid Unicode, NaN and Inf."""
    if isinstance(value, dict):
        return {visible(str(key)): as_shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_shown(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return visible(value) if isinstance(value, str) else value


def finding_cards(document: dict[str, Any]) -> tuple[Card, ...]:
    """A card for each finding of a document."""
    return tuple(Card(title="Finding", value="", text=str(one)) for one in document["findings"])


def run_facts(document: dict[str, Any], *rows: tuple[str, str]) -> Facts:
    """The command, version and time of a document, and more rows."""
    first = [
        ("command", str(document["command"])),
        ("prunectl", str(document["prunectl"])),
        ("time", numbers.duration(document["seconds"])),
    ]
    return Facts("Run", (*first, *rows), code=("command",))


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A tree of JSON as names and texts; a dictionary of plain values becomes one text."""
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values()):
            yield from flat(value, f"{name}, ")
        elif key == "memory" and isinstance(value, int):
            yield name, numbers.size(value)
        else:
            yield name, text_of(value)


def text_of(value: Any) -> str:
    """One value in words."""
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {text_of(item)}".replace("_", " ") for key, item in value.items())
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else json.dumps(text)
