"""The options of a command, made from the settings classes that it takes.

A command is a function whose parameters are of three kinds:

- one :class:`prunectl.option.Option` in its annotation: one option of the command;
- a dataclass, such as ``EvalSettings``: an option for each field that carries one, and the command
  gets the settings;
- ``Given[...]`` of a dataclass: the same options, but the command gets their values and makes the
  settings itself, once it knows the fields that are not options.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    Generic,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

from prunectl.option import Fields, Option
from prunectl.userdirs import expanded

T = TypeVar("T")
_REQUIRED = inspect.Parameter.empty


class Given(Generic[T]):
    """The values of the options of a settings class.

    Attributes:
        values: the value of every option, by field.
        typed: the values of the options that the user typed, by field.
    """

    def __init__(self, kind: type[T], values: dict[str, Any], typed: set[str]) -> None:
        self._kind, self.values = kind, values
        self.typed = {name: value for name, value in values.items() if name in typed}

    def make(self, **others: Any) -> T:
        """Make the settings, with values for the fields that are not options."""
        return self._kind(**self.values | others)


class _Single(NamedTuple):
    """One option: the name of typer's parameter, the field's type without None, and its default."""

    name: str
    option: Option
    kind: Any
    default: Any

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The single parameter from which typer makes the option."""
        option, (kind, default) = self.option, self._typer_form()
        shared: dict[str, Any] = {
            "help": option.help,
            "metavar": option.metavar or None,
            "show_default": option.shows_default,
            "parser": expanded if kind is Path else None,
            "min": option.least,
            "rich_help_panel": option.heading,
            "autocompletion": _completer(option, kind),
        }
        names = [option.name or f"--{self.name.replace('_', '-')}", option.short]
        info = (
            typer.Argument(**shared)
            if option.is_argument
            else typer.Option(*filter(None, names), **shared)
        )
        annotation: Any = Annotated[kind | None if default is None else kind, info]
        keyword = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(self.name, keyword, default=default, annotation=annotation)

    def _typer_form(self) -> tuple[Any, Any]:
        """The type and the default that typer sees: text where :attr:`Option.read` parses it."""
        if get_origin(self.kind) is not tuple and not self.option.read:
            return self.kind, self.default
        if not self.option.read:
            return list[str], self.default if self.default is _REQUIRED else None
        text = _default_text(self.default)
        return (list[str], text and [text]) if self.option.repeats else (str, text)

    def value(self, given: Mapping[str, Any]) -> Any:
        """The value of the field, from the values that typer has parsed."""
        value = given[self.name]
        if value is None:
            return self.default
        if self.option.read:
            return self.option.read(value)
        return tuple(value) if isinstance(value, list) else value


class _Group(NamedTuple):
    """The options of a settings class, by field."""

    kind: Any
    parts: dict[str, _Single | _Group]
    is_given: bool
    is_optional: bool

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The parameters of all options."""
        for part in self.parts.values():
            yield from part.parameters()

    def value(self, given: Mapping[str, Any]) -> Any:
        """The settings; None if they may be None and equal their defaults."""
        values = {field: part.value(given) for field, part in self.parts.items()}
        if self.is_given:
            return Given(
                self.kind, values, {f for f, p in self.parts.items() if _is_typed(p, given)}
            )
        made = self.kind(**values)
        return None if self.is_optional and made == self.kind() else made


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command into a function for typer, with one parameter for each option."""
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters
    parts = {
        name: _part(name, hints[name], parameters[name].default)
        for name in parameters
        if hints[name] is not typer.Context
    }

    def run(**given: Any) -> None:
        values = {name: part.value(given) for name, part in parts.items()}
        if "context" in parameters:
            values["context"] = given["context"]
        command(**values)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    spread = [one for part in parts.values() for one in part.parameters()]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([context, *spread])  # type: ignore[attr-defined]
    return run


def _part(name: str, hint: Any, default: Any, instead: Option | None = None) -> _Single | _Group:
    """The option or options of a command's parameter, or of a field of a settings class."""
    kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    others = [one for one in get_args(kind) if one is not NoneType]
    is_optional = NoneType in get_args(kind)
    if is_optional:
        (kind,) = others
    if option := instead or next((mark for mark in marks if isinstance(mark, Option)), None):
        long = (option.name or name).partition("/")[0].lstrip("-").replace("-", "_")
        return _Single(long, option, kind, default)
    fields = next((mark for mark in marks if isinstance(mark, Fields)), Fields())
    is_given = get_origin(kind) is Given
    if is_given:
        (kind,) = get_args(kind)
    return _Group(kind, dict(_parts(kind, fields, default)), is_given, is_optional)


def _parts(kind: Any, fields: Fields, default: Any) -> Iterator[tuple[str, _Single | _Group]]:
    """The options of a settings class; defaults are those of ``default`` if it is an instance."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        name = field.name
        is_wanted = name in fields.only if fields.only else name not in fields.without
        if not is_wanted or get_origin(hints[name]) is not Annotated:
            continue
        if isinstance(default, kind):
            own = getattr(default, name)
        elif field.default_factory is not dataclasses.MISSING:
            own = field.default_factory()
        else:
            own = _REQUIRED if field.default is dataclasses.MISSING else field.default
        yield name, _part(name, hints[name], own, fields.instead.get(name))


def _is_typed(part: _Single | _Group, given: Mapping[str, Any]) -> bool:
    if isinstance(part, _Group):
        return any(_is_typed(one, given) for one in part.parts.values())
    source = given["context"].get_parameter_source(part.name)
    return source is not None and source.name == "COMMANDLINE"


def _default_text(default: Any) -> str | None:
    """A default as a user would type it; None where there is none."""
    if default is None or default in ((), ""):
        return None
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _completer(option: Option, kind: Any) -> Callable[..., Any]:
    """The function that typer calls to complete a value."""

    def complete(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from prunectl.cli.completion import values_of

        return list(values_of(option, kind, incomplete, ctx.obj))

    return complete
