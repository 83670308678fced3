"""``prunectl sweep``: what sparsity costs a model, and how much of it is free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.cli import options
from prunectl.cli.command_line import ARGV, recorded_command
from prunectl.cli.errors import FAILED, INTERRUPTED
from prunectl.cli.model_argument import ModelChoice, choose_model
from prunectl.cli.output import Output
from prunectl.cli.signatures import Given
from prunectl.errors import InvalidOption
from prunectl.option import CALIBRATION, OUTPUT, Fields, Option
from prunectl.output.osfiles import os_errors, real_path
from prunectl.plan.settings import Calibration, PruneSettings
from prunectl.studies.sweep.settings import SweepSettings

if TYPE_CHECKING:
    from rich.text import Text

    from prunectl.studies.sweep.result import SweepResult

EXAMPLES = (
    "prunectl sweep demo --sparsity 0.2,0.4 --samples 8",
    "prunectl sweep demo -s 0.1,0.3 --samples 8 --pattern unstructured,2:4 --html out.html",
    "prunectl sweep org/name --data text:my-text.txt -s 0:0.4:0.2 -o sweep.json",
    "prunectl sweep org/name my-model --data text:my-text.txt -s 0.3 --png curves.png",
)
_SAMPLES = Option("Samples to calibrate on.", "N", CALIBRATION, "--calibration-samples", least=1)
_LENGTH = Option(
    "Tokens in a calibration sample.", "N", CALIBRATION, "--calibration-length", least=1
)
_NAMES = {"samples": "calibration-samples", "sequence_length": "calibration-length"}
"""Options of a calibration that have other names here, where a metric has samples too."""


def sweep(
    context: typer.Context,
    curves: Given[SweepSettings],
    pruning: Annotated[
        Given[PruneSettings],
        Fields(only=("method", "scope", "include", "exclude", "budget", "refine", "reconstruct")),
    ],
    calibration: Annotated[
        Given[Calibration],
        Fields(
            only=("source", "samples", "sequence_length"),
            instead={"samples": _SAMPLES, "sequence_length": _LENGTH},
        ),
    ],
    saved: options.Saved,
    access: options.RevisionAccess,
    out: Output,
    models: Annotated[
        tuple[str, ...],
        Option(
            "One or several: Hub id (org/name or org/name@revision), folder, or demo. Left out: "
            "as for the other commands.",
            "MODEL...",
            is_argument=True,
        ),
    ] = (),
    results: Annotated[
        Path | None,
        Option(
            "Keep the measured points here, not in the user's cache.",
            "FILE",
            OUTPUT,
            suffix=".json",
        ),
    ] = None,
    no_cache: Annotated[
        bool, Option("Measure every point anew, and keep none.", heading=OUTPUT)
    ] = False,
    jobs: options.Jobs = None,
) -> None:
    """Measure a model's score along rising sparsity, and its essential sparsity.

    That is the largest sparsity whose loss is within --epsilon: what is free for this model, on
    these data, by this metric. Each point is kept as it is measured: the same command, given again
    after Ctrl-C, goes on.
    """
    from prunectl.report.sweep_page import sweep_page, sweep_picture
    from prunectl.studies.sweep.result import sweep_csv
    from prunectl.studies.sweep.verb import sweep

    _check_files(saved, results)
    if "step" in curves.typed and curves.values["sparsity"].strip() != "auto":
        raise InvalidOption(
            "--step is for --sparsity auto, but the points are given",
            hint=f"leave one of them out, or write --sparsity 0:0.9:{curves.typed['step']:g}",
        )
    method, refine, reconstruct = (
        pruning.values[name] for name in ("method", "refine", "reconstruct")
    )
    device = curves.values["evaluation"].device
    choices = _choose(list(dict.fromkeys(models)) or [None], access, out)
    samples = options.calibration_of(
        calibration, choices[0].model, method, refine, reconstruct, device, _NAMES
    )
    settings = curves.make(pruning=pruning.make(calibration=samples))
    opened = [access.open(one, out, compressed=True) for one in choices]
    for one in opened:
        options.keep_source(one, saved.named)
    screen = _Live(out, str(settings.tolerance.mode))
    with out.progress(above=screen.chart) as on_event:
        result = sweep(
            opened,
            settings,
            results=results,
            use_cache=not no_cache,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
            on_result=screen.update,
        )
    from prunectl.cli.sweep_screen import sweep_screen

    document = result.to_json()
    out.data(document)
    out.show(*sweep_screen(result, everything=out.verbose))
    saved.save(
        out,
        document,
        csv=lambda: sweep_csv(result),
        html=lambda: sweep_page(document),
        png=lambda: sweep_picture(document, "png"),
        svg=lambda: sweep_picture(document, "svg"),
    )
    _end(result, out, kept=results is not None or not no_cache)


def _check_files(saved: options.Saved, results: Path | None) -> None:
    if results is not None:
        with os_errors(results):
            real_path(results)
    saved.check(*([results] if results else []))


def _choose(
    models: list[str | None], access: options.RevisionAccess, out: Output
) -> list[ModelChoice]:
    if access.revision is not None and len(models) > 1:
        raise InvalidOption("--revision is for one model", hint="write org/name@revision for each")
    return [choose_model(one, access.revision, out) for one in models]


def _end(result: SweepResult, out: Output, *, kept: bool) -> None:
    """The exit code that a result deserves."""
    from prunectl.studies.sweep.result import Status

    if result.interrupted:
        if kept:
            out.warn("the measurements are kept: the same command continues from there")
        raise typer.Exit(INTERRUPTED)
    if all(one.essential.status in (Status.FAILED, Status.UNLEARNED) for one in result.curves):
        if out.json or out.quiet:  # a screen has said so
            for one in result.curves:
                out.warn(f"{one.label}: {one.essential.text}")
        raise typer.Exit(FAILED)


class _Live:
    """What is shown while a sweep runs: a chart above the bars, or a line a point."""

    def __init__(self, out: Output, mode: str) -> None:
        self._out, self._mode = out, mode
        self._chart: Text | None = None
        self._told: set[tuple[str, float]] = set()

    def update(self, result: SweepResult) -> None:
        from prunectl.cli.sweep_screen import chart, point_line

        if self._out.draws_bars:
            self._chart = chart(result)  # once for each point, and not ten times a second
            return

        curve = result.curves[-1]
        for point in curve.points:
            if (place := (curve.label, point.requested)) not in self._told:
                self._told.add(place)
                self._out.note(point_line(curve, point, self._mode))

    def chart(self) -> Text:
        from rich.text import Text

        return self._chart or Text("")
