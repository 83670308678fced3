"""From an exception to an exit code and the words for a person."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Sequence

import typer

from prunectl.cli.command_line import redact, visible
from prunectl.errors import PrunectlError

FAILED, USAGE, DIFFERENCE, INTERRUPTED = 1, 2, 3, 130

NO_MEMORY = [
    "error: not enough memory",
    "hint: lower --jobs, or raise the system's memory limit (see ulimit -v)",
]


def describe(error: BaseException, argv: Sequence[str]) -> tuple[int, str]:
    """Exit code and text for stderr; with ``PRUNECTL_DEBUG=1`` the traceback stands before it.

    No token appears in the text: not one that was given, nor any that looks like the Hub's.
    """
    code, lines = _words(error)
    if os.environ.get("PRUNECTL_DEBUG", "") not in ("", "0"):
        lines.insert(0, "".join(traceback.format_exception(error)).rstrip())
    return code, redact("\n".join(lines), argv)


def _words(error: BaseException) -> tuple[int, list[str]]:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, ["interrupted"]
    if isinstance(error, PrunectlError):
        hints = [f"hint: {_one_line(error.hint)}"] if error.hint else []
        return error.exit_code, [f"error: {_one_line(error.message)}", *hints]
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "prunectl"
        message = _one_line(error.format_message())
        for said, meant in _PARSER.items():
            message = message.replace(said, meant)
        return error.exit_code, [
            f"error: {message[:1].lower()}{message[1:]}",
            f"hint: see '{command} --help'",
        ]
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # such as where stdout leads to
        where = "" if error.filename is None else f"{_one_line(str(error.filename))}: "
        return FAILED, [f"error: {where}{error.strerror}", "hint: free space on that disk"]
    if isinstance(error, FileNotFoundError) and error.filename is None:  # of os.getcwd alone
        gone = "error: the current folder no longer exists"
        return FAILED, [gone, "hint: change to another folder, and repeat the command there"]
    if isinstance(error, ValueError) and "embedded null" in str(error):  # by callers from Python
        return USAGE, ["error: a path holds a null byte, which no system allows"]
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # so torch says it
        return FAILED, NO_MEMORY
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return FAILED, [
            "error: the system does not let this user start more threads",
            "hint: lower --jobs, or raise the limit on processes (ulimit -u) or memory (ulimit -v)",
        ]
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if (package := missing.partition(".")[0]) not in ("", "prunectl"):
        return FAILED, [
            f"error: the library '{package}' is not installed",
            f"hint: install it into this environment: pip install {package}",
        ]
    said = f"{type(error).__name__}: {_one_line(str(error))}".rstrip(": ")
    if library := _unloadable(error):
        return FAILED, [
            f"error: the library '{library}' cannot be loaded: {said[:300]}",
            "hint: raise the memory limit, if there is one (see ulimit -v); "
            "otherwise install prunectl again, in a separate environment",
        ]
    hint = "hint: this is a bug or an unhandled limit; PRUNECTL_DEBUG=1 shows where it happened"
    return FAILED, [f"error: {said}", hint]


def _unloadable(error: BaseException) -> str:
    """The library whose import raised ``error``; '' where no import did.

    Without memory to map a library into, or with a part of it missing, an import raises not only
    ImportError: llvmlite raises OSError, and the interpreter SystemError.
    """
    named = error.name or "" if isinstance(error, ImportError) else ""
    modules = [
        str(frame.f_globals.get("__name__", ""))
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    packages = (module.partition(".")[0] for module in (*modules, named))
    return next(
        (
            package
            for package in packages
            if package not in ("", "prunectl", "transformers_modules")
        ),
        "",
    )


_PARSER = {
    "Value error, ": "",
    "Input should be a valid number, unable to parse string as a number": "it is no number",
    "Input should be a valid integer, unable to parse string as an integer": "it is no integer",
    "Input should be ": "it should be ",
}
"""What the library that parses options says, in words for those who typed them."""


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))
