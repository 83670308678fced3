"""The command line as text that may be written down: without its secrets."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from prunectl.hub.errors import without_tokens

ARGV = "argv"
"""Key of the arguments, as they were typed, in the object of typer's context."""
RANKS = "ranks"
"""Key of the processes that share the command, there too."""


def recorded_command(argv: Sequence[str]) -> str:
    """The command as the user typed it, quoted for a shell, without ``--token`` and its value."""
    return redact(shlex.join(["prunectl", *_split_tokens(argv)[0]]), argv)


def redact(text: str, argv: Sequence[str]) -> str:
    """``text`` with Hub tokens, and whatever was given as ``--token``, replaced by ``***``."""
    return without_tokens(text, _split_tokens(argv)[1])


def visible(text: str) -> str:
    """``text`` with control characters escaped: a name out of a file must not paint a screen."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _split_tokens(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without the token option, and the values that it had."""
    kept: list[str] = []
    tokens: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--token":
            tokens.append(next(arguments, ""))
        elif argument.startswith("--token="):
            tokens.append(argument.removeprefix("--token="))
        else:
            kept.append(argument)
    return kept, tokens
