"""The help of a command: its options under headings, drawn by rich, as wide as the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from prunectl.option import COMMON, HEADINGS

if TYPE_CHECKING:
    from rich.padding import Padding

_WIDEST = 100
"""Columns: longer lines are hard to read."""
_NAMES = 34
"""Columns for the names of options; longer ones are folded."""


class GroupedHelp(TyperCommand):
    """A command whose help is drawn here; typer's own takes ``N:M:`` for an emoji, and draws boxes
    that do not pipe well."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, description, options under their headings, and examples."""
        from rich.padding import Padding

        from prunectl.cli.output import screen
        from prunectl.cli.tables import line

        console = screen(sys.stdout)
        console.width = min(console.width, _WIDEST)
        with console.capture() as captured:
            console.print(line(f"Usage: {self.get_usage(ctx).removeprefix('Usage: ')}"))
            for paragraph in (self.help or "").split("\n\n"):
                text = line("\n" + " ".join(paragraph.split()))
                console.print(Padding(text, (0, 0, 0, 2)))
            for heading, rows in rows_of(self, ctx).items():
                console.print(line(f"\n{heading}:", "bold"), _table(rows), sep="\n")
            console.print(line("\nExamples:\n", "bold"))
            console.print(line(self.epilog or ""), soft_wrap=True)
        formatter.write("\n".join(text.rstrip() for text in captured.get().splitlines()))


def rows_of(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and texts of the parameters by their headings."""
    found: dict[str, list[tuple[str, str]]] = {heading: [] for heading in ("Arguments", *HEADINGS)}
    for parameter in command.get_params(ctx):
        names, text = parameter.get_help_record(ctx) or ("", "")  # none is hidden
        if parameter.param_type_name == "argument":
            found["Arguments"].append((names.partition(" <")[0], text))
        else:
            found[getattr(parameter, "rich_help_panel", None) or COMMON].append((names, text))
    return {heading: rows for heading, rows in found.items() if rows}


def _table(rows: list[tuple[str, str]]) -> Padding:
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=_NAMES, overflow="fold")
    table.add_column()
    for names, text in rows:
        table.add_row(names, text)
    return Padding(table, (0, 0, 0, 2))
