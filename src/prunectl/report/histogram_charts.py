"""Histograms of magnitudes as charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunectl import numbers
from prunectl.analysis.distribution import BINS_PER_OCTAVE
from prunectl.analysis.result import Analysis
from prunectl.report.charts import Chart, by_label, dash, finished, hovered, short
from prunectl.report.libraries import load

BY_ROLE, BY_MATRIX, BY_LAYER = "By role", "By matrix", "By layer"
LINEAR, LOG = "Linear", "Log"

_TAIL = 0.002
"""Share of a group's weights that may lie below the lowest magnitude that is drawn."""
_FEW = 12
"""Lines that are drawn wider."""
_TENTHS = (0.1, 0.5, 0.9)
"""Sparsities whose thresholds are marked."""
_LEAST_SHARE = 1e-6
"""At the bottom of the logarithmic scale."""
_HEIGHT = 340


def histograms(analysis: Analysis) -> dict[tuple[str, ...], dict[str, Any]]:
    """Histograms of |w| by what the weights are grouped by, and by the scale of the counts."""
    found = analysis.magnitudes
    layers = {label: found.layers[label] for label in sorted(found.layers, key=_depth)}
    groups = {BY_ROLE: found.roles, BY_MATRIX: found.components, BY_LAYER: layers}
    marks = [
        {"threshold": row.threshold, "text": f"{row.sparsity:.0%}"}
        for row in analysis.thresholds
        if any(math.isclose(row.sparsity, tenth) for tenth in _TENTHS)
        and 0 < row.threshold < math.inf
    ]
    charts: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, group in groups.items():
        rows = list(_histogram_rows(found.edges, group))
        for scale in (LINEAR, LOG) if rows else ():
            chart = _histogram(rows, list(group), by_layer=name == BY_LAYER, scale=scale)
            data = {"bins": rows, "marks": marks}
            charts[name, scale] = finished(chart, data, height=_HEIGHT)
    return charts


def _histogram_rows(
    edges: Sequence[float], groups: Mapping[str, tuple[int, ...]]
) -> Iterator[dict[str, Any]]:
    """For each group the weights from each edge to its double, which is four edges further on."""
    known = {label: counts for label, counts in groups.items() if sum(counts)}
    first = min((_first_seen(counts) for counts in known.values()), default=0)
    for depth, (label, counts) in enumerate(known.items()):
        total = sum(counts)
        below = sum(counts[: first + 1])
        for i in range(first, len(edges) - BINS_PER_OCTAVE):
            low, high = edges[i], edges[i + BINS_PER_OCTAVE]
            count = sum(counts[i + 1 : i + 1 + BINS_PER_OCTAVE])
            yield {
                "label": label,
                "depth": depth,
                "middle": math.sqrt(low * high),
                "share": short(count / total),
                "range": f"{numbers.real(low)} to {numbers.real(high)}",
                "count": f"{count:,}",
                "text": numbers.share(count / total, 2),
                "below": numbers.share(below / total),
            }
            below += counts[i + 1]


def _first_seen(counts: Sequence[int]) -> int:
    """The first bin between edges that is no longer part of the tail."""
    total, seen = sum(counts), 0
    for i, count in enumerate(counts[:-1]):
        seen += count
        if seen > _TAIL * total:
            return max(0, i - 1)
    return 0


def _histogram(
    rows: list[dict[str, Any]],
    labels: list[str],
    *,
    by_layer: bool,
    scale: str,
) -> Chart:
    alt = load("altair")
    shares = [row["share"] for row in rows if row["share"] > 0]
    x = alt.X(
        "middle:Q",
        title="Magnitude |w|",
        scale=alt.Scale(type="log", nice=False, domain=_ends([row["middle"] for row in rows])),
        axis=alt.Axis(format="~g", grid=False, values=_decades(-40, 41)),
    )
    logarithmic = {"type": "log", "domain": _ends([_LEAST_SHARE, *shares], least=_LEAST_SHARE)}
    y = alt.Y(
        "share:Q",
        title="Share of the weights up to twice |w|",
        scale=alt.Scale(nice=False, **logarithmic) if scale == LOG else alt.Scale(nice=True),
        axis=alt.Axis(format="~p", values=_decades(-6, 1))
        if scale == LOG
        else alt.Axis(format="~%", tickCount=6),
    )
    base = alt.Chart(alt.NamedData("bins")).encode(x=x, y=y)
    if scale == LOG:
        base = base.transform_filter("datum.share > 0")
    width = 1.8 if len(labels) <= _FEW else 1.1
    color = _by_depth(labels) if by_layer else by_label(labels)
    rules = alt.Chart(alt.NamedData("marks"))
    layers = [
        rules.mark_rule(strokeDash=[3, 3], clip=True, tooltip=None).encode(x="threshold:Q"),
        rules.mark_text(style="note", dy=-7, clip=False).encode(
            x="threshold:Q", y=alt.value(0), text="text:N"
        ),
        base.mark_line(interpolate="monotone", clip=True, strokeWidth=width, tooltip=None).encode(
            color=color, detail="label:N", strokeDash=dash(labels, few=by_layer)
        ),
        hovered(
            base.encode(color=color),
            ["label", "range"],
            [
                ("label", "title"),
                ("range", "|w|"),
                ("count", "weights"),
                ("text", "share of all"),
                ("below", "below these"),
            ],
        ),
    ]
    return alt.layer(*layers)


def _by_depth(labels: list[str]) -> Chart:
    """A ramp from the first layer to the last: neighbours look alike."""
    alt = load("altair")
    scale = alt.Scale(domain=[0, max(1, len(labels) - 1)])
    one = len({label.rpartition(".")[0] for label in labels}) <= 1
    legend = alt.Legend(
        title="layer" if one else "layer, counted through all stacks", type="gradient",
        orient="top", direction="horizontal", gradientLength=160, format="d", tickMinStep=1,
        titleLimit=300,
    )  # fmt: skip
    return alt.Color("depth:Q", scale=scale, legend=legend)


def _depth(label: str) -> tuple[str, int, str]:
    """Layers in their order: file order may put layer 10 before layer 2."""
    stack, _, number = label.rpartition(".")
    return stack, int(number) if number.isdecimal() else -1, number


def _decades(first: int, last: int) -> list[float]:
    return [10.0**exponent for exponent in range(first, last)]


def _ends(values: Sequence[float], least: float = 0.0) -> list[float]:
    """The range of values, of which those below ``least`` are not shown."""
    low, high = max(least, min(values)), max(values)
    return [low, high if high > low else 2 * low]
