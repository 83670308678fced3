"""A command that torchrun or ``accelerate launch`` has started several times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunectl.cli.errors import USAGE
from prunectl.errors import InvalidOption
from prunectl.ranks.launched import launched

if TYPE_CHECKING:
    from prunectl.ranks.ranks import Ranks

SHARED = ("analyze", "prune", "export", "verify")
"""Commands whose tensors and files are shared out."""
TRAINED = ("evaluate", "sweep")
"""Commands that accelerate shares out by itself."""


@contextmanager
def joined(argv: Sequence[str]) -> Iterator[Ranks | None]:
    """The processes that work on a command line; None for this one alone.

    Raises:
        InvalidOption: there are several, and the command is for one.
    """
    command = argv[0] if argv else ""
    if launched()[1] == 1 or command in TRAINED or command.startswith("-"):
        yield None
        return
    if command not in SHARED:
        raise InvalidOption(
            f"{command} runs in one process", hint="start it without accelerate launch or torchrun"
        )
    from prunectl.ranks.joining import joined_ranks

    with joined_ranks() as ranks:
        yield ranks


def words_of_rank(error: BaseException, text: str) -> str:
    """What this process says of its end: '' where another one says it."""
    from prunectl.ranks.errors import RankFailed, RanksDiffer

    rank, _ = launched()
    if not rank:
        return text
    if isinstance(error, RankFailed | RanksDiffer) or getattr(error, "exit_code", 1) == USAGE:
        return ""
    return "\n".join(f"rank {rank}: {line}" for line in text.splitlines())
