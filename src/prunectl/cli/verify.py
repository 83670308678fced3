"""``prunectl verify``: whether an output is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.errors import DIFFERENCE
from prunectl.cli.model_argument import ModelChoice
from prunectl.cli.output import Output
from prunectl.cli.tables import columns, heading, sentence
from prunectl.errors import InvalidOption, ModelNotFound
from prunectl.option import COMPARING, Option
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.verification.result import VerifyReport

EXAMPLES = (
    "prunectl verify out/",
    "prunectl verify out/ --source ./my-model",
    "prunectl verify out/ --no-source -q && echo intact",
    "prunectl verify out/ --json | jq .differences",
    "prunectl verify dense/ --mask-of out/",
)


def verify(
    context: typer.Context,
    folder: Annotated[
        Path,
        Option(
            "A folder that prune or export has written; with --mask-of, any model made from one.",
            "DIR",
            is_argument=True,
        ),
    ],
    access: options.RevisionAccess,
    out: Output,
    source: Annotated[
        str | None,
        Option("The model it was made from; default: what the manifest says.", "MODEL", COMPARING),
    ] = None,
    no_source: Annotated[
        bool,
        Option("Do not compare with the source, only with the manifest.", heading=COMPARING),
    ] = False,
    mask_of: Annotated[
        str | None,
        Option(
            "Check instead that every zero of this pruned model is zero in DIR, which another tool "
            "has quantized (compressed-tensors, GPTQ, AWQ, bitsandbytes) or trained.",
            "MODEL",
            COMPARING,
        ),
    ] = None,
    jobs: options.Jobs = None,
) -> None:
    """Read an output again and compare it with its manifest and, where reachable, its source.

    Exit code 0: all is as it should be. 3: differences were found; they are listed.
    """
    if sum((source is not None, no_source, mask_of is not None)) > 1:
        raise InvalidOption(
            "--source, --no-source and --mask-of exclude each other", hint="leave one of them out"
        )
    if source is None and mask_of is None and access.revision:
        raise InvalidOption(
            "--revision needs --source or --mask-of", hint="add --source MODEL or --mask-of MODEL"
        )
    if mask_of is not None:
        _end(_mask_report(context, folder, mask_of, access, jobs, out), out)
        return
    compared: Checkpoint | Literal["auto"] | None = None if no_source else "auto"
    if source is not None:
        compared = access.open(ModelChoice(source, access.revision), out)
        options.warn_of(compared, out)
    from prunectl.verification.verb import verify

    with out.progress() as on_event:
        report = verify(
            folder,
            source=compared,
            token=access.token,
            cache_dir=access.cache_dir,
            trust_remote_code=access.trust_remote_code,
            jobs=jobs,
            ranks=options.ranks_of(context),
            on_event=on_event,
        )
    _end(report, out)


def _mask_report(
    context: typer.Context,
    folder: Path,
    mask_of: str,
    access: options.RevisionAccess,
    jobs: int | None,
    out: Output,
) -> VerifyReport:
    from prunectl.verification.mask import verify_mask

    pruned = access.open(ModelChoice(mask_of, access.revision), out, compressed=True)
    if not expanded(folder).exists():
        raise ModelNotFound(str(folder), "no such file or folder")
    model = access.open(ModelChoice(str(expanded(folder).absolute()), None), out, compressed=True)
    ranks = options.ranks_of(context)
    with out.progress() as on_event:
        report = verify_mask(model, pruned, jobs=jobs, ranks=ranks, on_event=on_event)
    return replace(report, output=folder)


def _end(report: VerifyReport, out: Output) -> None:
    """Show the report, and end with the exit code that it deserves."""
    out.data(report.to_json())
    out.show(*verify_screen(report, everything=out.verbose))
    if not report.ok:
        if out.quiet and not out.json:
            failed = ", ".join(check.name for check in report.checks if check.passed is False)
            count = numbers.plural(len(report.differences), "difference")
            out.warn(f"{report.output}: {count} ({failed})")
        raise typer.Exit(DIFFERENCE)


MOST_DIFFERENCES = 20
_WORDS = {True: "ok", False: "FAILED", None: "not possible"}


def verify_screen(report: VerifyReport, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    yield heading(str(report.output))
    yield columns(
        ("check", "result", "detail"),
        [(check.name, _WORDS[check.passed], check.detail) for check in report.checks],
        left=(0, 1, 2),
    )
    shown = report.differences if everything else report.differences[:MOST_DIFFERENCES]
    if shown:
        yield heading("Differences")
        yield columns(
            ("kind", "where", "detail"),
            [(item.kind, item.where, item.detail) for item in shown],
            left=(0, 1, 2),
        )
    if hidden := len(report.differences) - len(shown):
        yield sentence(f"... and {numbers.count(hidden)} more; -v shows them.")
    yield sentence(_verdict(report))


def _verdict(report: VerifyReport) -> str:
    checked = (
        f"{numbers.plural(report.tensors, 'tensor')} with {report.zeros:,} zeros checked "
        f"in {numbers.duration(report.seconds)}"
    )
    if not report.ok:
        found = numbers.plural(len(report.differences), "difference")
        return f"FAILED: {found}; {checked}."
    skipped = sum(check.passed is None for check in report.checks)
    left = f" {numbers.plural(skipped, 'check')} could not be made." if skipped else ""
    return f"All that could be checked is as it should be: {checked}.{left}" if left else (
        f"All is as it should be: {checked}."
    )  # fmt: skip
