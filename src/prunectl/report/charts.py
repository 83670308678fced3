"""What the charts of several reports share."""

from __future__ import annotations

from typing import Any

from prunectl.report.libraries import load
from prunectl.report.theme import DASHES, LIGHT

Chart = Any
"""An altair chart. altair is loaded when it is needed, so its types are not named here."""

_LETTER, _SYMBOL = 7, 36
"""Pixels that a letter of a legend takes, about, and what stands before it."""


def hovered(
    base: Chart,
    fields: list[str],
    tooltip: list[tuple[str, str]],
    *,
    size: int = 0,
    style: str | None = None,
) -> Chart:
    """Points that grow, and say what they are, when the pointer is nearest to them.

    Args:
        fields: that tell the points apart.
        tooltip: (field, name); the one named ``title`` is the heading.
        size: in square pixels where the pointer is not near. style: of the mark.
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

    Vega-Lite 6.4 looks for a plain field in the cell around the point and not in its row, and says
    "undefined" (its pull request 9707 mends that), so the row is named here.
    """
    parts = (f"{name!r}: (datum.datum || datum)[{field!r}]" for field, name in fields)
    return load("altair").value({"expr": "{" + ", ".join(parts) + "}"})


def by_label(labels: list[str], field: str = "label") -> Chart:
    alt = load("altair")
    widest = _SYMBOL + _LETTER * max(map(len, labels), default=0)
    columns = alt.ExprRef(f"max(1, floor(width / {widest}))")  # as many as have room
    legend = alt.Legend(
        title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1,
        columns=columns, direction="horizontal",
    )  # fmt: skip
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=labels), legend=legend)


def dash(labels: list[str], *, field: str = "label", few: bool = False) -> Chart:
    """Dashes tell lines apart once there are more of them than colours."""
    alt = load("altair")
    colours = len(LIGHT.series)
    if few or len(labels) <= colours:
        return alt.value([1, 0])
    dashes = [list(DASHES[i // colours % len(DASHES)]) for i in range(len(labels))]
    scale = alt.Scale(domain=labels, range=dashes)
    return alt.StrokeDash(f"{field}:N", scale=scale, legend=alt.Legend(title=None))


def short(value: float) -> float:
    """Six digits: more are not seen, and the page is smaller."""
    return float(f"{value:.6g}")


def finished(
    chart: Chart, datasets: dict[str, list[dict[str, Any]]], height: int | None = None
) -> dict[str, Any]:
    """A chart as its specification, with the rows that it names; with a ``height``, for a page.

    altair checks what it is given against a schema, which takes seconds for thousands of rows: they
    are put in afterwards. What its own theme adds is left out, since ours is in place.
    """
    if height is not None:
        chart = chart.properties(width="container", height=height)
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec | {"datasets": datasets}
