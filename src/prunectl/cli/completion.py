"""What can stand where the cursor is: commands, options and their values.

It reads the application's own options; :mod:`prunectl.cli.completion_values` knows their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_command

from prunectl.cli.completion_values import CHOICES, FINDERS, Candidate
from prunectl.cli.shell_line import bash_words, quoted_for_bash
from prunectl.cli.shell_scripts import Shell


class Typed(NamedTuple):
    """What stands before the cursor.

    Attributes:
        command: its name.
        values: by option (``--cache-dir``) or an argument's metavar (``MODEL``).
        arguments: how many there are.
        options: the first name of each that was given.
        waiting: the option whose value comes next.
        only_arguments: ``--`` was given.
    """

    command: str
    values: dict[str, str]
    arguments: int
    options: set[str]
    waiting: TyperOption | None
    only_arguments: bool


def respond(arguments: Sequence[str], shell: str) -> int:
    """Print the candidates as the script of ``shell`` reads them; returns the exit code."""
    if shell == Shell.BASH:
        line, replaced = arguments
        words, raw = bash_words(line)
        for candidate in complete(words[1:]):
            print(quoted_for_bash(candidate.value, raw, replaced))
        return 0
    words = list(arguments)
    if shell == Shell.POWERSHELL:
        words[-1] = words[-1].removeprefix(".")
    for value, text in complete(words):
        print(f"{value}\t{' '.join(text.split())}" if text else value)
    return 0


def complete(words: Sequence[str]) -> list[Candidate]:
    """Candidates for the last word.

    Args:
        words: those after the program's name, without quotes; the last is unfinished or empty.
    """
    from prunectl.cli.app import app

    command = get_command(app)
    context = typer.Context(command, **command.context_settings)
    *before, current = words
    while isinstance(command, TyperGroup):
        at = next((i for i, word in enumerate(before) if not word.startswith("-")), None)
        if at is None:
            break
        chosen = command.get_command(context, before[at])
        if chosen is None:
            return []
        command, before = chosen, before[at + 1 :]
        context = typer.Context(command, parent=context, **command.context_settings)
    found = _candidates(context, before, current)
    # A name with a line break or a byte that is no text cannot be said to a shell line by line.
    return [item for item in found if item.value.isprintable()]


def _candidates(context: typer.Context, before: Sequence[str], current: str) -> Iterator[Candidate]:
    command = context.command
    parameters = command.get_params(context)
    options = [p for p in parameters if isinstance(p, TyperOption) and not p.hidden]
    arguments = [p for p in parameters if isinstance(p, TyperArgument)]
    typed = _read(command.name or "", before, options, arguments)
    name, equals, text = current.partition("=")
    if typed.waiting:
        yield from _values(typed.waiting, current, typed)
    elif current.startswith("-") and not typed.only_arguments:
        option = _named(options, name) if equals else None
        for value, meaning in _values(option, text, typed) if option else ():
            yield Candidate(f"{name}={value}", meaning)
        yield from _option_names(options, current, typed)
    elif isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner and not inner.hidden and name.startswith(current):
                yield Candidate(name, inner.get_short_help_str(limit=100))
    elif arguments and (typed.arguments < len(arguments) or arguments[-1].nargs == -1):
        yield from _values(arguments[min(typed.arguments, len(arguments) - 1)], current, typed)


def _option_names(options: Sequence[TyperOption], start: str, typed: Typed) -> Iterator[Candidate]:
    """Options that may still be given: those not there yet, and those that may be repeated."""
    for option in options:
        if option.multiple or option.opts[0] not in typed.options:
            for name in (*option.opts, *option.secondary_opts):
                if name.startswith(start):
                    yield Candidate(name, option.help or "")


def _read(
    command: str,
    before: Sequence[str],
    options: Sequence[TyperOption],
    arguments: Sequence[TyperArgument],
) -> Typed:
    """Which options and arguments the finished words are."""
    values: dict[str, str] = {}
    given: set[str] = set()
    count, only_arguments = 0, False
    waiting: TyperOption | None = None
    for word in before:
        if waiting:
            values[waiting.opts[0]] = word
            waiting = None
        elif word == "--" and not only_arguments:
            only_arguments = True
        elif word.startswith("-") and len(word) > 1 and not only_arguments:
            for option, value in _split_option(word, options):
                given.add(option.opts[0])
                waiting = None if option.is_flag or option.count or value else option
                values[option.opts[0]] = value
        else:
            if count < len(arguments):
                values[arguments[count].metavar or ""] = word
            count += 1
    return Typed(command, values, count, given, waiting, only_arguments)


def _split_option(word: str, options: Sequence[TyperOption]) -> Iterator[tuple[TyperOption, str]]:
    """``--name=value``, ``-qs0.5``: each option in the word, with the value that is glued to it."""
    name, _, value = word.partition("=")
    if option := _named(options, name):
        yield option, value
        return
    for at, letter in enumerate(word[1:], 2):
        option = _named(options, f"-{letter}")
        if option is None:
            return
        takes_value = not (option.is_flag or option.count)
        yield option, word[at:] if takes_value else ""
        if takes_value:
            return


def _named(options: Sequence[TyperOption], name: str) -> TyperOption | None:
    return next((o for o in options if name in (*o.opts, *o.secondary_opts)), None)


def _values(parameter: TyperOption | TyperArgument, text: str, typed: Typed) -> Iterator[Candidate]:
    """Values that start with ``text``, from the first entry that the parameter has."""
    option = parameter.opts[0]
    for key in (f"{typed.command} {option}", option, parameter.metavar or ""):
        if key in CHOICES:
            for value, meaning in CHOICES[key].items():
                if value.startswith(text):
                    yield Candidate(value, meaning)
            return
        if key in FINDERS:
            yield from FINDERS[key](text, typed.values)
            return
