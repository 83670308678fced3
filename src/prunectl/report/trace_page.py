"""The report of a trace: near-zero weights, magnitudes and losses over the steps of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prunectl import numbers
from prunectl.report.charts import LINEAR, LOG, Line, drawn, lines_chart, worded
from prunectl.report.page import (
    Facts,
    Figure,
    Page,
    Section,
    Table,
    as_shown,
    finding_cards,
    flat,
    render,
    run_facts,
)

_HEIGHT = 320


def trace_page(document: dict[str, Any]) -> str:
    """A trace as one self-contained HTML page.

    Args:
        document: the trace's JSON, schema ``prunectl.trace/1``.

    Raises:
        MissingLibrary: a library that draws is not installed.
    """
    document = as_shown(document)
    points = document["points"]
    steps = "step" if document["steps_known"] else "checkpoint"
    return render(
        Page(
            title="Weights over a training",
            subtitle=f"{numbers.plural(len(points), 'checkpoint')}, each of "
            f"{numbers.plural(document['weights'], 'prunable weight')}",
            cards=finding_cards(document),
            sections=(
                Section("Over the steps", figures=tuple(_figures(document, steps))),
                Section("All checkpoints", tables=(_table(document, steps),)),
                Section("How it was measured", facts=(_facts(document),)),
            ),
        )
    )  # fmt: skip


def _figures(document: dict[str, Any], steps: str) -> Iterator[Figure]:
    points = document["points"]
    at = [point["step"] for point in points]
    for kind, title, y_title, prefix in (
        ("near zero", "Weights near zero", "Share of the weights", "near zero "),
        ("lost", "What pruning takes", "Squared norm lost", ""),
    ):
        series = [one for one in document["series"] if one["name"].startswith(kind)]
        lines = [
            Line(
                str(one["name"]).removeprefix(prefix),
                tuple(zip(at, map(drawn, one["values"]), strict=True)),
                tuple(worded(value, _percent) for value in one["values"]),
            )
            for one in series
        ]
        changes = [one["change"] for one in series if one["change"]]
        marks = sorted({step for change in changes for step in (change["start"], change["end"])})
        yield Figure(
            title=title,
            text="Dashed: the steps between which a line changes abruptly." if marks else "",
            label=f"{title} over the steps of the training.",
            choices=("Scale",),
            charts=_charts(lines, (LINEAR, LOG), steps, y_title, ".3~%", marks),
        )
    lines = [
        Line(
            f"{float(q):.0%} of |w| are below",
            tuple((p["step"], _of_std(p["stats"], p["stats"]["quantiles"][q])) for p in points),
            tuple(worded(p["stats"]["quantiles"][q], "{:.4g}".format) for p in points),
        )
        for q in points[0]["stats"]["quantiles"]
    ]
    yield Figure(
        title="Magnitudes",
        text="Quantiles of |w| over the standard deviation of all weights, which do not depend on "
        "their scale.",
        label="Quantiles of the magnitudes over the steps.",
        choices=("Scale",),
        charts=_charts(lines, (LOG, LINEAR), steps, "|w| / std", "~g"),
    )


def _charts(
    lines: Sequence[Line],
    scales: Sequence[str],
    steps: str,
    y_title: str,
    y_format: str,
    marks: Sequence[float] = (),
) -> dict[tuple[str, ...], dict[str, Any]]:
    """One chart for each scale, the one to show first being first."""
    return {
        (scale,): lines_chart(
            lines, x_title=steps.capitalize(), y_title=y_title, x_format=",d", y_format=y_format,
            height=_HEIGHT, log=scale == LOG, marks=marks,
        )
        for scale in scales
    }  # fmt: skip


def _of_std(stats: dict[str, Any], value: float | str) -> float | None:
    number, std = drawn(value), drawn(stats["std"])
    return number / std if number is not None and std else None


def _percent(value: float) -> str:
    return numbers.share(value, 3)


def _table(document: dict[str, Any], steps: str) -> Table:
    names = [one["name"] for one in document["series"]]
    return Table(
        caption="Shares of the weights, or of their squared norm",
        head=(steps, "checkpoint", "std", "max |w|", *names),
        rows=tuple(
            (
                f"{point['step']:,}",
                str(point["model"]),
                worded(point["stats"]["std"], numbers.real),
                worded(point["stats"]["largest"], numbers.real),
                *(worded(one["values"][at], _percent) for one in document["series"]),
            )
            for at, point in enumerate(document["points"])
        ),
        left=(1,),
    )


def _facts(document: dict[str, Any]) -> Facts:
    matrices = ("matrices", f"{document['tensors']:,}")
    trends = {
        one["name"]: f"Kendall's tau {one['trend']['tau']:.3f}, p = {one['trend']['p']:.3g}"
        for one in document["series"]
        if one["trend"]
    }
    return run_facts(document, matrices, *flat(trends))
