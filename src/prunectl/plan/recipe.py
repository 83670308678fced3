"""TOML recipes: ordered rules that give parts of a model their own sparsity or pattern.

Example::

    sparsity = 0.5                      # for everything that no rule matches

    [[rules]]
    match = ["*.mlp.down_proj.weight"]  # names, modules, globs, or re:EXPRESSION
    sparsity = 0.3

    [[rules]]
    match = "model.layers.0"
    skip = true
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prunectl.documents import Check, Document, PatternText, convert, fault_in
from prunectl.errors import InvalidOption, RecipeError
from prunectl.methods.table import DEFAULT
from prunectl.pattern import Pattern, Unstructured, parse_pattern
from prunectl.plan.settings import (
    Budget,
    Calibration,
    Method,
    PruneSettings,
    Rule,
    Scope,
)

_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as read; None and () where it says nothing."""

    sparsity: float | None = None
    pattern: Pattern | None = None
    scope: Scope | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: it cannot be read, or has keys or values that are not understood.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)  # a pipe has no size, and a device may never end
        if len(text) > _MOST_BYTES:
            raise RecipeError(path, f"more than {_MOST_BYTES:,} bytes")
        table = tomllib.loads(text.decode())
    except OSError as error:
        raise RecipeError(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # tomllib has no limit of levels
        raise RecipeError(path, f"not valid TOML: {error}") from None
    try:
        top = convert(table, _Top)
    except ValueError as error:
        raise RecipeError(path, _in_words(str(error))) from None
    return Recipe(
        sparsity=top.sparsity,
        pattern=_pattern(top),
        scope=top.scope,
        include=_selectors(top.include),
        exclude=_selectors(top.exclude),
        rules=tuple(
            Rule(_selectors(rule.match), rule.sparsity, _pattern(rule), rule.scope, rule.skip)
            for rule in top.rules
        ),
    )


class _Table(Document, frozen=True, kw_only=True):
    sparsity: float | None = None
    pattern: PatternText | None = None
    scope: Scope | None = None


class _Rule(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    match: Annotated[str | list[str], Check(lambda match: "is empty" if match == [] else "")]
    skip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        others = [key for key in _Table.__struct_fields__ if getattr(self, key) is not None]
        if self.skip and others:
            raise fault_in("skip", f"is true, so the rule cannot set {', '.join(others)} too")


class _Top(_Table, frozen=True, forbid_unknown_fields=True, kw_only=True):
    include: str | list[str] = ()  # type: ignore[assignment]
    exclude: str | list[str] = ()  # type: ignore[assignment]
    rules: tuple[_Rule, ...] = ()


def _in_words(why: str) -> str:
    """A fault as somebody who wrote TOML reads it: rules count from 1, and there is no null."""
    is_rule = re.match(r"rules\[([0-9]+)\](?:\.|:? )", why)
    where = f"rule {int(is_rule[1]) + 1}: " if is_rule else ""
    why = where + why[is_rule.end() if is_rule else 0 :].replace(" or null", "")
    if match := re.search("unknown field `(.*)`", why):
        known = ", ".join(sorted((_Rule if is_rule else _Top).__struct_fields__))
        return f"{where}unknown key '{match[1]}' (known: {known})"
    if "invalid enum value" in why:
        return f"{why}; it is one of {', '.join(Scope)}"
    if why.startswith("rules ") or why.endswith("is not an object"):
        return f"{why}: write the rules as [[rules]] tables"
    return why


def _pattern(table: _Table) -> Pattern | None:
    return None if table.pattern is None else parse_pattern(table.pattern)


def _selectors(given: str | list[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def load_recipe(path: str | os.PathLike[str]) -> PruneSettings:
    """The settings of a recipe file; see docs/recipes.md.

    Raises:
        RecipeError: it cannot be read, or has keys or values that are not understood.
    """
    recipe = read_recipe(Path(path))
    return combine(recipe, sparsity=None, pattern=None, scope=None, include=(), exclude=())


def combine(
    recipe: Recipe | None,
    *,
    sparsity: float | None,
    pattern: Pattern | None,
    scope: Scope | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    method: Method = DEFAULT,
    refine: bool = False,
    reconstruct: bool = False,
    calibration: Calibration | None = None,
    budget: Budget = Budget.MATRIX,
) -> PruneSettings:
    """Settings from flags and a recipe; what both set is an error.

    A recipe does not set method, refinement, calibration and budget.

    Raises:
        InvalidOption: a flag and the recipe set the same thing.
    """
    flags = {
        "sparsity": sparsity,
        "pattern": pattern,
        "scope": scope,
        "include": include,
        "exclude": exclude,
    }
    recipe = recipe or Recipe()
    for name, value in flags.items():
        unset = (None, ())
        if value not in unset and getattr(recipe, name) not in unset:
            raise InvalidOption(
                f"--{name} and the recipe's '{name}' are both given",
                hint=f"leave one of them out; the recipe says {getattr(recipe, name)}",
            )
    return PruneSettings(
        sparsity=sparsity if sparsity is not None else recipe.sparsity,
        pattern=pattern or recipe.pattern or Unstructured(),
        scope=scope or recipe.scope or method.spec.scope,
        method=method,
        refine=refine,
        reconstruct=reconstruct,
        calibration=calibration,
        budget=budget,
        include=include or recipe.include,
        exclude=exclude or recipe.exclude,
        rules=recipe.rules,
    )
