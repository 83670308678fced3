"""Lines over a number: one chart that several reports draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prunectl.report.charts import by_label, dash, finished, hovered, short
from prunectl.report.libraries import load

LINEAR, LOG = "linear", "log"


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        label: its name. points: (x, y), in order; None is a gap. texts: what is said of each.
        low, high: of a band around it; empty where there is none.
        is_chance: whether it is drawn dashed and thin, as what others are compared with.
    """

    label: str
    points: tuple[tuple[float, float | None], ...]
    texts: tuple[str, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    is_chance: bool = False


def drawn(value: float | str | None) -> float | None:
    """A document's number for a chart; None for NaN and Inf, which are text in documents."""
    return None if isinstance(value, str) else value


def worded(value: float | str, write: Callable[[float], str]) -> str:
    """A document's number in words; NaN and Inf stay the text that they are."""
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
        log: logarithmic y, without what is not above 0.
        marks: places of upright lines.
    """
    alt = load("altair")
    labels = list(dict.fromkeys(line.label for line in lines))
    rows = [row for line in lines for row in _rows(line)]
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False, nice=True)
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, nice=False, padding=10),
                axis=alt.Axis(format=x_format, grid=False, tickCount=8)),
        y=alt.Y("y:Q", title=y_title, scale=scale, axis=alt.Axis(format=y_format, tickCount=6)),
    )  # fmt: skip
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
    # A layer without rows is complained of in the browser's console.
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
    """Steps keep all of their digits, which tooltips show."""
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
