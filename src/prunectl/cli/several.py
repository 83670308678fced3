"""A command that torchrun or ``accelerate launch`` has started several times."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.cli.command_line import visible
from prunectl.cli.errors import USAGE
from prunectl.errors import InvalidOption
from prunectl.events import Event, Note, ignore_events
from prunectl.parallel.launched import is_first_process, launched

if TYPE_CHECKING:
    from prunectl.parallel.ranks import Ranks

SHARED = ("analyze", "prune", "export", "verify")
"""Commands whose tensors and files are shared out."""
TRAINED = ("evaluate", "sweep")
"""Commands that accelerate shares out by itself."""
ALONE = ("bench", "compare", "env", "generate", "lottery", "push", "trace")
"""Commands that run in one process."""


@contextmanager
def joined(argv: Sequence[str]) -> Iterator[Ranks | None]:
    """The processes that work on a command line; None for this one alone."""
    command = argv[0] if argv else ""
    if command in ALONE and launched()[1] > 1:
        raise InvalidOption(
            f"{command} runs in one process", hint="start it without accelerate launch or torchrun"
        )
    with _first_alone_on_stdout():
        if launched()[1] == 1 or command not in SHARED:
            yield None
            return
        from prunectl.parallel.joining import joined_ranks

        with joined_ranks(ignore_events if _is_quiet(argv) else _tell) as ranks:
            yield ranks


@contextmanager
def _first_alone_on_stdout() -> Iterator[None]:
    """What typer prints by itself, such as help and the version, is printed once."""
    if is_first_process():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _is_quiet(argv: Sequence[str]) -> bool:
    """Whether ``-q`` is given: what waits for the others has not read the command line yet."""
    return any(word in ("-q", "-qv", "-vq", "--quiet") for word in argv)


def _tell(event: Event) -> None:
    if isinstance(event, Note):
        print(visible(event.text), file=sys.stderr)


def words_of_rank(error: BaseException, text: str) -> str:
    """What this process says of its end: '' where another one says it."""
    from prunectl.parallel.errors import RankFailed, RanksDiffer

    rank, _ = launched()
    if not rank:
        return text
    if (
        isinstance(error, RankFailed | RanksDiffer | KeyboardInterrupt)
        or getattr(error, "exit_code", 1) == USAGE
    ):
        return ""
    return "\n".join(f"rank {rank}: {line}" for line in text.splitlines())
