"""A page as data, and as one HTML file that holds all it needs and loads nothing.

Texts of a page are plain texts: whatever is in them, also markup, is shown and not obeyed. A
content security policy allows no other script than the page's own, and no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunectl._version import __version__
from prunectl.report.charts import chart_version, load
from prunectl.report.theme import DARK, LIGHT, css_variables, vega_config

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

_FILES = Path(__file__).parent / "template"


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of buttons, of which one is chosen: the first at the beginning."""

    label: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """Charts of which one is shown.

    Attributes:
        charts: Vega-Lite specifications by what is chosen, one text for each of ``choices``. Their
            rows are in ``datasets``.
        title, text: above the chart. label: what it shows, for those who cannot see it.
    """

    title: str
    charts: dict[tuple[str, ...], dict[str, Any]]
    text: str = ""
    label: str = ""
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Slider:
    """Sets a parameter in all charts of its section to one of the numbers 0, 1 .. n-1.

    Attributes:
        parameter: of the charts. texts: what is said beside the slider, for each number.
    """

    label: str
    parameter: str
    texts: tuple[str, ...]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Legend:
    """Names of curves in the colours of the theme's series; those that are pressed are chosen.

    Attributes:
        parameter: of all charts in the section, set to the names that are chosen.
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
    """Rows of texts. ``left``: columns that are not numbers. ``folded``: shown when asked for."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | Bar, ...], ...]
    left: tuple[int, ...] = (0,)
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values under a title. ``code``: names whose values are commands."""

    title: str
    rows: tuple[tuple[str, str], ...]
    code: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """A result at a glance.

    Attributes:
        series: number of the curve that it belongs to, whose colour it takes; None for no curve.
        value, detail: large, and small beside it. lines: (name, value). command: to run next.
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
    """The whole page. ``warnings``: sentences that stand before everything else."""

    title: str
    subtitle: str
    cards: tuple[Card, ...] = ()
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


def render(page: Page) -> str:
    """The page as HTML: UTF-8, without surrogates, whatever the texts hold.

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
    # `tojson` writes <, >, & and ' as \uXXXX, so that no text ends the script that it is in.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    # Nothing in the library may end the element that it is in.
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
    """``text`` with what no page may hold as an escape: a path may be no valid Unicode."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def _policy(*scripts: str) -> str:
    """Only these scripts run, and nothing is loaded from anywhere."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _data(page: Page) -> dict[str, Any]:
    """What the page's script needs: charts by section and figure, sliders, themes.

    Charts that differ in a scale show the same rows: each table of rows is there once.
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
    """The charts by the numbers of what is chosen, such as ``0|2``, with numbers for their rows.

    Args:
        tables: rows as JSON -> number; those that are not there yet are added.
    """
    numbers = [{option: str(i) for i, option in enumerate(c.options)} for c in figure.choices]
    return {
        "|".join(number[option] for number, option in zip(numbers, chosen, strict=True)): chart
        | {
            "datasets": {
                name: tables.setdefault(json.dumps(rows), len(tables))
                for name, rows in chart["datasets"].items()
            }
        }
        for chosen, chart in figure.charts.items()
    }
