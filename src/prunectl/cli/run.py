"""Runs the application and turns whatever ends it into an exit code and words."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prunectl.cli.command_line import ARGV, RANKS
from prunectl.cli.errors import FAILED, INTERRUPTED, NO_MEMORY, describe
from prunectl.cli.several import joined, words_of_rank
from prunectl.cli.shells import VARIABLE


def run(argv: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed, 2 usage, 3 verification found a difference, 130 interrupted.
    """
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A bar or a name that the terminal's encoding lacks must not end the command.
            stream.reconfigure(errors="replace")
    try:
        if shell := os.environ.get(VARIABLE):
            from prunectl.cli.completion import respond

            return respond(argv, shell)
        stdout = sys.stdout
        try:
            code = _run(argv)
        finally:
            sys.stdout = stdout
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, argv)
    if code == INTERRUPTED:  # typer has caught the KeyboardInterrupt
        print(describe(KeyboardInterrupt(), argv)[1], file=sys.stderr)
    return int(code)


def _report(error: BaseException, argv: Sequence[str]) -> int:
    """Say on stderr what ended the command; its exit code."""
    try:
        code, text = describe(error, argv)
        shown = words_of_rank(error, text)
    except MemoryError:  # too little to look at the error
        code, shown = FAILED, "\n".join(NO_MEMORY)
    if shown:
        print(shown, file=sys.stderr)
    return code


def _run(argv: Sequence[str]) -> int:
    """Run the application, with the other processes if it was started as one of several."""
    from prunectl.cli.app import COMMANDS, app, command

    known = argv[0] if argv and argv[0] in COMMANDS else ""
    main, name = (command(known), f"prunectl {known}") if known else (app, "prunectl")
    with joined(argv) as ranks:
        typed = {ARGV: list(argv), RANKS: ranks}
        left = list(argv[1:] if known else argv)
        code = main(args=left, prog_name=name, standalone_mode=False, obj=typed)
        if ranks is not None and code == INTERRUPTED:  # typer has caught what the others must learn
            raise KeyboardInterrupt
    return int(code or 0)


def _replace_closed_streams() -> None:
    """Let what goes to a closed stdout or stderr go nowhere, as if sent to the null device.

    A closed stream is None, for which print takes stdout; and its number would be given to the
    next file that is opened, which could be one that we write.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _forget_stdout() -> None:
    """Let the interpreter's last flush go nowhere: who read our output has closed the pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
