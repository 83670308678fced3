"""``prunectl trace``: how prunable weights become over a training."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.cli import options, sweep_options
from prunectl.cli.analyze import wanted_patterns
from prunectl.cli.command_line import ARGV, recorded_command
from prunectl.cli.html import Html, check_page, save_page
from prunectl.cli.lists import numbers_of
from prunectl.cli.model_argument import ModelChoice
from prunectl.cli.output import Output, as_json, check_file, save_text
from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.studies.trace.result import TracePoint

EPILOG = options.examples(
    "prunectl trace run/",
    "prunectl trace run/checkpoint-10 run/checkpoint-20 --pattern 4:8",
    "prunectl trace org/name --revisions step1000,step2000",
    "prunectl trace run/ --sparsity 0.5 --json | jq .findings",
)


def trace(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Checkpoints of one training: folders, weights files, org/name@revision; or a "
            "folder of checkpoint-* folders.",
        ),
    ],
    revisions: Annotated[
        str | None,
        typer.Option(
            "--revisions",
            metavar="REV,REV...",
            help="Revisions of the one MODEL on the Hub, such as step1000,step2000.",
        ),
    ] = None,
    drop: Annotated[
        bool,
        typer.Option(
            "--drop",
            help="Delete what was downloaded for a revision once it is measured.",
        ),
    ] = False,
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            "--sparsity",
            "-s",
            metavar="SHARE",
            show_default=False,
            help="Follow what global pruning to this takes (repeatable, or with commas); default: "
            "0.2,0.4,0.6.",
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern",
            "-p",
            metavar="N:M",
            help="Also follow what this pattern takes, besides 2:4 (repeatable); 'none' drops 2:4.",
        ),
    ] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    output: sweep_options.Output = None,
    html: Html = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    no_cache: options.NoCache = False,
    jobs: options.Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Follow magnitudes over a training: near-zero weights, and what pruning would take.

    Finds the steps between which weights abruptly become sparse, and tests whether later
    checkpoints are more prunable. One checkpoint is looked at at a time.
    """
    from prunectl.studies.settings import TraceSettings
    from prunectl.studies.trace.verb import trace

    out = Output(json=json, quiet=quiet, verbose=verbose)
    if output is not None:
        check_file(output)
    check_page(html, output)
    defaults = TraceSettings()
    settings = TraceSettings(
        sparsities=numbers_of(sparsity, "--sparsity") or defaults.sparsities,
        patterns=wanted_patterns(pattern or []),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
    )
    opener = partial(_open, token, cache_dir, trust_remote_code, out, (output, html))
    with out.progress() as on_event:
        result = trace(
            _named(models, revisions),
            settings,
            open_one=opener,
            drop=drop,
            cache_dir=cache_dir,
            use_cache=not no_cache,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
            on_point=None if out.draws_bars else partial(_say, out),
        )
    if output is not None:
        save_text(output, as_json(result.to_json()))
        out.note(f"saved: {output}")
    if html is not None:
        from prunectl.report.trace_page import trace_page

        save_page(html, trace_page(result.to_json()), out)
    if json:
        out.data(result.to_json())
        return
    from prunectl.cli.trace_screen import trace_screen

    out.show(*trace_screen(result))


def _open(
    token: str | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    out: Output,
    writes: tuple[Path | None, ...],
    model: str,
) -> Checkpoint:
    access = (token, cache_dir, trust_remote_code, out)
    found = options.open_source(ModelChoice(model, None), *access, compressed=True)
    options.keep_source(found, writes)
    return found


def _named(models: list[str], revisions: str | None) -> list[str]:
    from prunectl.checkpoint.opening import local_path

    for one in models:
        with suppress(ValueError):
            float(one)
            hint = "several values of an option are written with commas: -s 0.2,0.4"
            raise InvalidOption(f"MODEL '{one}' is a number", hint=hint)
    if revisions is None:
        return models
    names = [one.strip() for one in revisions.split(",") if one.strip()]
    if len(models) > 1 or not names or "@" in models[0] or local_path(models[0]) is not None:
        raise InvalidOption(
            "--revisions is of one MODEL on the Hub", hint="such as --revisions step1000,step2000"
        )
    return [f"{models[0]}@{one}" for one in names]


def _say(out: Output, point: TracePoint) -> None:
    out.note(f"{point.label}: measured")
