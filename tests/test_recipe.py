"""TOML recipes: what is read, what is refused, and flags that say the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunectl.errors import InvalidOption, RecipeError
from prunectl.pattern import NM, Unstructured
from prunectl.plan.recipe import Recipe, combine, read_recipe
from prunectl.plan.settings import PruneSettings, Rule, Scope

FLAGS: dict[str, Any] = {
    "sparsity": None,
    "pattern": None,
    "scope": None,
    "include": (),
    "exclude": (),
}


def read(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "recipe.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_recipe(path)


def test_a_whole_recipe(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        sparsity = 0.5
        pattern = "2:4"
        include = "lm_head"
        exclude = ["layers.0", "re:x"]
        [[rules]]
        match = ["*.down.*", "*.up.*"]
        sparsity = 0.3
        [[rules]]
        match = "layers.1"
        skip = true
        [[rules]]
        match = "layers.2"
        pattern = "unstructured"
        scope = "row"
        skip = false
        """,
    )
    assert recipe == Recipe(
        sparsity=0.5,
        pattern=NM(2, 4),
        include=("lm_head",),
        exclude=("layers.0", "re:x"),
        rules=(
            Rule(("*.down.*", "*.up.*"), sparsity=0.3),
            Rule(("layers.1",), skip=True),
            Rule(("layers.2",), pattern=Unstructured(), scope=Scope.ROW),
        ),
    )


def test_an_empty_recipe_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Recipe()
    assert read(tmp_path, "sparsity = 1").sparsity == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sparsity = ", "not valid TOML"),
        ("sparsity = 0.5\nsparsity = 0.6", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        ("x = " + "[" * 20_000, "not valid TOML"),
        ("sparsity = " + "9" * 5000, "not valid TOML"),
        ("sparsity = " + "9" * 400, "sparsity: number out of range"),
        ("sparsety = 0.5", "unknown key 'sparsety' (known: exclude, include, pattern, "),
        ("sparsity = '0.5'", "sparsity is not a number"),
        ("sparsity = true", "sparsity is not a number"),
        ("sparsity = [0.5]", "sparsity is not a number"),
        ("pattern = '4:2'", "did you mean 2:4"),
        ("pattern = 2", "pattern is not a string"),
        ("scope = 'layer'", "scope: invalid enum value 'layer'; it is one of global"),
        ("scope = 1", "scope is not a string"),
        ("include = 3", "include is not a string or a list"),
        ("exclude = ['a', 3]", "exclude[1] is not a string"),
        ("rules = 3", "[[rules]]"),
        ("rules = [1]", "[[rules]]"),
        ("[rules]\nmatch = 'x'", "[[rules]]"),
        ("[[rules]]\nsparsity = 0.5", "rule 1: match is missing"),
        ("[[rules]]\nmatch = []\nsparsity = 0.5", "rule 1: match is empty"),
        ("[[rules]]\nmatch = 3", "rule 1: match is not a string or a list"),
        ("[[rules]]\nmatch = 'x'\nskip = 'yes'", "rule 1: skip is not true or false"),
        ("[[rules]]\nmatch = 'x'\nskip = true\nsparsity = 0.5", "so the rule cannot set sparsity"),
        ("[[rules]]\nmatch = 'x'\nskip = true\n[[rules]]\nmatch = 'y'\nsparse = 1",
         "rule 2: unknown key 'sparse' (known: match,"),
        ("[[rules]]\nmatch = 'x'\nsparsity = 'a'", "rule 1: sparsity is not a number"),
        ("[[rules]]\nmatch = 'x'\npattern = '3:3'", "rule 1: pattern '3:3'"),
        ("[[rules]]\nmatch = 'x'\nscope = 'x'", "rule 1: scope: invalid enum value 'x'"),
        ("[[rules]]\nmatch = 'x'\ninclude = 'y'", "rule 1: unknown key 'include'"),
    ],
)  # fmt: skip
def test_recipes_that_are_not_understood(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"recipe {tmp_path / 'recipe.toml'}: ")
    assert why in caught.value.why
    assert caught.value.exit_code == 2


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "missing.toml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_recipe(tmp_path)
    with pytest.raises(RecipeError, match="more than 1,048,576 bytes"):
        read_recipe(Path("/dev/zero"))


def test_flags_alone() -> None:
    assert combine(None, **FLAGS) == PruneSettings()
    flags = {
        "sparsity": 0.4,
        "pattern": NM(2, 4),
        "scope": Scope.GLOBAL,
        "include": ("a",),
        "exclude": ("b",),
    }
    assert combine(None, **flags) == PruneSettings(0.4, NM(2, 4), Scope.GLOBAL, ("a",), ("b",))


def test_flags_fill_what_the_recipe_leaves_open() -> None:
    rules = (Rule(("x",), skip=True),)
    recipe = Recipe(pattern=NM(2, 4), exclude=("b",), rules=rules)
    found = combine(recipe, **(FLAGS | {"sparsity": 0.4, "include": ("a",)}))
    assert found == PruneSettings(0.4, NM(2, 4), Scope.GLOBAL, ("a",), ("b",), rules)


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("sparsity", 0.4, 0.5),
        ("sparsity", 0.4, 0.4),
        ("sparsity", 0.4, 0.0),
        ("pattern", NM(2, 4), NM(1, 4)),
        ("pattern", Unstructured(), NM(2, 4)),
        ("scope", Scope.GLOBAL, Scope.ROW),
        ("include", ("a",), ("b",)),
        ("exclude", ("a",), ("b",)),
    ],
)
def test_what_both_say_is_an_error(name: str, value: Any, other: Any) -> None:
    with pytest.raises(InvalidOption, match=f"--{name} and the recipe's '{name}' are both given"):
        combine(Recipe(**{name: other}), **(FLAGS | {name: value}))
