"""``prunectl compare``: which weights two models would lose, and whose weights are smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.cli import options, sweep_options
from prunectl.cli.command_line import ARGV, recorded_command
from prunectl.cli.html import Html, check_page, save_page
from prunectl.cli.lists import numbers_of, parts_of
from prunectl.cli.model_argument import ModelChoice
from prunectl.cli.output import Output, as_json, check_file, save_text
from prunectl.errors import InvalidOption
from prunectl.pattern import parse_nm
from prunectl.plan.settings import Scope
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.checkpoint.checkpoint import Checkpoint
    from prunectl.checkpoint.mask_file import MaskFile

EPILOG = options.examples(
    "prunectl compare org/name ./my-model",
    "prunectl compare org/name org/name@v1.0 --sparsity 0.5 --pattern 2:4",
    "prunectl compare ./my-model masks.safetensors --all",
    "prunectl compare org/name ./my-model --json | jq '.masks[].jaccard'",
)
_SIDE = (
    "Hub id (org/name or org/name@revision), folder (dense, pruned or exported), weights file, "
    "demo, or a file of masks."
)


def compare(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="FIRST", help=_SIDE)],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="What it is compared with.")],
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            "--sparsity",
            "-s",
            metavar="SHARE",
            show_default=False,
            help="Compare the masks at these sparsities (repeatable, or with commas); default: 0.1 "
            "to 0.4, or that of the side that is pruned already.",
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern",
            "-p",
            metavar="N:M",
            help="Also compare the masks of this pattern (repeatable, or with commas).",
        ),
    ] = None,
    scope: Annotated[
        Scope, typer.Option("--scope", help="What is compared together to make a mask.")
    ] = Scope.GLOBAL,
    include: options.Include = None,
    exclude: options.Exclude = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Show every layer, and every tensor without a twin.")
    ] = False,
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
    """Compare the masks and the weights of two models of one architecture.

    Masks are those that prune would make; each number is shown with its chance level. A side
    that is pruned already is compared by its zeros.
    """
    from prunectl.studies.compare.verb import compare
    from prunectl.studies.settings import CompareSettings

    out = Output(json=json, quiet=quiet, verbose=verbose)
    if output is not None:
        check_file(output)
    check_page(html, output)
    settings = CompareSettings(
        sparsities=numbers_of(sparsity, "--sparsity"),
        patterns=tuple(parse_nm(one) for one in parts_of(pattern)),
        scope=scope,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
    )
    access = (token, cache_dir, trust_remote_code, out)
    one, other = (_side(given, *access) for given in (first, second))
    for side in (one, other):
        options.keep_source(side, (output, html))
    with out.progress() as on_event:
        result = compare(
            one,
            other,
            settings,
            use_cache=not no_cache,
            jobs=jobs,
            command=recorded_command(context.obj[ARGV]),
            on_event=on_event,
        )
    if output is not None:
        save_text(output, as_json(result.to_json()))
        out.note(f"saved: {output}")
    if html is not None:
        from prunectl.report.compare_page import compare_page

        save_page(html, compare_page(result.to_json()), out)
    if json:
        out.data(result.to_json())
        return
    from prunectl.cli.compare_screen import compare_screen

    out.show(*compare_screen(result, everything=all_))


def _side(
    given: str, token: str | None, cache_dir: Path | None, trust_remote_code: bool, out: Output
) -> Checkpoint | MaskFile:
    from prunectl.checkpoint.mask_file import read_masks
    from prunectl.studies.compare.verb import is_mask_path

    if not given.strip():
        raise InvalidOption("a model's name is empty", hint="give two models, folders or masks")
    path = expanded(given)
    if is_mask_path(path):
        return read_masks(path)
    checkpoint = options.open_source(
        ModelChoice(given, None), token, cache_dir, trust_remote_code, out, compressed=True
    )
    options.warn_of(checkpoint, out)
    return checkpoint
