"""``--html``, as commands have it whose result is one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunectl.cli.output import check_file, save_text
from prunectl.errors import InvalidOption
from prunectl.userdirs import expanded

if TYPE_CHECKING:
    from prunectl.cli.output import Output

Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        parser=expanded,
        help="Save a page with charts to look at in a browser; it needs no network "
        "(pip install 'prunectl[report]').",
    ),
]


def check_page(html: Path | None, *others: Path | None) -> None:
    """Find out before the work whether a page can be made and saved, and over none of ``others``.

    Raises:
        InvalidOption: it is one of the others. MissingLibrary, OutputError: it cannot be made.
    """
    if html is None:
        return
    from prunectl.report.charts import check_libraries

    check_file(html)
    if any(one is not None and one.resolve() == html.resolve() for one in others):
        raise InvalidOption(f"-o and --html name the same file: {html}")
    check_libraries("--html")


def save_page(html: Path, page: str, out: Output) -> None:
    """Save the page and say so."""
    save_text(html, page)
    out.note(f"saved: {html}")
