"""Charts: the libraries that draw them, and what several reports share.

prunectl needs these libraries only for reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from prunectl.errors import MissingLibrary
from prunectl.report.theme import DASHES, LIGHT

_PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}
"""The package of each module."""


def check_libraries(what: str) -> None:
    """Check before the work whether a report can be made; loads nothing.

    Args:
        what: the feature that needs the libraries, for the error.

    Raises:
        MissingLibrary: a library is not installed.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingLibrary(package, what, extra="report")


def load(module: str) -> Any:
    """Import one of the libraries.

    Raises:
        MissingLibrary: the library is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MissingLibrary(_PACKAGES[module], "a report", extra="report") from None


def chart_version() -> str | None:
    """The Vega-Lite version of the charts, as vl-convert names it.

    None, which means its newest, if vl-convert lacks that version.
    """
    version = str(load("altair").SCHEMA_VERSION).removeprefix("v")
    short = ".".join(version.split(".")[:2])
    return short if short in load("vl_convert").get_vegalite_versions() else None


Chart = Any
"""An altair chart; altair is loaded when needed, so its types are not named here."""

_LETTER, _SYMBOL = 7, 36
"""Approximate pixels of a letter in a legend, and of the symbol before the text."""


def hovered(
    base: Chart,
    fields: list[str],
    tooltip: list[tuple[str, str]],
    *,
    size: int = 0,
    style: str | None = None,
) -> Chart:
    """Points that grow and show a tooltip when the pointer is nearest to them.

    Args:
        fields: that identify a point.
        tooltip: (field, name); the one named ``title`` is the heading.
        size: in square pixels while the pointer is not near. style: of the mark.
    """
    alt = load("altair")
    near = alt.selection_point(
        name="near", on="pointerover", clear="pointerout", nearest=True, fields=fields, empty=False
    )
    return (
        base.mark_point(filled=True, opacity=1, clip=True, **({"style": style} if style else {}))
        .encode(
            size=alt.condition(near, alt.value(110), alt.value(size)),
            tooltip=near_tooltip(tooltip),
        )
        .add_params(near)
    )


def near_tooltip(fields: list[tuple[str, str]]) -> Chart:
    """A tooltip of (field, name) that also works for the nearest point.

    Vega-Lite 6.4 looks for a plain field in the cell around the point instead of its row, and shows
    "undefined" (fixed by its pull request 9707); the row is therefore named here.
    """
    parts = (f"{name!r}: (datum.datum || datum)[{field!r}]" for field, name in fields)
    return load("altair").value({"expr": "{" + ", ".join(parts) + "}"})


def position(
    channel: str, field: str, title: str | None, scale: dict[str, Any], **axis: Any
) -> Chart:
    """The channel ``X`` or ``Y`` of a chart, with its scale and its axis."""
    alt = load("altair")
    encode = getattr(alt, channel)
    return encode(field, title=title, scale=alt.Scale(**scale), axis=alt.Axis(**axis))


def by_label(labels: list[str], field: str = "label") -> Chart:
    """Colours by label, with a legend."""
    alt = load("altair")
    widest = _SYMBOL + _LETTER * max(map(len, labels), default=0)
    columns = alt.ExprRef(f"max(1, floor(width / {widest}))")  # as many as fit
    legend = alt.Legend(
        title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1,
        columns=columns, direction="horizontal",
    )  # fmt: skip
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=labels), legend=legend)


def dash(labels: list[str], *, field: str = "label", legend: bool = True) -> Chart:
    """Dashes, which distinguish lines once there are more lines than colours."""
    alt = load("altair")
    colours = len(LIGHT.series)
    if len(labels) <= colours:
        return alt.value([1, 0])
    dashes = [list(DASHES[i // colours % len(DASHES)]) for i in range(len(labels))]
    scale = alt.Scale(domain=labels, range=dashes)
    return alt.StrokeDash(
        f"{field}:N", scale=scale, legend=alt.Legend(title=None) if legend else None
    )


def short(value: float) -> float:
    """Six digits, which suffice for a chart and keep the page small."""
    return float(f"{value:.6g}")


def finished(
    chart: Chart, datasets: dict[str, list[dict[str, Any]]], height: int | None = None
) -> dict[str, Any]:
    """A chart as its specification, with the rows that it names; with a ``height``, for a page.

    altair checks a chart against a schema, which takes seconds for thousands of rows: these are
    therefore added afterwards. The config of altair's own theme is dropped.
    """
    if height is not None:
        chart = chart.properties(width="container", height=height)
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec | {"datasets": datasets}


LINEAR, LOG = "Linear", "Log"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        label: its name. points: (x, y), in order; None is a gap. texts: for tooltips.
        low, high: of a band around the line; empty for no band.
        is_chance: whether it is the level of chance, which is drawn dashed and thin.
    """

    label: str
    points: tuple[tuple[float, float | None], ...]
    texts: tuple[str, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    is_chance: bool = False


def drawn(value: float | str | None) -> float | None:
    """The number of a document for a chart; None for NaN and Inf, which documents hold as text."""
    return None if isinstance(value, str) else value


def worded(value: float | str, write: Callable[[float], str]) -> str:
    """The number of a document in words; NaN and Inf stay text."""
    return value if isinstance(value, str) else write(value)


def lines_chart(
    lines: Sequence[Line],
    *,
    x_title: str,
    y_title: str,
    x_format: str,
    y_format: str,
    height: int,
    log: bool = False,
    marks: Sequence[float] = (),
) -> dict[str, Any]:
    """The chart as its specification, for a page.

    Args:
        log: logarithmic y, without values of 0 or less.
        marks: x of vertical lines.
    """
    alt = load("altair")
    labels = list(dict.fromkeys(line.label for line in lines))
    rows = [row for line in lines for row in _rows(line)]
    scale = {"type": "log", "nice": False} if log else {"zero": False, "nice": True}
    room = {"zero": False, "nice": False, "padding": 10}
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=position("X", "x:Q", x_title, room, format=x_format, grid=False, tickCount=8),
        y=position("Y", "y:Q", y_title, scale, format=y_format, tickCount=6),
    )
    shown = "isValid(datum.y) && datum.y > 0" if log else "isValid(datum.y)"
    known = base.transform_filter(shown)
    color = by_label(labels)
    solid = known.transform_filter("!datum.chance").encode(color=color)
    tooltip = [("label", "title"), ("x", x_title), ("text", y_title)]
    upright = alt.Chart(alt.NamedData("marks")).mark_rule(
        strokeDash=[5, 4], clip=True, tooltip=None
    )
    band = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_area(
        opacity=0.15, clip=True, tooltip=None
    )
    chance = known.transform_filter("datum.chance").mark_line(
        strokeDash=[4, 3], strokeWidth=1.4, clip=True, tooltip=None
    )
    # A layer without rows causes a warning in the browser's console.
    layers = [
        *([upright.encode(x="at:Q")] if marks else []),
        *([band.encode(y=alt.Y("low:Q", title=y_title), y2="high:Q", color=color)]
          if any(row["low"] is not None and row["high"] is not None for row in rows) else []),
        *([chance.encode(color=color)] if any(row["chance"] for row in rows) else []),
        solid.mark_line(strokeWidth=2, clip=True, tooltip=None).encode(strokeDash=dash(labels)),
        hovered(known.encode(color=color), ["label", "x"], tooltip, size=36),
    ]  # fmt: skip
    datasets = {"rows": rows, "marks": [{"at": _place(at)} for at in marks]}
    return finished(alt.layer(*layers), datasets, height=height)


def _place(x: float) -> float:
    """Steps keep all digits, which tooltips show."""
    return x if isinstance(x, int) else short(x)


def _rows(line: Line) -> list[dict[str, Any]]:
    rows = []
    for at, (x, y) in enumerate(line.points):
        row: dict[str, Any] = {
            "label": line.label,
            "x": _place(x),
            "y": None if y is None else short(y),
            "text": line.texts[at] if line.texts else "",
            "chance": line.is_chance,
        }
        for name, values in (("low", line.low), ("high", line.high)):
            value = values[at] if values else None
            row[name] = None if value is None else short(value)
        rows.append(row)
    return rows
