"""``prunectl analyze``: what is in a checkpoint, and what pruning would take from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl import numbers
from prunectl.cli import device_options, options
from prunectl.cli.html import Html, check_page, save_page
from prunectl.cli.model_argument import choose_model, remember_model
from prunectl.cli.output import Output, as_json, check_file, save_text
from prunectl.errors import InvalidOption
from prunectl.pattern import NM, distinct_nms
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.checkpoint.remote import RemoteModel

EPILOG = options.examples(
    "prunectl analyze sentence-transformers/all-MiniLM-L6-v2",
    "prunectl analyze ./my-model --all | less",
    "prunectl analyze org/name@v1.0 --pattern 4:8 --pattern 1:4",
    "prunectl analyze ./my-model --pattern none -o analysis.json",
    "prunectl analyze ./my-model --json | jq .thresholds",
    "prunectl analyze ./my-model --html analysis.html",
)


def analyze(
    context: typer.Context,
    model: options.Model = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern",
            "-p",
            metavar="N:M",
            help="Also measure N kept of every M weights, besides 2:4 (repeatable); "
            "'none' drops 2:4.",
        ),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Show every layer, every threshold and every tensor.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            parser=expanded,
            help="Save the analysis as JSON.",
        ),
    ] = None,
    html: Html = None,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    remote: options.Remote = False,
    no_cache: options.NoCache = False,
    device: device_options.CountingDevice = "auto",
    jobs: options.Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure a checkpoint: magnitudes, thresholds, and what sparsity would cost.

    Reads the weights once, exactly and in little memory. The result is kept, so that a prune that
    follows need not read them again.
    """
    out = Output(json=json, quiet=quiet, verbose=verbose)
    patterns = wanted_patterns(pattern or [])
    if output is not None:
        check_file(output)
    check_page(html, output)
    if remote:
        _refuse_weights(pattern, html, device)
        chosen = choose_model(model, revision, out)
        found = options.open_headers(chosen, token, cache_dir, trust_remote_code, jobs, out)
        _show_remote(found, output, all_, out)
        return
    chosen = choose_model(model, revision, out)
    checkpoint = options.open_source(chosen, token, cache_dir, trust_remote_code, out)
    options.keep_source(checkpoint, (output, html))
    options.warn_of(checkpoint, out)
    from prunectl.analysis.verb import analyze

    ranks = options.ranks_of(context)
    with out.progress() as on_event:
        analysis = analyze(
            checkpoint,
            patterns=patterns,
            use_cache=not no_cache,
            jobs=jobs,
            device=device,
            ranks=ranks,
            on_event=on_event,
        )
    if not ranks.is_first:
        return
    remember_model(checkpoint)
    if verbose:
        how = "kept from before" if analysis.from_cache else "from all weights"
        out.note(f"analysis {how}, {numbers.duration(analysis.seconds)}")
    if output:
        save_text(output, as_json(analysis.to_json()))
        out.note(f"saved: {output}")
    if html:
        from prunectl.report.analyze_page import analyze_page

        command = options.command_of(context, model, chosen, checkpoint)
        save_page(html, analyze_page(analysis, command), out)
    if json:
        out.data(analysis.to_json())
        return
    from prunectl.cli.analyze_screen import analysis_screen

    out.show(*analysis_screen(analysis, everything=all_, verbose=verbose))
    for warning in analysis.warnings:
        out.warn(warning)


def _refuse_weights(pattern: list[str] | None, html: Path | None, device: str) -> None:
    asked = (
        ("--pattern is", pattern),
        ("--html shows what is", html),
        ("--device is for what is", device != "auto"),
    )
    for option, given in asked:
        if given:
            raise InvalidOption(
                f"{option} measured on the weights, which --remote does not read",
                hint="leave one of them out",
            )


def _show_remote(remote: RemoteModel, output: Path | None, all_: bool, out: Output) -> None:
    from prunectl.analysis.remote import analyze_remote
    from prunectl.cli.remote_screen import remote_screen

    analysis = analyze_remote(remote, Path.cwd())
    if output:
        save_text(output, as_json(analysis.to_json()))
        out.note(f"saved: {output}")
    if out.json:
        out.data(analysis.to_json())
    out.show(*remote_screen(analysis, everything=all_, verbose=out.verbose))
    for warning in analysis.warnings:
        out.warn(warning)


def wanted_patterns(texts: list[str]) -> tuple[NM, ...]:
    """2:4 unless ``none`` is among the texts, then what they add, each once and in order.

    Raises:
        InvalidPattern: neither N:M nor ``none``.
    """
    named = [text for text in texts if text.strip().lower() != "none"]
    first = [NM(2, 4)] if len(named) == len(texts) else []
    return distinct_nms([*first, *named])
