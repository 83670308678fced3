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
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunectl.errors import InvalidOption, PrunectlError, RecipeError
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
_TOP = {"sparsity", "pattern", "scope", "include", "exclude", "rules"}
_RULE = {"match", "sparsity", "pattern", "scope", "skip"}


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
    except (ValueError, RecursionError) as error:
        raise RecipeError(path, f"not valid TOML: {error}") from None
    _check_keys(path, table, _TOP, "the recipe")
    rules = table.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise RecipeError(path, "'rules' must be written as [[rules]] tables")
    return Recipe(
        sparsity=_sparsity(path, table, "the recipe"),
        pattern=_pattern(path, table, "the recipe"),
        scope=_scope(path, table, "the recipe"),
        include=_selectors(path, table, "include"),
        exclude=_selectors(path, table, "exclude"),
        rules=tuple(_rule(path, rule, number) for number, rule in enumerate(rules, 1)),
    )


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
        calibration=calibration,
        budget=budget,
        include=include or recipe.include,
        exclude=exclude or recipe.exclude,
        rules=recipe.rules,
    )


def _rule(path: Path, table: dict[str, Any], number: int) -> Rule:
    where = f"rule {number}"
    _check_keys(path, table, _RULE, where)
    match = _selectors(path, table, "match")
    if not match:
        raise RecipeError(path, f"{where} has no 'match'")
    skip = table.get("skip", False)
    if not isinstance(skip, bool):
        raise RecipeError(path, f"{where}: 'skip' is true or false")
    others = set(table) - {"match", "skip"}
    if skip and others:
        raise RecipeError(
            path, f"{where} skips its tensors and also sets {', '.join(sorted(others))}"
        )
    return Rule(
        match,
        sparsity=_sparsity(path, table, where),
        pattern=_pattern(path, table, where),
        scope=_scope(path, table, where),
        skip=skip,
    )


def _check_keys(path: Path, table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise RecipeError(
            path, f"{where}: unknown key '{unknown[0]}' (known: {', '.join(sorted(known))})"
        )


def _sparsity(path: Path, table: dict[str, Any], where: str) -> float | None:
    value = table.get("sparsity")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(path, f"{where}: 'sparsity' must be a number")
    try:
        return float(value)
    except OverflowError:
        raise RecipeError(path, f"{where}: 'sparsity' is far too large") from None


def _pattern(path: Path, table: dict[str, Any], where: str) -> Pattern | None:
    value = table.get("pattern")
    if value is None:
        return None
    try:
        return parse_pattern(str(value))
    except PrunectlError as error:
        raise RecipeError(path, f"{where}: {error.message}") from None


def _scope(path: Path, table: dict[str, Any], where: str) -> Scope | None:
    value = table.get("scope")
    if value is None:
        return None
    try:
        return Scope(str(value))
    except ValueError:
        raise RecipeError(path, f"{where}: 'scope' is one of {', '.join(Scope)}") from None


def _selectors(path: Path, table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RecipeError(path, f"'{key}' must be a string or a list of strings")
    return tuple(value)
