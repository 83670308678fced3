"""The application: its commands, each imported when it is first used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from prunectl._version import __version__
from prunectl.cli.shells import SCRIPTS, Shell

COMMANDS = {
    "analyze": "Measure magnitudes, and what sparsity would cost.",
    "prune": "Write a pruned copy of a checkpoint.",
    "export": "Store a checkpoint smaller, or dense again.",
    "verify": "Check that an output is what it should be.",
    "evaluate": "Score a model by a metric.",
    "sweep": "Measure what sparsity costs, and how much is free.",
    "compare": "Compare two models: masks and magnitudes.",
    "trace": "Follow magnitudes over a training.",
    "lottery": "Is a trained ticket better than one-shot pruning?",
    "bench": "Compare the speed of models.",
    "generate": "Continue a text, and say how fast.",
    "push": "Publish an output on the Hub.",
    "env": "Show versions and settings, for a bug report.",
}
"""Command NAME is the function NAME of module ``prunectl.cli.NAME``, which has its EXAMPLES."""
_CONTEXT_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
_PLAIN: Any = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
"""Switches off typer's completion, help format and error reports: prunectl has replacements."""


@cache
def command(name: str) -> TyperCommand:
    """Import one of the commands. Its options and help can be read without running it."""
    from prunectl.cli.help import GroupedHelp
    from prunectl.cli.signatures import with_options

    module = import_module(f"prunectl.cli.{name}")
    single = typer.Typer(**_PLAIN)
    single.command(
        name,
        cls=GroupedHelp,
        context_settings=_CONTEXT_SETTINGS,
        short_help=COMMANDS[name],
        epilog=_lines(module.EXAMPLES),
    )(with_options(getattr(module, name)))
    found = get_command(single)
    assert isinstance(found, TyperCommand)
    return found


class _Commands(Mapping[str, TyperCommand]):
    """All commands by name, imported on access."""

    def __getitem__(self, name: str) -> TyperCommand:
        if name not in COMMANDS:
            raise KeyError(name)
        return command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(TyperGroup):
    """The application's group of commands. Its help imports no command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands()  # type: ignore[assignment]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _lines(commands: tuple[str, ...]) -> str:
    return "\n".join(f"  {one}" for one in commands)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunectl {__version__}")
        raise typer.Exit


def _show_completion(shell: Shell | None) -> None:
    if shell is not None:
        typer.echo(SCRIPTS[shell], nl=False)
        raise typer.Exit


app = typer.Typer(name="prunectl", cls=_Group, context_settings=_CONTEXT_SETTINGS, **_PLAIN)
EXAMPLES = (
    "prunectl analyze sentence-transformers/all-MiniLM-L6-v2",
    "prunectl prune --sparsity 0.4 -o out/",
    "prunectl verify out/",
)
BEGINNING = """\
prunectl prunes transformer checkpoints in one shot: streamed, exact, verified.

To begin, with the small model demo that is part of prunectl:

  prunectl analyze demo
  prunectl prune demo --sparsity 0.3 -o pruned/
  prunectl verify pruned/

In place of demo, give a Hub id (org/name) or a folder.
All commands: prunectl --help. Options of one: prunectl prune --help."""
"""What ``prunectl`` without a command prints."""


# The backspace keeps typer from joining the lines of the examples.
@app.callback(invoke_without_command=True, epilog=f"Examples:\n\n\b\n{_lines(EXAMPLES)}")
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
            autocompletion=lambda: [(shell, f"the script for {shell}") for shell in Shell],
            help="Print the script that completes prunectl in a shell, and exit.",
        ),
    ] = None,
) -> None:
    """Prune transformer checkpoints in one shot: streamed, exact, verified."""
    if context.invoked_subcommand is None:
        typer.echo(BEGINNING)
