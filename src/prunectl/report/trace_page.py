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
_SHARES = ".3~%"


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
    series = document["series"]
    near = [one for one in series if one["name"].startswith("near zero")]
    lost = [one for one in series if one["name"].startswith("lost")]
    yield _figure(document, near, "Weights near zero", "Share of the weights", steps, "near zero ")
    yield _figure(document, lost, "What pruning takes", "Squared norm lost", steps, "")
    quantiles = list(document["points"][0]["stats"]["quantiles"])
    lines = [
        Line(
            f"{float(q):.0%} of |w| are below",
            tuple(
                (point["step"], _of_std(point["stats"], point["stats"]["quantiles"][q]))
                for point in document["points"]
            ),
            tuple(
                worded(point["stats"]["quantiles"][q], "{:.4g}".format)
                for point in document["points"]
            ),
        )
        for q in quantiles
    ]
    yield Figure(
        title="Magnitudes",
        text="Quantiles of |w| over the standard deviation of all weights, which do not depend on "
        "their scale.",
        label="Quantiles of the magnitudes over the steps.",
        choices=("Scale",),
        charts={
            (kind,): _chart(lines, "|w| / std", steps, "~g", log=kind == LOG)
            for kind in (LOG, LINEAR)
        },
    )


def _figure(
    document: dict[str, Any],
    series: Sequence[dict[str, Any]],
    title: str,
    what: str,
    steps: str,
    prefix: str,
) -> Figure:
    at = [point["step"] for point in document["points"]]
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
    text = "Dashed: the steps between which a line changes abruptly." if marks else ""
    return Figure(
        title=title,
        text=text,
        label=f"{title} over the steps of the training.",
        choices=("Scale",),
        charts={
            (kind,): _chart(lines, what, steps, _SHARES, log=kind == LOG, marks=marks)
            for kind in (LINEAR, LOG)
        },
    )


def _chart(
    lines: Sequence[Line],
    what: str,
    steps: str,
    form: str,
    *,
    log: bool,
    marks: Sequence[float] = (),
) -> dict[str, Any]:
    return lines_chart(
        lines, x_title=steps.capitalize(), y_title=what, x_format=",d", y_format=form,
        height=_HEIGHT, log=log, marks=marks,
    )  # fmt: skip


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
