"""The options of calibrated methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from prunectl.errors import InvalidOption
from prunectl.methods.spec import Needs
from prunectl.methods.table import CALIBRATED, DEFAULT, UPDATING, Method, needing
from prunectl.numbers import listed
from prunectl.plan.settings import CALIBRATED_INSTEAD, Budget, Calibration

MethodOption = Annotated[
    Method,
    typer.Option(
        "--method",
        help=f"How weights are chosen: by {DEFAULT}, or with calibration samples by "
        f"{listed(CALIBRATED)} "
        f"({listed(UPDATING, 'and')} also change the weights that stay).",
    ),
]
Refine = Annotated[
    bool,
    typer.Option(
        "--refine",
        help="Fit the weights that stay to the layers' outputs on the calibration samples, after "
        "any method or mask.",
    ),
]
BudgetOption = Annotated[
    Budget,
    typer.Option(
        "--budget",
        help="N:M with --sparsity: whole matrices take the pattern, or blocks of 16 rows in each.",
    ),
]
Source = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="SOURCE",
        help="text:FILE, hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]], images:FOLDER, pairs:FILE, random, "
        "or demo (repeatable for text). The model demo has its own.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples", metavar="N", help="Calibration samples; default: 128.", show_default=False
    ),
]
SequenceLength = Annotated[
    int | None,
    typer.Option(
        "--sequence-length",
        metavar="N",
        help="Tokens in a sample, at most what the model takes; default: 2048.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", help="Of the choice of samples; default: 0.", show_default=False
    ),
]
Damping = Annotated[
    float | None,
    typer.Option(
        "--damping",
        metavar="RATIO",
        help="Added to the inputs' second moments, in their mean; default: 0.01.",
        show_default=False,
    ),
]
TrueSequential = Annotated[
    bool,
    typer.Option(
        "--true-sequential",
        help="Measure each matrix after the ones before it in its block are pruned (slower).",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Type the samples are run in; auto: fp32 on the CPU, else the checkpoint's.",
        show_default=False,
    ),
]


def calibration_of(
    model: str,
    method: Method,
    refine: bool,
    source: list[str] | None,
    true_sequential: bool,
    called: Mapping[str, str] | None = None,
    **given: object,
) -> Calibration | None:
    """The calibration that options mean; None where there is none.

    Args:
        model: what is pruned: the model ``demo`` brings its own text.
        called: names of options by such a field, where they are others.
        given: other options by their field of :class:`Calibration`; None is left out.

    Raises:
        InvalidOption: options of a calibration, and none is made, or none that uses them; or a
            source that is not there, which is told before a model is fetched.
    """
    needed = method.spec.is_calibrated or refine
    set_ones = {name: value for name, value in given.items() if value is not None}
    if not needed:
        for name in [*(["calibration"] if source else []), *set_ones,
                     *(["true_sequential"] if true_sequential else [])]:  # fmt: skip
            option = (called or {}).get(name, name).replace("_", "-")
            raise InvalidOption(
                f"--{option} is about calibration, and method {method} has none",
                hint=CALIBRATED_INSTEAD,
            )
        return None
    if "damping" in set_ones and method.spec.needs is not Needs.MOMENTS and not refine:
        raise InvalidOption(
            f"--damping is added to second moments, which method {method} does without",
            hint=f"choose --method {listed(needing(Needs.MOMENTS))}, or add --refine",
        )
    texts = tuple(source or (["demo"] if model == "demo" else []))
    if texts:
        from prunectl.data.source import parse_source

        parse_source(texts, "--calibration")
    return Calibration(texts, true_sequential=true_sequential, **set_ones)  # type: ignore[arg-type]
