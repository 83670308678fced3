"""``prunectl trace``: how prunable weights become over a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.command_line import ARGV, recorded_command
from prunectl.cli.output import Output
from prunectl.cli.tables import columns, heading, line, sentence
from prunectl.errors import InvalidOption
from prunectl.option import HUB, Fields, Option
from prunectl.studies.settings import TraceSettings

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.studies.trace.result import Series, Trace, TracePoint

EXAMPLES = (
    "prunectl trace run/",
    "prunectl trace run/checkpoint-10 run/checkpoint-20 --pattern 4:8",
    "prunectl trace org/name --revisions step1000,step2000",
    "prunectl trace run/ --sparsity 0.5 --json | jq .findings",
)


def trace(
    context: typer.Context,
    models: Annotated[
        tuple[str, ...],
        Option(
            "Checkpoints of one training: folders, weights files, org/name@revision; or a folder "
            "of checkpoint-* folders.",
            "MODEL...",
            is_argument=True,
        ),
    ],
    settings: TraceSettings,
    saved: Annotated[options.Saved, Fields(only=("output", "html"))],
    access: options.Access,
    out: Output,
    revisions: Annotated[
        str | None,
        Option(
            "Revisions of the one MODEL on the Hub, such as step1000,step2000.", "REV,REV...", HUB
        ),
    ] = None,
    drop: Annotated[
        bool,
        Option("Delete what was downloaded for a revision once it is measured.", heading=HUB),
    ] = False,
    no_cache: options.NoCache = False,
    jobs: options.Jobs = None,
) -> None:
    """Follow magnitudes over a training: near-zero weights, and what pruning would take.

    Finds the steps between which weights abruptly become sparse, and tests whether later
    checkpoints are more prunable. One checkpoint is looked at at a time. Needs pip install
    'prunectl[trace]'.
    """
    from prunectl.report.trace_page import trace_page
    from prunectl.studies.trace.verb import trace

    saved.check()

    def opened(model: str) -> Checkpoint:
        found = access.open(model, out, compressed=True)
        options.keep_source(found, saved.named)
        return found

    with out.progress() as on_event:
        result = trace(
            _named(list(models), revisions),
            settings,
            open_one=opened,
            drop=drop,
            cache_dir=access.cache_dir,
            use_cache=not no_cache,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
            on_point=None if out.draws_bars else partial(_say, out),
        )
    document = result.to_json()
    saved.save(out, document, html=lambda: trace_page(document))
    out.data(document)
    out.show(*trace_screen(result))


def _named(models: list[str], revisions: str | None) -> list[str]:
    from prunectl.checkpoint.opening import local_path

    for one in models:
        with suppress(ValueError):
            float(one)
            hint = "separate the values of an option with commas: -s 0.2,0.4"
            raise InvalidOption(f"MODEL '{one}' is a number", hint=hint)
    if revisions is None:
        return models
    names = [one.strip() for one in revisions.split(",") if one.strip()]
    if len(models) > 1 or not names or "@" in models[0] or local_path(models[0]) is not None:
        raise InvalidOption(
            "--revisions needs one MODEL on the Hub", hint="such as --revisions step1000,step2000"
        )
    return [f"{models[0]}@{one}" for one in names]


def _say(out: Output, point: TracePoint) -> None:
    out.note(f"{point.label}: measured")


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
        yield line("")
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
        return line("")
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
    from rich.text import Text

    return Text.from_ansi(str(text))
