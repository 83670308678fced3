"""The two charts of a sweep: scores, and losses against the dense model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunectl.report.charts import Chart, dash, load, near_tooltip
from prunectl.report.sweep_data import (
    NEAR,
    dense_rows,
    known,
    labels_of,
    loss_ranges,
    mark_rows,
    percent,
    point_rows,
    score_scales,
)

CHOSEN = "chosen"
"""Name of the charts' parameter with the labels of the chosen curves; an empty list is all."""
_SAFE_TITLE = re.compile(r"[\w .:,/-]+")
_MARKS = {"essential sparsity": "diamond", "knee": "triangle-up"}


@dataclass(frozen=True, slots=True)
class SweepCharts:
    """The charts of a sweep's document, with what they share.

    Attributes:
        document: the JSON document of the sweep.
        interactive: whether the charts are for a page, where they react to the pointer; otherwise
            they are for a picture.
        clip: whether to cut marks at the axes; costs half a second for each curve of a PNG.
    """

    document: dict[str, Any]
    interactive: bool
    clip: bool = True

    def scores(self) -> dict[str, Chart]:
        """The chart of scores, by the name of its scale; the one to show first is first."""
        points, dense = list(point_rows(self.document)), dense_rows(self.document)
        scales = score_scales(points, dense, higher_is_better=self._higher)
        return {
            name: replace(self, clip=name == NEAR)._score_chart(scale)
            for name, scale in scales.items()
        }

    def losses(self) -> dict[str, Chart]:
        """The chart of losses, by the name of its range; empty if no loss was measured."""
        ranges = loss_ranges(list(point_rows(self.document)), self.epsilon)
        return {name: self._loss_chart(domain) for name, domain in ranges.items()}

    @property
    def _higher(self) -> bool:
        return bool(self.document["metric"]["higher_is_better"])

    @property
    def epsilon(self) -> float:
        return float(self.document["settings"]["epsilon"])

    @property
    def relative(self) -> bool:
        return bool(self.document["settings"]["epsilon_mode"] == "relative")

    def _score_chart(self, scale: dict[str, Any]) -> Chart:
        alt = load("altair")
        name = str(self.document["metric"]["name"])
        # Vega-Lite puts axis titles into expressions, and escapes only quotes: other
        # characters of a name could end the string.
        name = name if _SAFE_TITLE.fullmatch(name) else "score"
        better = "higher is better" if self._higher else "lower is better"
        axis = alt.Axis(format=",.6~r", tickCount=6)
        y = alt.Y("score:Q", title=f"{name} ({better})", scale=alt.Scale(**scale), axis=axis)
        dense = alt.Chart(alt.NamedData("dense"))
        below = [
            dense.transform_filter("isValid(datum.bound)")
            .mark_rect(style="tolerated", clip=self.clip, tooltip=None)
            .encode(y=alt.Y("dense:Q"), y2="bound:Q"),
            dense.mark_rule(style="dense", strokeDash=[2, 2], clip=self.clip).encode(y="dense:Q"),
        ]
        above = [
            dense.mark_text(
                style="note", align="right", dx=-4, dy=-8 if self._higher else 9, clip=self.clip
            ).encode(x=alt.value("width"), y="dense:Q", text="text:N"),
        ]  # fmt: skip
        return self._layers(y, ("score", "low", "high"), below, above)

    def _loss_chart(self, domain: Sequence[float]) -> Chart:
        alt = load("altair")
        unit = "share of the dense score" if self.relative else "in units of the score"
        axis = alt.Axis(
            format="+.1~%" if self.relative else "+~g", tickCount=6,
            labelExpr="datum.value == 0 ? 'dense' : datum.label",
        )  # fmt: skip
        scale = alt.Scale(domain=list(domain), nice=False, zero=False)
        y = alt.Y("change:Q", title=f"Loss ({unit})", scale=scale, axis=axis)
        bounds = alt.Chart(alt.NamedData("bounds"))
        below = [
            bounds.mark_rect(style="tolerated", clip=self.clip, tooltip=None).encode(
                y=alt.Y("bottom:Q"), y2="epsilon:Q"
            ),
            bounds.mark_rule(style="bound", clip=self.clip).encode(y="epsilon:Q"),
            bounds.mark_rule(style="dense", strokeDash=[2, 2], clip=self.clip).encode(y="zero:Q"),
        ]
        above = [
            bounds.mark_text(style="note", align="right", dx=-4, dy=8, clip=self.clip).encode(
                x=alt.value("width"), y="epsilon:Q", text="epsilon_text:N"
            )
        ]
        return self._layers(y, ("change", "change_low", "change_high"), below, above)

    def _layers(
        self, y: Chart, fields: tuple[str, str, str], below: list[Chart], above: list[Chart]
    ) -> Chart:
        """Curves with their marks, between the layers ``below`` and ``above``."""
        alt = load("altair")
        field, low, high = fields
        dashes = dash(labels_of(self.document), legend=not self.interactive)
        base = alt.Chart(alt.NamedData("points")).encode(x=self._x(), color=self._color())
        has_value = f"isValid(datum.{field})"
        has_interval = f"isValid(datum.{low}) && isValid(datum.{high})"
        spread = base.transform_filter(has_interval).encode(y=f"{low}:Q", y2=f"{high}:Q")
        layers = [
            *below,
            *self._turning_points(),
            spread.mark_area(clip=self.clip, opacity=1, tooltip=None).encode(
                fillOpacity=self._opacity(0.16)
            ),
            *(
                [
                    spread.transform_filter("datum.alone")
                    .mark_rule(clip=self.clip, tooltip=None)
                    .encode(strokeOpacity=self._opacity(0.55))
                ]
                if any(row["alone"] for row in point_rows(self.document))
                else []
            ),
            base.transform_filter(has_value)
            .mark_line(clip=self.clip, strokeWidth=2, tooltip=None)
            .encode(
                y=y,
                strokeDash=dashes,
                strokeOpacity=self._opacity(1.0),
            ),
            self._points(base.transform_filter(has_value), field),
            self._marks(field),
            *self._failed(),
            *above,
        ]
        chart = alt.layer(*layers)
        return chart.add_params(alt.param(name=CHOSEN, value=[])) if self.interactive else chart

    def _x(self) -> Chart:
        alt = load("altair")
        top = max([0.1, *known(point_rows(self.document), "sparsity")])
        end = math.ceil(round(top, 4) * 20) / 20
        # A little space, so that the points at both ends are not cut.
        scale = alt.Scale(domain=[-0.008, end + 0.008], nice=False)
        axis = alt.Axis(format="~%", grid=False, tickCount=10)
        return alt.X("sparsity:Q", title="Sparsity of the prunable weights", scale=scale, axis=axis)

    def _color(self) -> Chart:
        alt = load("altair")
        labels = labels_of(self.document)
        legend = None
        if not self.interactive and len(labels) > 1:  # a page draws the legend itself
            legend = alt.Legend(
                title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1, columns=2
            )
        return alt.Color("label:N", scale=alt.Scale(domain=labels), legend=legend)

    def _opacity(self, value: float) -> Chart:
        """The opacity of a fill or a stroke; curves that are not chosen in the page's legend fade.

        The ``opacity`` of marks would make pictures many times slower: each mark would be drawn on
        a separate layer.
        """
        alt = load("altair")
        if not self.interactive:
            return alt.value(value)
        shown = f"length({CHOSEN}) == 0 || indexof({CHOSEN}, datum.label) >= 0"
        return alt.condition(shown, alt.value(value), alt.value(value / 8))

    def _points(self, base: Chart, field: str) -> Chart:
        alt = load("altair")
        points = base.mark_point(filled=True, size=34, clip=self.clip, opacity=1).encode(
            y=f"{field}:Q", fillOpacity=self._opacity(1.0)
        )
        if not self.interactive:
            return points
        near = alt.selection_point(
            name="near", on="pointerover", clear="pointerout", nearest=True,
            fields=["label", "sparsity"], empty=False,
        )  # fmt: skip
        size = alt.condition(near, alt.value(120), alt.value(34))
        tooltip = near_tooltip(
            [
                ("label", "title"),
                ("at", "sparsity"),
                ("of_all", "of all parameters"),
                ("score_text", "score"),
                ("interval", "95% interval"),
                ("loss", "loss"),
                ("loss_interval", "its 95% interval"),
            ]
        )
        return points.encode(size=size, tooltip=tooltip).add_params(near)

    def _marks(self, field: str) -> Chart:
        alt = load("altair")
        shape = alt.Shape(
            "kind:N",
            scale=alt.Scale(domain=list(_MARKS), range=list(_MARKS.values())),
            # A page explains the marks in words.
            legend=None
            if self.interactive
            else alt.Legend(title=None, symbolOpacity=1, direction="horizontal"),
        )
        chart = alt.Chart(alt.NamedData("marks")).transform_filter(f"isValid(datum.{field})")
        return chart.mark_point(
            filled=True, size=190, clip=self.clip, opacity=1, style="halo", strokeWidth=1.5
        ).encode(
            x=self._x(), y=f"{field}:Q", shape=shape, color=self._color(),
            fillOpacity=self._opacity(1.0), tooltip=_mark_tooltip(),
        )  # fmt: skip

    def _turning_points(self) -> list[Chart]:
        """The essential sparsity of each curve and its interval, over the whole height."""
        alt = load("altair")
        base = (
            alt.Chart(alt.NamedData("marks"))
            .transform_filter("datum.kind == 'essential sparsity'")
            .encode(color=self._color())
        )
        ends = base.transform_filter("isValid(datum.from) && isValid(datum.to)")
        return [
            ends.mark_rect(clip=self.clip, opacity=1, tooltip=None).encode(
                x=alt.X("from:Q"), x2="to:Q", fillOpacity=self._opacity(0.1)
            ),
            base.mark_rule(strokeDash=[5, 4], clip=self.clip).encode(
                x=self._x(), strokeOpacity=self._opacity(0.8), tooltip=_mark_tooltip()
            ),
        ]

    def _failed(self) -> list[Chart]:
        """Points that failed, at the bottom of the chart at their sparsity."""
        alt = load("altair")
        if not any(row["failed"] for row in point_rows(self.document)):
            return []
        tooltip = [
            alt.Tooltip("label:N", title="title"),
            alt.Tooltip("at:N", title="sparsity"),
            alt.Tooltip("failed:N", title="failed"),
        ]
        chart = alt.Chart(alt.NamedData("points")).transform_filter("datum.failed != ''")
        return [
            chart.mark_point(
                shape="cross", angle=45, filled=True, size=90, yOffset=-8, style="failed"
            ).encode(x=self._x(), y=alt.value("height"), tooltip=tooltip)
        ]

    def datasets(self) -> dict[str, list[dict[str, Any]]]:
        """The data of the charts, by name, for the outermost chart."""
        points, epsilon = list(point_rows(self.document)), self.epsilon
        tolerance = percent(epsilon) if self.relative else f"{epsilon:g}"
        bounds = {
            "bottom": min([-1e3 * epsilon, *known(points, "change", "change_low")]),
            "epsilon": epsilon,
            "epsilon_text": f"tolerance {tolerance}",
            "zero": 0,
        }
        return {
            "points": points,
            "marks": list(mark_rows(self.document)),
            "dense": dense_rows(self.document),
            "bounds": [bounds],
        }


def _mark_tooltip() -> list[Chart]:
    alt = load("altair")
    return [
        alt.Tooltip("label:N", title="title"),
        alt.Tooltip("kind:N", title="what"),
        alt.Tooltip("at:N", title="sparsity"),
        alt.Tooltip("interval:N", title="95% interval"),
        alt.Tooltip("text:N", title="meaning"),
    ]
