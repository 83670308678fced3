"""What a push has done, as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunectl import numbers
from prunectl.cli.command_line import visible
from prunectl.cli.tables import facts, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.publishing.result import PushResult

MOST_FILES = 5


def push_screen(result: PushResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order.

    Args:
        everything: all changed files instead of the first five.
    """
    branch = f"@{result.revision}" if result.revision else ""
    yield heading(f"{result.folder} -> {result.repo_id}{branch}")
    limit = None if everything else MOST_FILES
    yield facts(
        [
            ("", " "),
            ("changed", _names(result.uploaded, limit)),
            ("size", numbers.size(result.nbytes) if result.changed else ""),
            ("deleted", _names(result.deleted, limit)),
            ("commit", result.commit_url),
            ("pull request", result.pull_request or ""),
            ("time", numbers.duration(result.seconds)),
        ]
    )
    if not result.changed:
        there = "The pull request" if result.pull_request else "The Hub"
        yield sentence(f"{there} has all {result.files:,} files already: nothing was committed.")
    elif result.pull_request:
        yield sentence(f"Suggested: {result.pull_request}")
    else:
        model = f"{result.repo_id}{branch}"
        yield sentence(f"Published: prunectl analyze {model} reads it from there.")


def _names(names: tuple[str, ...], limit: int | None) -> str:
    shown = visible(", ".join(names[:limit]))
    more = len(names) - len(names[:limit])
    return f"{shown} and {more:,} more" if more else shown
