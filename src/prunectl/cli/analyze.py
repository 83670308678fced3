"""``prunectl analyze``: what is in a checkpoint, and what pruning would take from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl import numbers
from prunectl.cli import options
from prunectl.cli.model_argument import remember_model
from prunectl.cli.output import Output
from prunectl.errors import InvalidOption
from prunectl.option import MEASURING, OUTPUT, Fields, Option, device_option
from prunectl.pattern import COMMON_NMS_OR_NONE, parse_added_nms

if TYPE_CHECKING:
    from prunectl.checkpoint.remote import RemoteModel

EXAMPLES = (
    "prunectl analyze sentence-transformers/all-MiniLM-L6-v2",
    "prunectl analyze ./my-model --all | less",
    "prunectl analyze org/name@v1.0 --pattern 4:8 --pattern 1:4",
    "prunectl analyze ./my-model --pattern none -o analysis.json",
    "prunectl analyze ./my-model --json | jq .thresholds",
    "prunectl analyze ./my-model --html analysis.html",
)


def analyze(
    context: typer.Context,
    source: options.OneModel,
    saved: Annotated[options.Saved, Fields(only=("output", "html"))],
    out: Output,
    pattern: Annotated[
        tuple[str, ...],
        Option(
            "Also measure N kept of every M weights, besides 2:4 (repeatable); 'none' drops 2:4.",
            "N:M",
            MEASURING,
            short="-p",
            values=COMMON_NMS_OR_NONE,
        ),
    ] = (),
    everything: Annotated[
        bool,
        Option("Show every layer, every threshold and every tensor.", heading=OUTPUT, name="--all"),
    ] = False,
    remote: options.Remote = False,
    no_cache: options.NoCache = False,
    device: Annotated[
        str,
        device_option(
            "the CPU",
            "Where weights of 8 and 16 bits are counted, with the same results: auto (the CPU), "
            "cpu, cuda or cuda:N. fp32 and fp64 stay with the CPU.",
        ),
    ] = "auto",
    jobs: options.Jobs = None,
) -> None:
    """Measure a checkpoint: magnitudes, thresholds, and what sparsity would cost.

    Reads the weights once, exactly and in little memory. The result is kept, so that a prune that
    follows need not read them again.
    """
    patterns = parse_added_nms(pattern)
    saved.check()
    if remote:
        _refuse_weights(pattern, saved.html, device)
        found = source.open_headers(source.choose(out), jobs, out)
        _show_remote(found, saved, everything, out)
        return
    choice = source.choose(out)
    checkpoint = source.open(choice, out)
    options.keep_source(checkpoint, saved.named)
    options.warn_of(checkpoint, out)
    from prunectl.analysis.verb import analyze
    from prunectl.cli.analyze_screen import analysis_screen
    from prunectl.report.analyze_page import analyze_page

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
    if out.verbose:
        how = "kept from before" if analysis.from_cache else "from all weights"
        out.note(f"analysis {how}, {numbers.duration(analysis.seconds)}")
    command = source.command(context, choice, checkpoint)
    saved.save(out, analysis.to_json(), html=lambda: analyze_page(analysis, command))
    out.data(analysis.to_json())
    out.show(*analysis_screen(analysis, everything=everything, verbose=out.verbose))
    if not out.json:
        for warning in analysis.warnings:
            out.warn(warning)


def _refuse_weights(pattern: tuple[str, ...], html: Path | None, device: str) -> None:
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


def _show_remote(remote: RemoteModel, saved: options.Saved, everything: bool, out: Output) -> None:
    from prunectl.analysis.remote import analyze_remote
    from prunectl.cli.analyze_screen import remote_screen

    analysis = analyze_remote(remote, Path.cwd())
    saved.save(out, analysis.to_json())
    out.data(analysis.to_json())
    out.show(*remote_screen(analysis, everything=everything, verbose=out.verbose))
    for warning in analysis.warnings:
        out.warn(warning)
