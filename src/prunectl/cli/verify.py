"""``prunectl verify``: whether an output is what its manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.errors import DIFFERENCE
from prunectl.cli.model_argument import ModelChoice
from prunectl.cli.output import Output
from prunectl.errors import InvalidOption
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint

EPILOG = options.examples(
    "prunectl verify out/",
    "prunectl verify out/ --source ./my-model",
    "prunectl verify out/ --no-source -q && echo intact",
    "prunectl verify out/ --json | jq .differences",
)


def verify(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            show_default=False,
            parser=expanded,
            help="A folder that prune or export has written.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="MODEL",
            help="The model it was made from; default: what the manifest says.",
        ),
    ] = None,
    no_source: Annotated[
        bool,
        typer.Option("--no-source", help="Do not compare with the source, only with the manifest."),
    ] = False,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    jobs: options.Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Read an output again and compare it with its manifest and, where reachable, its source.

    Exit code 0: all is as it should be. 3: differences were found; they are listed.
    """
    out = Output(json=json, quiet=quiet, verbose=verbose)
    if source is not None and no_source:
        raise InvalidOption("--source and --no-source are both given", hint="leave one of them out")
    if source is None and revision:
        raise InvalidOption(
            "--revision says which --source is meant, and none is given",
            hint="add --source MODEL",
        )
    compared: Checkpoint | Literal["auto"] | None = None if no_source else "auto"
    if source is not None:
        choice = ModelChoice(source, revision)
        compared = options.open_source(choice, token, cache_dir, trust_remote_code, out)
        options.warn_of(compared, out)
    from prunectl.verification.verb import verify

    with out.progress() as on_event:
        report = verify(
            folder,
            source=compared,
            token=token,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            jobs=jobs,
            ranks=options.ranks_of(context),
            on_event=on_event,
        )
    if json:
        out.data(report.to_json())
    else:
        from prunectl.cli.verify_screen import verify_screen

        out.show(*verify_screen(report, everything=verbose))
    if not report.ok:
        if quiet and not json:
            failed = ", ".join(check.name for check in report.checks if check.passed is False)
            count = numbers.plural(len(report.differences), "difference")
            out.warn(f"{folder}: {count} ({failed})")
        raise typer.Exit(DIFFERENCE)
