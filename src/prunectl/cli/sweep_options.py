"""The options of ``sweep`` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunectl.studies.sweep.settings import EpsilonMode
from prunectl.userdirs import expanded

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        show_default=False,
        help="One or several: Hub id (org/name or org/name@revision), folder, or demo. Left out: "
        "as for the other commands.",
    ),
]
Sparsity = Annotated[
    str,
    typer.Option(
        "--sparsity",
        "-s",
        metavar="GRID",
        help="auto (steps of 10%, then a search around the turning point), START:STOP:STEP, or a "
        "list such as 0.1,0.2,0.5.",
    ),
]
Step = Annotated[
    float | None,
    typer.Option(
        "--step",
        metavar="SHARE",
        help="How close auto comes to the turning point; default: 0.01.",
        show_default=False,
    ),
]
Pattern = Annotated[
    list[str] | None,
    typer.Option(
        "--pattern",
        "-p",
        metavar="PATTERN",
        help="A curve each (repeatable, or with commas): unstructured, or N:M such as 2:4; "
        "default: unstructured.",
        show_default=False,
    ),
]
Epsilon = Annotated[
    float, typer.Option("--epsilon", metavar="SHARE", help="The loss that counts as free.")
]
Mode = Annotated[
    EpsilonMode,
    typer.Option(
        "--epsilon-mode", help="Of the dense model's score, or in the metric's own units."
    ),
]
Seeds = Annotated[
    str,
    typer.Option(
        "--seeds",
        metavar="N[,N]",
        help="Of training and calibration; each point is measured with each.",
    ),
]
CalibrationSamples = Annotated[
    int | None,
    typer.Option(
        "--calibration-samples",
        metavar="N",
        min=1,
        help="Samples to calibrate on; default: 128.",
        show_default=False,
    ),
]
CalibrationLength = Annotated[
    int | None,
    typer.Option(
        "--calibration-length",
        metavar="N",
        min=1,
        help="Tokens in a calibration sample; default: 2048.",
        show_default=False,
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE",
        parser=expanded,
        help="Keep the measured points here, not in the user's cache.",
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Measure every point anew, and keep none.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", parser=expanded, help="Save all as JSON."),
]
Csv = Annotated[
    Path | None,
    typer.Option("--csv", metavar="FILE", parser=expanded, help="Save points as CSV."),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        parser=expanded,
        help="Save an interactive page that needs nothing else.",
    ),
]
Png = Annotated[
    Path | None,
    typer.Option("--png", metavar="FILE", parser=expanded, help="Save the chart."),
]
Svg = Annotated[
    Path | None,
    typer.Option("--svg", metavar="FILE", parser=expanded, help="Save the chart."),
]
