"""Charts of an analysis: histograms, what a threshold takes from each matrix, and N:M losses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prunectl import numbers
from prunectl.analysis.distribution import BINS_PER_OCTAVE, kind_of
from prunectl.analysis.result import Analysis, Cuts, TensorStats
from prunectl.report.charts import (
    LINEAR,
    LOG,
    Chart,
    by_label,
    dash,
    finished,
    hovered,
    load,
    position,
    short,
)

CUT = "cut"
"""The parameter with the number of the threshold that a chart shows."""

MANY = 3000
"""Most tensors with a point each; of more, those of one layer and matrix share a point."""

_NUMBERED = re.compile(r"^[^.]+\.\*\.")


def heat_map(cuts: Cuts) -> dict[str, Any]:
    """Layer by matrix: the share of zeros at the slider's threshold."""
    alt = load("altair")
    names = matrix_names((cell.stack, cell.component) for cell in cuts.cells)
    rows = [
        {
            "layer": "none" if cell.layer is None else cell.layer,
            "matrix": names[cell.stack, cell.component],
            "weights": cell.weights,
            "tensors": cell.tensors,
            "zeros": list(cell.zeros),
        }
        for cell in sorted(cuts.cells, key=lambda c: (c.stack, -1 if c.layer is None else c.layer))
    ]
    matrices = list(dict.fromkeys(row["matrix"] for row in rows))
    bare = {"ticks": False, "domain": False, "labelPadding": 8}
    x = position(
        "X", "layer:O", "Layer", {"paddingInner": 0.03}, labelAngle=0, labelOverlap=True, **bare
    )
    y = position("Y", "matrix:N", None, {"domain": matrices, "paddingInner": 0.06}, **bare)
    base = (
        alt.Chart(alt.NamedData("cells"))
        .transform_calculate(
            gone=f"datum.zeros[{CUT}]", share=f"datum.zeros[{CUT}] / datum.weights"
        )
        .encode(x=x, y=y.sort(None))
    )
    color = alt.Color(
        "share:Q",
        title="zeros",
        scale=alt.Scale(zero=False, nice=False),
        legend=alt.Legend(
            format=".0~%", orient="top", direction="horizontal", gradientLength=160, tickCount=4
        ),
    )
    tooltip = [
        alt.Tooltip("matrix:N", title="title"),
        alt.Tooltip("layer:O", title="layer"),
        alt.Tooltip("share:Q", title="zeros", format=".2%"),
        alt.Tooltip("gone:Q", title="weights that go", format=","),
        alt.Tooltip("weights:Q", title="of", format=","),
        alt.Tooltip("tensors:Q", title="tensors"),
    ]
    written = f"bandwidth('x') >= 34 && isValid(datum.zeros[{CUT}])"
    ink = "luminance(scale('color', datum.share)) > 0.18"
    layers = [
        base.mark_rect(stroke=None, cornerRadius=2).encode(color=color, tooltip=tooltip),
        base.mark_text(fontSize=11).encode(
            tooltip=tooltip,  # the pointer may be on the number
            text=alt.Text("share:Q", format=".0%"),
            opacity=alt.condition(written, alt.value(1), alt.value(0)),
            color=alt.condition(ink, alt.value("#10141a"), alt.value("#ffffff")),
        ),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name=CUT, value=0))
    return finished(chart, {"cells": rows}, height=26 * len(matrices))


