"""The one object that prints: data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from prunectl.cli.command_line import visible
from prunectl.errors import CannotWrite
from prunectl.events import Note, OnEvent
from prunectl.option import Option
from prunectl.parallel.launched import is_first_process

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

NO_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"

_NO_EDGE = 1000
"""Columns where there is no terminal: lines are as long as they are, for grep and for files."""
_LINES = 25
_LEAST = 80
"""Columns that the tables need. A narrower terminal wraps the lines, and no number is cut off."""


@dataclass(eq=False)
class Output:
    """What a command says, and where.

    Attributes:
        json: print one JSON document on stdout instead of tables.
        quiet: no tables, notes or progress; warnings and errors stay.
        verbose: say more.

    With ``json``, ``sys.stdout`` is stderr from then on; :func:`prunectl.cli.run.run` puts it back.
    Of several processes that work on one command, the first says it.
    """

    json: Annotated[bool, Option("Print one JSON document on stdout, and no tables.")] = False
    quiet: Annotated[
        bool, Option("Print only warnings and errors (and what --json prints).", short="-q")
    ] = False
    verbose: Annotated[bool, Option("Say more.", short="-v")] = False

    def __post_init__(self) -> None:
        self._speaks = is_first_process()
        self._stdout = sys.stdout
        if (
            self.json
        ):  # the document has stdout to itself: what a model's own code prints goes elsewhere
            sys.stdout = sys.stderr
        self.json, self.quiet = self.json and self._speaks, self.quiet or not self._speaks

    def note(self, text: str) -> None:
        """A sentence on stderr that may be missed."""
        if not self.quiet:
            print(visible(text), file=sys.stderr)

    def warn(self, text: str) -> None:
        """A sentence on stderr that matters."""
        if self._speaks:
            print(f"warning: {visible(text)}", file=sys.stderr)

    def show(self, *parts: RenderableType) -> None:
        """A screen for people on stdout; nothing with ``--json`` or ``-q``."""
        if self.json or self.quiet:
            return
        console = screen(sys.stdout)
        console.width = max(console.width, _LEAST)
        with console.capture() as captured:
            for part in parts:
                console.print(part)
        # Tables fill their last column with blanks, which only make lines wrap.
        lines = [line.rstrip() for line in captured.get().lstrip("\n").splitlines()]
        sys.stdout.write("\n".join(lines) + "\n")

    def data(self, document: dict[str, Any]) -> None:
        """The document of ``--json``; nothing without it."""
        if self.json:
            self._stdout.write(as_json(document))

    @property
    def draws_bars(self) -> bool:
        """Whether progress is drawn as bars."""
        return not self.quiet and _wants_bars()

    @contextlib.contextmanager
    def progress(self, above: Callable[[], RenderableType] | None = None) -> Iterator[OnEvent]:
        """A listener that draws the events of a long function on stderr while inside the block.

        Args:
            above: what stands above the bars, where bars are drawn.
        """
        from prunectl.cli.progress import LineProgress, bar_progress

        def notes_only(event: object) -> None:
            if isinstance(event, Note):
                self.tell(event)

        if self.quiet:
            yield notes_only
        elif self.draws_bars:
            with bar_progress(self.tell, above) as on_event:
                yield on_event
        else:
            yield LineProgress(self.note, self.tell)

    def tell(self, note: Note) -> None:
        """A note from the library."""
        (self.warn if note.warning else self.note)(note.text)


def screen(stream: TextIO) -> Console:
    """A console without markup, so that brackets in names stay, and without emoji or guessing."""
    from rich.console import Console

    width = _width(stream)
    return Console(
        file=stream,
        width=width,
        # With both given, rich does not look at COLUMNS itself.
        height=None if width is None else _LINES,
        markup=False,
        emoji=False,
        highlight=False,
    )


def as_json(document: dict[str, Any]) -> str:
    """Strict JSON, as it is printed and saved; in ASCII, since a path may be no valid Unicode."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def check_file(path: Path) -> None:
    """Find out before the work whether a file can be put at ``path``."""
    from prunectl.output.osfiles import os_errors, real_path

    with os_errors(path):
        real_path(path)
    if path.is_dir():
        raise CannotWrite(path, "it is a folder")
    if not path.parent.is_dir():
        raise CannotWrite(path, f"there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise CannotWrite(path, f"{path.parent} is not writable")


def save_text(path: Path, text: str | bytes) -> None:
    """Write a file, whole or not at all; of several processes on one command, the first does it."""
    if not is_first_process():
        return
    from prunectl.output.osfiles import replace_file

    replace_file(path, text if isinstance(text, bytes) else text.encode("utf-8"))


def _width(stream: TextIO) -> int | None:
    """Columns of a screen; None: rich asks the terminal, again whenever it is resized."""
    wanted = os.environ.get("COLUMNS", "").strip()
    if wanted.isdecimal() and int(wanted):
        return min(int(wanted), _NO_EDGE)
    if not _is_terminal(stream):
        return _NO_EDGE
    if not wanted:
        return None
    # Rich would take a COLUMNS of 0 at its word.
    try:
        return os.get_terminal_size(stream.fileno()).columns or _LEAST
    except OSError:
        return _LEAST


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def _wants_bars() -> bool:
    switched_off = os.environ.get(NO_BARS, "").upper()
    is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return (
        _is_terminal(sys.stderr) and not is_dumb and switched_off not in ("1", "ON", "YES", "TRUE")
    )
