"""The report of a sweep: curves of quality against sparsity, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from prunectl import numbers
from prunectl.report.charts import chart_version, finished, load
from prunectl.report.page import (
    Card,
    Facts,
    Figure,
    Legend,
    Page,
    Section,
    Table,
    as_shown,
    flat,
    render,
    run_facts,
)
from prunectl.report.sweep_charts import CHOSEN, SweepCharts
from prunectl.report.sweep_data import (
    Words,
    curves_of,
    dense_rows,
    interval,
    labels_of,
    loss_interval,
    model_text,
    percent,
    score_text,
)
from prunectl.report.theme import LIGHT, vega_config
from prunectl.studies.sweep.commands import short_names

_HEIGHTS = 380, 300
"""Height of the two charts in pixels."""
_WIDTH, _SCALE = 820, 2
"""Width of a picture in pixels before scaling, and the scale of a PNG."""
_PICTURE_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_MANY = 4
"""Tables of more curves than this are folded."""
_VALUES = {"not reached", "noise", "none", "unlearned", "failed"}


def sweep_page(document: dict[str, Any]) -> str:
    """A sweep as one self-contained HTML page.

    Args:
        document: the sweep's JSON, schema ``prunectl.sweep/1``.

    Raises:
        MissingLibrary: a library that draws is not installed.
    """
    document = as_shown(document)
    charts, labels = SweepCharts(document, interactive=True), tuple(labels_of(document))
    metric = document["metric"]
    samples = f"{metric['samples']:,} {metric.get('unit') or 'samples'}"
    return render(
        Page(
            title=f"Essential sparsity of {_models(document)}",
            subtitle=f"{str(metric['name']).capitalize()} of the model after one-shot pruning, "
            f"measured on {samples}",
            cards=tuple(_cards(document)),
            warnings=tuple(_warnings(document)),
            sections=(
                Section(
                    "Quality",
                    legend=Legend(CHOSEN, labels) if len(labels) > 1 else None,
                    figures=tuple(_figures(document, charts)),
                ),
                Section("All points", tables=tuple(_tables(document))),
                Section("How it was measured", facts=tuple(_facts(document))),
            ),
        )
    )


def sweep_picture(document: dict[str, Any], format: Literal["png", "svg"]) -> bytes:
    """The curves of a sweep as a picture on white: scores above, losses below.

    Args:
        document: the sweep's JSON, schema ``prunectl.sweep/1``.
        format: ``png`` (at least 1,640 pixels wide) or ``svg``.

    Raises:
        MissingLibrary: a library that draws is not installed.
        ValueError: another format.
    """
    if format not in ("png", "svg"):
        raise ValueError(f"a picture is a png or an svg, not '{format}'")
    alt, convert = load("altair"), load("vl_convert")
    document = as_shown(document)
    charts = SweepCharts(document, interactive=False)
    parts = [
        next(iter(found.values())).properties(width=_WIDTH, height=height)
        for found, height in zip((charts.scores(), charts.losses()), _HEIGHTS, strict=True)
        if found
    ]
    title = alt.Title(f"Essential sparsity of {_models(document)}", subtitle=_summary(document))
    whole = alt.vconcat(*parts, spacing=28).resolve_scale(x="shared")
    spec = finished(whole.properties(title=title), charts.datasets()) | {
        "config": vega_config(LIGHT, font=_PICTURE_FONT) | {"background": "white"},
        "padding": 16,
    }
    if format == "svg":
        svg: str = convert.vegalite_to_svg(spec, vl_version=chart_version())
        return svg.encode()
    png: bytes = convert.vegalite_to_png(spec, vl_version=chart_version(), scale=_SCALE)
    return png


def _models(document: dict[str, Any]) -> str:
    return ", ".join(short_names([str(model["model"]) for model in document["models"]]))


def _summary(document: dict[str, Any]) -> list[str]:
    """A line for each curve, for a picture without a page around it."""
    return [f"{label}: {curve['essential']['text']}" for label, curve in curves_of(document)]


def _warnings(document: dict[str, Any]) -> Iterator[str]:
    if document.get("interrupted"):
        yield "The sweep was interrupted: the points shown are complete, but more were asked for."
    for label, curve in curves_of(document):
        failed = [point for point in curve["points"] if point.get("failed")]
        if failed:
            at = ", ".join(percent(point["sparsity"]) for point in failed[:5])
            more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
            yield f"{label}: no score at {at}{more}: {failed[0]['failed']}."


def _cards(document: dict[str, Any]) -> Iterator[Card]:
    for i, (label, curve) in enumerate(curves_of(document)):
        essential, dense = curve["essential"], curve["dense"]
        spread = interval(dense["low"], dense["high"])
        lines = [
            ("dense score", score_text(dense["score"]) + (f" ({spread})" if spread else "")),
            ("tolerated", score_text(curve["bound"])),
            ("knee of the curve", percent(curve["knee"]) or "none"),
        ]
        low, high = percent(essential["low"]), percent(essential["high"])
        yield Card(
            title=label,
            value=percent(essential["sparsity"])
            or (essential["status"] if essential["status"] in _VALUES else "none"),
            detail=f"95% interval {low} to {high}"
            if essential["sparsity"] and low and high
            else "",
            text=str(essential["text"] or ""),
            lines=tuple(lines),
            command=str(curve["command"] or ""),
            series=i % len(LIGHT.series),
        )


def _figures(document: dict[str, Any], charts: SweepCharts) -> Iterator[Figure]:
    metric, words = document["metric"], Words(charts.relative)
    tolerance = percent(charts.epsilon) if charts.relative else f"{charts.epsilon:g}"
    named = "".join(f" {row['text']}." for row in dense_rows(document))
    kinds = (
        (
            charts.scores(),
            f"{str(metric['name']).capitalize()} against sparsity",
            "Dashed: the dense model. Green: scores within a tolerance of "
            f"{tolerance}. A diamond is the essential sparsity, a triangle the knee.",
            _HEIGHTS[0],
        ),
        (
            charts.losses(),
            "Loss against the dense model",
            "Compared sample by sample, with 95% intervals; upwards is worse. Green: losses within "
            f"the tolerance, up to {words.loss(charts.epsilon)}.",
            _HEIGHTS[1],
        ),
    )
    for found, title, text, height in kinds:
        if found:
            yield Figure(
                title=title,
                text=text,
                label=f"{title}.{named}",
                choices=("Scale",),
                charts={
                    (name,): finished(chart, charts.datasets(), height=height)
                    for name, chart in found.items()
                },
            )


def _tables(document: dict[str, Any]) -> Iterator[Table]:
    words = Words(document["settings"]["epsilon_mode"] == "relative")
    many = len(document["curves"]) > _MANY
    for label, curve in curves_of(document):
        parts = list(dict.fromkeys(name for p in curve["points"] for name in p.get("parts") or {}))
        head = ("sparsity", "of all parameters", "score", "95% interval", "loss", "95% interval",
                *parts, "time", "note")  # fmt: skip
        yield Table(
            caption=label,
            head=head,
            rows=tuple(_row(point, parts, words) for point in curve["points"]),
            left=(len(head) - 1,),
            folded=many,
        )


def _row(point: dict[str, Any], parts: Sequence[str], words: Words) -> tuple[str, ...]:
    found = point.get("parts") or {}
    return (
        percent(point["sparsity"]),
        percent(point.get("overall")),
        score_text(point.get("score")),
        interval(point.get("low"), point.get("high")),
        words.loss(point.get("change")),
        loss_interval(words, point),
        *(score_text(found[name]) if name in found else "" for name in parts),
        numbers.duration(point["seconds"]) if point.get("seconds") is not None else "",
        str(point.get("failed") or _seeds(point)),
    )


def _seeds(point: dict[str, Any]) -> str:
    """The score of each seed, if there are several."""
    seeds = point.get("seeds") or {}
    if len(seeds) < 2:
        return ""
    return ", ".join(f"seed {seed}: {score_text(score)}" for seed, score in seeds.items())


def _facts(document: dict[str, Any]) -> Iterator[Facts]:
    metric = document["metric"]
    better = "higher" if metric["higher_is_better"] else "lower"
    models = [(f"model {model['model']}", model_text(model)) for model in document["models"]]
    protocol = [
        ("metric", f"{metric['name']}, {better} is better"),
        ("samples", f"{metric['samples']:,} {metric.get('unit', '')}".strip()),
        *flat({key: value for key, value in metric["record"].items() if key != "metric"}),
    ]
    yield run_facts(document, *models)
    yield Facts("Metric", tuple(protocol))
    yield Facts("Settings", tuple(flat(document["settings"])))
    yield Facts("Machine", tuple(flat(document["machine"])))
