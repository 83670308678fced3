"""What can stand where the cursor is: commands, options and their values.

It reads the application's own options, which say their values (:mod:`prunectl.option`); models,
revisions and files are looked for here, by what an option calls its value. Nothing heavy is
imported, the Hub's cache is read as plain folders, and nothing is ever fetched: an answer takes
about 0.1 s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_command

from prunectl.checkpoint.index import PICKLE_SUFFIXES
from prunectl.cli.shells import Shell, bash_words, quoted_for_bash
from prunectl.demo import NAME as DEMO
from prunectl.option import Option
from prunectl.userdirs import expanded

Given = Mapping[str, str]
"""Values before the cursor, by option (``--cache-dir``) or an argument's metavar (``MODEL``)."""


class Candidate(NamedTuple):
    """A whole word, and what it means. A folder ends with a slash: more may follow it."""

    value: str
    help: str = ""


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
    """Values of a parameter that start with ``text``, as its option says them."""
    context = typer.Context(typer.core.TyperCommand(None), obj=typed.values)
    for item in parameter.shell_complete(context, text):
        yield Candidate(item.value, item.help or "")


def values_of(option: Option, kind: Any, text: str, given: Given) -> Iterator[Candidate]:
    """Values that an option may have, and that start with ``text``.

    Args:
        kind: the type that typer makes of them.
    """
    found: Iterator[Candidate]
    if option.values:
        found = (Candidate(value, meaning) for value, meaning in option.values.items())
    elif isinstance(kind, type) and issubclass(kind, Enum):
        found = (Candidate(one.value, getattr(one, "meaning", "")) for one in kind)
    elif option.suffix:
        found = _paths(text, (option.suffix,))
    elif finder := FINDERS.get(option.metavar):
        found = finder(text, given)
    else:
        return
    yield from (candidate for candidate in found if candidate.value.startswith(text))


SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "text:": ("files of text", (".txt", ".md")),
    "hf:": ("a dataset", (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow")),
    "images:": ("a folder of images", ()),
    "pairs:": ("a table of two texts in each row", (".csv", ".tsv", ".jsonl")),
    "demo": ("the text that comes with prunectl", ()),
    "random": ("random tokens or pixels: a stand-in", ()),
}
"""Calibration samples: what each kind means, and the endings of files that may follow its colon."""


def _models(text: str, given: Given) -> Iterator[Candidate]:
    if DEMO.startswith(text):
        yield Candidate(DEMO, "a small model that comes with prunectl")
    cache = _hub_cache(given)
    model, at, revision = text.partition("@")
    for name, commit in _revisions(cache, model) if at else ():
        if name.startswith(revision):
            yield Candidate(f"{model}@{name}", commit)
    for entry in _entries(cache):
        repo = entry.name.removeprefix("models--").replace("--", "/")
        if entry.name.startswith("models--") and repo.startswith(text):
            yield Candidate(repo, "in the Hub's cache")
    yield from _paths(text, (".safetensors", *PICKLE_SUFFIXES))


def _revision_of_model(text: str, given: Given) -> Iterator[Candidate]:
    model = given.get("--source") or given.get("MODEL", "")
    for name, commit in _revisions(_hub_cache(given), model.partition("@")[0]):
        if name.startswith(text):
            yield Candidate(name, commit)


def _sources(text: str, given: Given) -> Iterator[Candidate]:
    """Kinds of calibration samples; after a colon, files of that kind."""
    kind, colon, path = text.partition(":")
    _, suffixes = SOURCES.get(kind + colon, ("", ()))
    for found in _paths(path, suffixes) if colon and kind + colon in SOURCES else ():
        yield Candidate(f"{kind}:{found.value}", found.help)
    for name, (meaning, _) in SOURCES.items():
        if name.startswith(text) and name != text:
            yield Candidate(name, meaning)


def _revisions(cache: Path, repo: str) -> Iterator[tuple[str, str]]:
    """Branches and tags of a repository that the cache knows, and their commits in words."""
    refs = cache / f"models--{repo.replace('/', '--')}" / "refs"
    try:
        for file in sorted(path for path in refs.rglob("*") if path.is_file()):
            commit = file.read_text(encoding="ascii", errors="replace").strip()
            yield file.relative_to(refs).as_posix(), f"commit {commit[:12]}"
    except OSError:
        return


def _hub_cache(given: Given) -> Path:
    """Where huggingface_hub would look; it is not asked, since importing it takes too long."""
    if chosen := given.get("--cache-dir"):
        return expanded(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    legacy = os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return expanded(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or legacy))


def _paths(text: str, suffixes: tuple[str, ...]) -> Iterator[Candidate]:
    """Folders, and files that end with one of ``suffixes``; hidden ones only where asked for."""
    if text == "~":
        yield Candidate("~/")
        return
    start = os.path.basename(text)  # noqa: PTH119 - the rest stays as it was typed
    head = text[: len(text) - len(start)]
    for entry in _entries(expanded(head)):
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if _is_folder(entry):
            yield Candidate(f"{head}{entry.name}/")
        elif entry.name.endswith(suffixes):
            yield Candidate(f"{head}{entry.name}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError):
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


FINDERS: dict[str, Callable[[str, Given], Iterator[Candidate]]] = {
    "MODEL": _models,
    "MODEL...": _models,
    "FIRST": _models,
    "SECOND": _models,
    "REV": _revision_of_model,
    "SOURCE": _sources,
    "DIR": lambda text, _: _paths(text, ()),
}
"""What is looked for, by metavar."""
