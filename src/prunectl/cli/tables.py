"""The look of all screens: headings and plain columns, without lines, boxes or needed colours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prunectl.cli.command_line import visible


def heading(text: str) -> Text:
    """A blank line and a bold line."""
    return Text(f"\n{visible(text)}", style="bold")


def columns(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)
) -> Padding:
    """A table; columns are right-aligned but for those numbered in ``left``.

    The first column is folded where the terminal is too narrow, so that no name is cut.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, header in enumerate(headers):
        is_left = number in left
        table.add_column(
            visible(header),
            justify="left" if is_left else "right",
            no_wrap=not is_left,
            overflow="fold" if is_left else "ellipsis",
        )
    for row in rows:
        table.add_row(*map(visible, row))
    return Padding(table, (0, 0, 0, 2), expand=False)


def facts(rows: Iterable[tuple[str, str]]) -> Padding:
    """Two columns: what, and its value; rows without a value are left out."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(visible(name), visible(value))
    return Padding(table, (0, 0, 0, 2), expand=False)


def sentence(text: str) -> Text:
    """Lines of words, set off by a blank line."""
    lines = (visible(line) for line in text.split("\n"))
    return Text("\n".join(("", *lines)))
