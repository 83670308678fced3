"""A trace as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from prunectl import numbers
from prunectl.cli.tables import columns, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.studies.trace.result import Series, Trace, TracePoint

WIDTH, HEIGHT = 60, 12
SHOWN = "near zero 0.01*std"
"""The series of the chart."""


def trace_screen(result: Trace) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    known = "step" if result.steps_known else "place"
    size = f"{numbers.plural(result.tensors, 'matrix')}, {numbers.plural(result.weights, 'weight')}"
    yield heading(f"{numbers.plural(len(result.points), 'checkpoint')} of {size}")
    lost = [one for one in result.series if one.name.startswith("lost")]
    yield columns(
        (known, "zero", "|w| <= 0.001", "0.01*std", "std", "median |w|", *(s.name for s in lost)),
        [_cells(point, at, lost) for at, point in enumerate(result.points)],
    )
    chart = _chart(result)
    if chart.plain:
        yield Text("")
        yield chart
    for text in result.findings:
        yield sentence(text)


def _cells(point: TracePoint, at: int, lost: list[Series]) -> tuple[str, ...]:
    stats = point.stats
    return (
        f"{point.step:,}",
        numbers.share(stats.zeros / stats.weights),
        numbers.share(stats.near_zero["0.001"] / stats.weights, 2),
        numbers.share(stats.near_zero["0.01*std"] / stats.weights, 2),
        numbers.real(stats.std),
        numbers.real(stats.quantiles["0.5"]),
        *(numbers.share(series.values[at], 2) for series in lost),
    )


def _chart(result: Trace) -> Text:
    from uniplot import plot_to_string

    (series,) = (one for one in result.series if one.name == SHOWN)
    values = [100 * value for value in series.values]
    if len(set(values)) < 2:
        return Text("")
    steps = [float(point.step) for point in result.points]
    marks = [float(step) for step in (series.change.start, series.change.end)] \
        if series.change else []  # fmt: skip
    text = plot_to_string(
        xs=steps,
        ys=values,
        lines=True,
        width=WIDTH,
        height=HEIGHT,
        title="weights within 1% of the standard deviation, over the steps",
        character_set="braille",
        y_unit="%",
        x_gridlines=marks,
        y_gridlines=[],
    )
    return Text.from_ansi(str(text))