def norm_curve(cuts: Cuts, weights: int) -> dict[str, Any]:
    """The share of the squared norm that each threshold keeps."""
    alt = load("altair")
    rows = [
        {
            "index": i,
            "sparsity": short(zeros / weights),
            "kept": short(kept),
            "at": numbers.share(zeros / weights, 2),
            "threshold": numbers.real(threshold),
            "kept_text": numbers.share(kept, 2),
        }
        for i, (threshold, zeros, kept) in enumerate(
            zip(cuts.thresholds, cuts.zeros, cuts.norm_kept, strict=True)
        )
        if math.isfinite(kept)
    ]
    whole = {"domain": [0, 1], "nice": False}
    base = alt.Chart(alt.NamedData("steps")).encode(
        x=position(
            "X", "sparsity:Q", "Sparsity of the prunable weights", whole, format="~%", grid=False,
            tickCount=10,
        ),
        y=position("Y", "kept:Q", "Squared norm kept", whole, format="~%", tickCount=5),
    )  # fmt: skip
    here = base.transform_filter(f"datum.index == {CUT}")
    tooltip = [("at", "sparsity"), ("threshold", "|w| below"), ("kept_text", "norm kept")]
    layers = [
        base.mark_line(style="first", strokeWidth=2, tooltip=None),
        here.mark_rule(strokeDash=[4, 3], tooltip=None).encode(
            y=alt.value(0), y2=alt.value("height")
        ),
        hovered(base, ["index"], tooltip, style="first"),
        here.mark_point(style="first", filled=True, size=90, opacity=1, tooltip=None),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name=CUT, value=0))
    return finished(chart, {"steps": rows}, height=200)


def pattern_losses(analysis: Analysis) -> dict[tuple[str, ...], dict[str, Any]]:
    """By N:M pattern: the share of its squared norm that each tensor loses."""
    charts: dict[tuple[str, ...], dict[str, Any]] = {}
    for summary in analysis.patterns:
        rows = loss_rows(analysis.tensors, summary.pattern)
        if rows:
            charts[summary.pattern,] = finished(_losses(rows), {"tensors": rows}, height=300)
    return charts


def loss_rows(tensors: Sequence[TensorStats], pattern: str) -> list[dict[str, Any]]:
    """A row for each tensor that takes the pattern; above ``MANY`` tensors, one for each cell."""
    fits = [(tensor, tensor.patterns.get(pattern)) for tensor in tensors if tensor.prunable]
    taken = [(t, fit.norm_kept) for t, fit in fits if fit is not None and fit.norm_kept is not None]
    names = matrix_names((tensor.stack, kind_of(tensor.component)) for tensor, _ in taken)
    groups: dict[tuple[Any, ...], list[tuple[TensorStats, float]]] = {}
    for tensor, kept in taken:
        name = kind_of(tensor.component)
        key = (tensor.stack, tensor.layer, name, tensor.name if len(taken) <= MANY else "")
        groups.setdefault(key, []).append((tensor, kept))
    rows = []
    for (stack, layer, component, name), members in groups.items():
        norm = sum(tensor.norm_squared for tensor, _ in members)
        lost = sum(tensor.norm_squared * (1 - kept) for tensor, kept in members)
        if norm and math.isfinite(lost / norm):
            shape = "x".join(map(str, members[0][0].shape))
            rows.append(
                {
                    "matrix": names[stack, component],
                    "layer": 0 if layer is None else layer,
                    "lost": short(lost / norm),
                    "text": numbers.share(lost / norm, 2),
                    "name": name or f"{len(members):,} tensors of layer {layer}",
                    "shape": f"{shape} each" if len(members) > 1 else shape,
                }
            )
    return sorted(rows, key=lambda row: (row["matrix"], row["layer"]))


