"""The look of all screens: headings and plain columns, without lines, boxes or needed colours.

Rich is imported when something is drawn: completion reads the commands, and draws nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl.cli.command_line import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod
    from rich.measure import Measurement
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

_GAP = 2
_NAME = 16
"""Characters that a folded column keeps: a name in fewer cannot be read."""


def heading(text: str) -> Text:
    """A blank line and a bold line."""
    return line(f"\n{visible(text)}", style="bold")


def line(text: str, style: str = "") -> Text:
    """A text as it is."""
    from rich.text import Text

    return Text(text, style=style)


def columns(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[int] = (0,),
    keys: Collection[int] = (0,),
    joined: Collection[int] = (),
) -> Padding:
    """A table that fits the terminal; columns are right-aligned but for those in ``left``.

    Where it is too wide, headers take more lines, then the columns of ``left`` are folded, so that
    no name is cut; where that is not enough, it becomes several tables under each other.

    Args:
        keys: columns that each of these tables begins with.
        joined: columns that stay in the same table as the one before them.
    """
    from rich.padding import Padding

    shown = [tuple(map(visible, row)) for row in rows]
    filled = [row + ("",) * (len(headers) - len(row)) for row in shown]
    table = _Columns(tuple(map(visible, headers)), filled, left, keys, joined)
    return Padding(table, (0, 0, 0, 2), expand=False)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What :func:`columns` was given, drawn as soon as the width is known."""

    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: Collection[int]
    keys: Collection[int]
    joined: Collection[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | str]:
        for number, chosen in enumerate(self._tables(options.max_width)):
            if number:
                yield ""
            yield self._table(chosen, options.max_width)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        widths = [self._most(i) for i in range(len(self.headers))]
        most = min(_total(widths), options.max_width)
        return Measurement(most, most)

    def _tables(self, room: int) -> list[list[int]]:
        """The columns of each table, with as many in one as fit."""
        keys = [i for i in range(len(self.headers)) if i in self.keys]
        tables: list[list[int]] = []
        for group in self._groups():
            both = sorted((*tables[-1], *group)) if tables else []
            if both and _total([self._least(i) for i in both]) <= room:
                tables[-1] = both
            else:
                tables.append(sorted((*keys, *group)))
        return tables or [keys]

    def _groups(self) -> list[list[int]]:
        groups: list[list[int]] = []
        for i in range(len(self.headers)):
            if i in self.keys:
                continue
            if i in self.joined and groups:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def _table(self, chosen: list[int], room: int) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for i, width in zip(chosen, self._widths(chosen, room), strict=True):
            justify: JustifyMethod = "left" if i in self.left else "right"
            table.add_column(self.headers[i], justify=justify, width=width, overflow="fold")
        for row in self.rows:
            table.add_row(*(row[i] for i in chosen))
        return table

    def _widths(self, chosen: list[int], room: int) -> list[int]:
        """Characters of each column: what it would take, less what headers and names can spare."""
        widths = {i: self._most(i) for i in chosen}
        for is_left in (False, True):
            while _total(widths.values()) > room:
                spare = [i for i in chosen if (i in self.left) is is_left]
                spare = [i for i in spare if widths[i] > self._least(i)]
                if not spare:
                    break
                widths[max(spare, key=widths.__getitem__)] -= 1
        return list(widths.values())

    def _cells(self, i: int) -> int:
        from rich.cells import cell_len

        return max((cell_len(row[i]) for row in self.rows), default=0)

    def _most(self, i: int) -> int:
        from rich.cells import cell_len

        return max(self._cells(i), cell_len(self.headers[i]), 1)

    def _least(self, i: int) -> int:
        """A number stays on one line, and so does each word of a header unless it is long."""
        from rich.cells import cell_len

        word = max(map(cell_len, self.headers[i].split()), default=1)
        cells = self._cells(i)
        return max(min(cells, _NAME) if i in self.left else cells, min(word, _NAME), 1)


def _total(widths: Collection[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def facts(rows: Iterable[tuple[str, str]]) -> Padding:
    """Two columns: what, and its value; rows without a value are left out."""
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(visible(name), visible(value))
    return Padding(table, (0, 0, 0, 2), expand=False)


def sentence(text: str) -> Text:
    """Lines of words, set off by a blank line."""
    return line("\n".join(("", *(visible(one) for one in text.split("\n")))))
