"""``prunectl export``: store a checkpoint smaller, or make it dense again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.cli import options, push_options
from prunectl.cli.model_argument import choose_model
from prunectl.cli.output import Output
from prunectl.errors import InvalidOption
from prunectl.layouts.table import AUTO, CODINGS, DENSE
from prunectl.numbers import listed
from prunectl.pattern import parse_nm
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint

_OTHERS = list(CODINGS)

EPILOG = options.examples(
    "prunectl export out/ -o small/",
    f"prunectl export out/ -o small/ --layout {_OTHERS[-1]}",
    f"prunectl export small/ -o dense/ --layout {DENSE}",
    "prunectl export out/ --masks-only -o masks.safetensors",
    "prunectl export out/ -o small/ --push org/name-small",
)


def export(
    context: typer.Context,
    model: options.Model = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=expanded,
            help="Folder to write; with --masks-only, the file.",
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            "-l",
            metavar="LAYOUT",
            help=f"How weights are stored: {AUTO} (the smallest for each tensor), {DENSE} (what "
            f"everything loads), {listed(_OTHERS)}.",
        ),
    ] = AUTO,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            "-p",
            metavar="N:M",
            help="The N:M that tensors follow; default: what the manifest says.",
        ),
    ] = None,
    masks_only: Annotated[
        bool,
        typer.Option(
            "--masks-only", help="Write only which weights are kept, for prunectl prune --mask."
        ),
    ] = False,
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size", metavar="SIZE", help="Largest weights file, before compression."
        ),
    ] = "5GB",
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is at --output, once all is written.")
    ] = False,
    push: push_options.Push = None,
    push_revision: push_options.PushRevision = None,
    private: push_options.Private = False,
    create_pr: push_options.CreatePr = False,
    commit_message: push_options.CommitMessage = None,
    revision: options.Revision = None,
    token: options.Token = None,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    jobs: options.Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Store a checkpoint in fewer bytes, without losing a bit; or make a stored one dense again.

    Compressed folders are read by prunectl.load_model and prunectl.load_state_dict, and by
    transformers after 'import prunectl'. Nothing else loads them: --layout dense is the way back.
    """
    out = Output(json=json, quiet=quiet, verbose=verbose)
    if masks_only and (layout != AUTO or pattern or max_shard_size != "5GB"):
        raise InvalidOption(
            "--masks-only writes one file of bits: --layout, --pattern and --max-shard-size have "
            "no meaning with it",
            hint="leave them out",
        )
    groups = None if pattern is None else parse_nm(pattern)
    shard_size = options.parsed_size(max_shard_size)
    if output is None:
        raise InvalidOption("no output given", hint="add -o FILE" if masks_only else "add -o DIR")
    after = push_options.PushAfter(
        push, push_revision, private, create_pr, commit_message, token, trust_remote_code, jobs
    )
    after.check()
    if push and masks_only:
        raise InvalidOption(
            "masks alone are no model to push", hint="leave --masks-only or --push out"
        )
    choice = choose_model(model, revision, out)
    checkpoint = options.open_source(
        choice, token, cache_dir, trust_remote_code, out, compressed=True
    )
    ranks = options.ranks_of(context)
    if masks_only:
        if ranks.is_first:  # one file, of bits that are there already
            _masks(checkpoint, output, force, jobs, out)
        return
    from prunectl.exporting.verb import export

    with out.progress() as on_event:
        result = export(
            checkpoint,
            output,
            layout,
            pattern=groups,
            max_shard_size=shard_size,
            force=force,
            jobs=jobs,
            ranks=ranks,
            command=options.command_of(context, model, choice, checkpoint),
            on_event=on_event,
        )
    if not ranks.is_first:
        return
    if not json:
        from prunectl.cli.export_screen import export_screen

        out.show(*export_screen(result, everything=verbose))
    pushed = after.push(result.output, out)
    out.data(result.to_json() | push_options.document(pushed))


def _masks(
    checkpoint: Checkpoint, output: Path, force: bool, jobs: int | None, out: Output
) -> None:
    from prunectl.cli.export_screen import masks_screen
    from prunectl.exporting.masks import export_masks

    with out.progress() as on_event:
        result = export_masks(checkpoint, output, force=force, jobs=jobs, on_event=on_event)
    if out.json:
        out.data(result.to_json())
    else:
        out.show(*masks_screen(result))