def _losses(rows: list[dict[str, Any]]) -> Chart:
    alt = load("altair")
    labels = list(dict.fromkeys(row["matrix"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    base = alt.Chart(alt.NamedData("tensors")).encode(
        x=position(
            "X", "layer:Q", "Layer", {"nice": False, "zero": False, "padding": 12}, values=layers,
            format="d", grid=False, labelOverlap=True, labelSeparation=6,
        ),
        y=position(
            "Y", "lost:Q", "Squared norm lost", {"zero": False, "nice": True}, format=".1~%",
            tickCount=6,
        ),
        color=by_label(labels, field="matrix"),
    )  # fmt: skip
    means = base.encode(
        y=alt.Y("mean(lost):Q", title="Squared norm lost"),
        strokeDash=dash(labels, field="matrix"),
    )
    tooltip = [("name", "title"), ("matrix", "matrix"), ("layer", "layer"), ("text", "norm lost"),
               ("shape", "shape")]  # fmt: skip
    layers = [
        means.mark_line(strokeWidth=1.4, opacity=0.7, tooltip=None),
        hovered(base, ["name", "layer"], tooltip, size=42),
    ]
    return alt.layer(*layers)


def matrix_names(places: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Short names of matrices, by stack and component.

    A stack is named if there are several, by its first word if the words differ; a numbered place
    in the block (T5's ``layer.*.SelfAttention.q``) is dropped if names stay unique.
    """
    keys = list(dict.fromkeys(places))
    stacks = list(dict.fromkeys(stack for stack, _ in keys))
    words = [stack.partition(".")[0] for stack in stacks]
    if len(set(words)) < len(words):
        words = stacks
    prefix = {
        stack: f"{word}: " if len(stacks) > 1 else ""
        for stack, word in zip(stacks, words, strict=True)
    }
    short_ones = {key: prefix[key[0]] + _NUMBERED.sub("", key[1]) for key in keys}
    if len(set(short_ones.values())) == len(keys):
        return short_ones
    return {key: prefix[key[0]] + key[1] for key in keys}


BY_ROLE, BY_MATRIX, BY_LAYER = "By role", "By matrix", "By layer"

_TAIL = 0.002
"""Share of a group's weights that may lie below the lowest magnitude shown."""
_FEW = 12
"""Up to this many lines are drawn wider."""
_TENTHS = (0.1, 0.5, 0.9)
"""Sparsities whose thresholds are marked."""
_OUTWARD = "{'10%': 'right', '90%': 'left'}[datum.text] || 'center'"
"""On a narrow screen their marks are close: the texts of the outer ones point away."""
_LEAST_SHARE = 1e-6
"""The bottom of the logarithmic scale."""
_HEIGHT = 340


def histograms(analysis: Analysis) -> dict[tuple[str, ...], dict[str, Any]]:
    """Histograms of |w| by the grouping of the weights, and by the scale of the counts."""
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
    """For each group, the weights between each edge and its double, four edges further."""
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
    """The first bin between edges that is not part of the tail."""
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
    x = position(
        "X", "middle:Q", "Magnitude |w|",
        {"type": "log", "nice": False, "domain": _ends([row["middle"] for row in rows])},
        format="~g", grid=False, values=_decades(-40, 41),
    )  # fmt: skip
    heights: dict[str, Any] = {"nice": True}
    axis: dict[str, Any] = {"format": "~%", "tickCount": 6}
    if scale == LOG:
        domain = _ends([_LEAST_SHARE, *shares], least=_LEAST_SHARE)
        heights = {"nice": False, "type": "log", "domain": domain}
        axis = {"format": "~p", "values": _decades(-6, 1)}
    y = position("Y", "share:Q", "Share of the weights up to twice |w|", heights, **axis)
    base = alt.Chart(alt.NamedData("bins")).encode(x=x, y=y)
    if scale == LOG:
        base = base.transform_filter("datum.share > 0")
    width = 1.8 if len(labels) <= _FEW else 1.1
    color, dashes = _by_depth(labels), alt.value([1, 0])
    if not by_layer:
        color, dashes = by_label(labels), dash(labels)
    rules = alt.Chart(alt.NamedData("marks"))
    layers = [
        rules.mark_rule(strokeDash=[3, 3], clip=True, tooltip=None).encode(x="threshold:Q"),
        rules.mark_text(style="note", dy=-7, clip=False, align=alt.ExprRef(_OUTWARD)).encode(
            x="threshold:Q", y=alt.value(0), text="text:N"
        ),
        base.mark_line(interpolate="monotone", clip=True, strokeWidth=width, tooltip=None).encode(
            color=color,
            detail="label:N",
            strokeDash=dashes,
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
    """A colour ramp from the first layer to the last."""
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
    """The sort key of layers by number; file order may put layer 10 before layer 2."""
    stack, _, number = label.rpartition(".")
    return stack, int(number) if number.isdecimal() else -1, number


def _decades(first: int, last: int) -> list[float]:
    return [10.0**exponent for exponent in range(first, last)]


def _ends(values: Sequence[float], least: float = 0.0) -> list[float]:
    """The range of values, without values below ``least``."""
    low, high = max(least, min(values)), max(values)
    return [low, high if high > low else 2 * low]
