"""The options of ``prunectl bench``, and what their texts mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from prunectl.cli.output import check_file
from prunectl.errors import InvalidOption
from prunectl.pattern import NM, parse_nm
from prunectl.userdirs import expanded

Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        metavar="MODEL",
        help="Time this model too (repeatable); the first one is the baseline.",
    ),
]
RandomWeights = Annotated[
    str,
    typer.Option(
        "--random-weights",
        metavar="PRESET|CONFIG",
        help="Instead of MODEL: an architecture without its weights, by a preset (llama-7b, "
        "llama-8b, llama-1b, bert-base, vit-base, t5-base) or a config.json.",
    ),
]
BatchSize = Annotated[
    str, typer.Option("--batch-size", metavar="N,N...", help="Sequences or images at once.")
]
PromptTokens = Annotated[
    str, typer.Option("--prompt-tokens", metavar="N,N...", help="Lengths of the input.")
]
NewTokens = Annotated[
    int | None,
    typer.Option("--new-tokens", metavar="N", help="Tokens to generate after it."),
]
Pattern = Annotated[
    str,
    typer.Option(
        "--pattern",
        "-p",
        metavar="N:M",
        help="How a dense model that comes alone is pruned in memory, to compare it with; "
        "'none' times it alone.",
    ),
]
Kernels = Annotated[
    str,
    typer.Option(
        "--kernels",
        metavar="KERNELS",
        help="For 2:4 weights on CUDA: dense, sparse, or auto (also sparse, where it wins).",
    ),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="DTYPE", help="auto: that of the checkpoint."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Of torch, on the CPU.")
]
Compile = Annotated[
    str,
    typer.Option(
        "--compile",
        metavar="MODE",
        help="torch.compile for all models alike: none, default, or reduce-overhead (CUDA graphs).",
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="FILE",
        parser=expanded,
        help="Take the input from this text; default: random tokens.",
    ),
]
Rounds = Annotated[
    int, typer.Option("--rounds", metavar="N", help="Samples of each model and workload.")
]
Seconds = Annotated[
    float | None,
    typer.Option(
        "--seconds",
        metavar="S",
        help="What timing may take, about: it plans fewer rounds, at least 7. Default: 60, on "
        "CUDA 120.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of all that is random.")]
NoLoad = Annotated[bool, typer.Option("--no-load", help="Do not measure what loading takes.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", parser=expanded, help="Save all as JSON."),
]
Csv = Annotated[
    Path | None,
    typer.Option("--csv", metavar="FILE", parser=expanded, help="Save rows as CSV."),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="FILE",
        parser=expanded,
        help="Show what changed since a result that -o saved.",
    ),
]
FailBelow = Annotated[
    float | None,
    typer.Option(
        "--fail-below",
        metavar="RATIO",
        help="With --compare: exit with 1 if the whole interval of the speed is below this share "
        "of before.",
    ),
]


def numbers(option: str, text: str) -> tuple[int, ...]:
    """``1,8,32``.

    Raises:
        InvalidOption: something else.
    """
    try:
        return tuple(int(part) for part in text.split(",") if text)
    except ValueError:
        raise InvalidOption(
            f"{option} '{text}' is no list of whole numbers", hint=f"such as {option} 1,8,32"
        ) from None


def block_pattern(text: str) -> NM | None:
    """``2:4``, or None for ``none``."""
    return None if text.strip().lower() == "none" else parse_nm(text)


def text_of(path: Path) -> str:
    """The words of a file.

    Raises:
        InvalidOption: it cannot be read, is no text, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidOption(f"--text {path}: {why}") from None
    if not text.strip():
        raise InvalidOption(f"--text {path}: it holds no words")
    return text


def check_files(
    output: Path | None, csv: Path | None, compare: Path | None, fail_below: float | None
) -> None:
    """Find out before the work what cannot be done with its results.

    Raises:
        InvalidOption: options that contradict each other, or a ratio that is none.
        CannotWrite: a file cannot be put there.
    """
    if fail_below is not None and compare is None:
        raise InvalidOption(
            "--fail-below needs a result to compare with", hint="add --compare FILE"
        )
    if fail_below is not None and not 0 < fail_below < math.inf:
        raise InvalidOption("--fail-below must be more than 0, and a number", hint="such as 0.9")
    for file in (output, csv):
        if file:
            check_file(file)
    if output and csv and output.resolve() == csv.resolve():
        raise InvalidOption(f"-o and --csv would both be {output}", hint="name two files")
