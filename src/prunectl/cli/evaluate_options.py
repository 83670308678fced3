"""The options of metrics, for ``evaluate`` and ``sweep``."""

from __future__ import annotations

from typing import Annotated

import typer

from prunectl.evaluation.metrics import METRICS, taking
from prunectl.numbers import listed


def _for(option: str, text: str) -> str:
    """The help of an option that only some metrics take."""
    return f"{listed(taking(option))}: {text}"


Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        "-m",
        metavar="METRIC",
        help=listed(
            f"{name}:{spec.argument}" if spec.argument else name for name, spec in METRICS.items()
        )
        + ".",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="text:FILE (repeatable), hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]], a table (CSV, JSONL, "
        "Parquet) or a folder of them. The model demo has its own text.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        help="Windows, questions or rows to measure on, at most; default: all.",
        show_default=False,
    ),
]
SequenceLength = Annotated[
    int | None,
    typer.Option(
        "--sequence-length",
        metavar="N",
        help="Tokens in a window or a row, at most what the model takes.",
        show_default=False,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="N",
        help=_for("stride", "tokens from one window to the next; default: no overlap."),
        show_default=False,
    ),
]
Shots = Annotated[
    int,
    typer.Option("--shots", metavar="N", help=_for("shots", "solved examples in the prompt.")),
]
Protocol = Annotated[
    str,
    typer.Option(
        "--protocol",
        metavar="PROTOCOL",
        help=_for("protocol", "letters (A to D, as MMLU), text (of the options, as ARC), or auto."),
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        help=_for("max_new_tokens", "tokens of an answer at most; default: 64."),
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Samples at once; halved where memory is full.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of all that is drawn.")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Of the weights in memory; auto: float32 on the CPU, else the checkpoint's.",
    ),
]
