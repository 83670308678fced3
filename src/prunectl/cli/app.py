"""The application: its commands and the options that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from prunectl._version import __version__
from prunectl.cli import (
    analyze,
    bench,
    compare,
    evaluate,
    export,
    lottery,
    prune,
    push,
    sweep,
    trace,
    verify,
)
from prunectl.cli.options import SETTINGS, examples
from prunectl.cli.shell_scripts import SCRIPTS, Shell

# Without markup, help is plain text: it costs no import of rich and pipes well.
app = typer.Typer(
    name="prunectl",
    rich_markup_mode=None,
    add_completion=False,  # --show-completion prints our own scripts
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
app.command(epilog=analyze.EPILOG, short_help="Measure magnitudes, and what sparsity would cost.")(
    analyze.analyze
)
app.command(epilog=prune.EPILOG, short_help="Write a pruned copy of a checkpoint.")(prune.prune)
app.command(epilog=export.EPILOG, short_help="Store a checkpoint smaller, or dense again.")(
    export.export
)
app.command(epilog=verify.EPILOG, short_help="Check that an output is what it should be.")(
    verify.verify
)
app.command(epilog=evaluate.EPILOG, short_help="Score a model by a metric.")(evaluate.evaluate)
app.command(epilog=sweep.EPILOG, short_help="Measure what sparsity costs, and how much is free.")(
    sweep.sweep
)
app.command(epilog=compare.EPILOG, short_help="Compare two models: masks and magnitudes.")(
    compare.compare
)
app.command(epilog=trace.EPILOG, short_help="Follow magnitudes over a training.")(trace.trace)
app.command(epilog=lottery.EPILOG, short_help="Is a trained ticket better than one-shot pruning?")(
    lottery.lottery
)
app.command(epilog=bench.EPILOG, short_help="Compare the speed of models.")(bench.bench)
app.command(epilog=push.EPILOG, short_help="Publish an output on the Hub.")(push.push)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunectl {__version__}")
        raise typer.Exit


def _show_completion(shell: Shell | None) -> None:
    if shell is not None:
        typer.echo(SCRIPTS[shell], nl=False)
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "prunectl analyze sentence-transformers/all-MiniLM-L6-v2",
        "prunectl prune --sparsity 0.4 -o out/",
        "prunectl verify out/",
    ),
)
def main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version and exit."
        ),
    ] = False,
    show_completion: Annotated[
        Shell | None,
        typer.Option(
            "--show-completion",
            is_eager=True,
            callback=_show_completion,
            help="Print the script that completes prunectl in a shell, and exit.",
        ),
    ] = None,
) -> None:
    """Prune transformer checkpoints in one shot: streamed, exact, verified."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
