"""``prunectl verify``: whether an output is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.errors import DIFFERENCE
from prunectl.cli.model_argument import ModelChoice
from prunectl.cli.output import Output
from prunectl.cli.tables import columns, heading, sentence
from prunectl.errors import InvalidOption
from prunectl.option import COMPARING, Option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.verification.result import VerifyReport

EXAMPLES = (
    "prunectl verify out/",
    "prunectl verify out/ --source ./my-model",
    "prunectl verify out/ --no-source -q && echo intact",
    "prunectl verify out/ --json | jq .differences",
)


def verify(
    context: typer.Context,
    folder: Annotated[
        Path, Option("A folder that prune or export has written.", "DIR", is_argument=True)
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
    jobs: options.Jobs = None,
) -> None:
    """Read an output again and compare it with its manifest and, where reachable, its source.

    Exit code 0: all is as it should be. 3: differences were found; they are listed.
    """
    if source is not None and no_source:
        raise InvalidOption("--source and --no-source are both given", hint="leave one of them out")
    if source is None and access.revision:
        raise InvalidOption(
            "--revision needs --source",
            hint="add --source MODEL",
        )
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
    out.data(report.to_json())
    out.show(*verify_screen(report, everything=out.verbose))
    if not report.ok:
        if out.quiet and not out.json:
            failed = ", ".join(check.name for check in report.checks if check.passed is False)
            count = numbers.plural(len(report.differences), "difference")
            out.warn(f"{folder}: {count} ({failed})")
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
