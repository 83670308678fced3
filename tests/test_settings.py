"""Settings take what people write, and refuse what has no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunectl
from prunectl.errors import InvalidOption, InvalidPattern, InvalidSparsity
from prunectl.pattern import NM, Unstructured
from prunectl.plan.settings import PruneSettings, Rule, Scope


def loose(**values: Any) -> PruneSettings:
    return PruneSettings(**values)


def test_strings_become_what_they_mean() -> None:
    assert loose(pattern="2:4").pattern == NM(2, 4)
    settings = loose(scope="row", include="lm_head", exclude=["a.*", "b"])
    assert settings.scope is Scope.ROW
    assert settings.include == ("lm_head",)
    assert settings.exclude == ("a.*", "b")
    rule = Rule(**{"match": "a.*", "pattern": "unstructured", "scope": "tensor", "sparsity": 1})
    assert rule == Rule(("a.*",), 1.0, Unstructured(), Scope.TENSOR)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"pattern": "4:2"}, InvalidPattern),
        ({"scope": "rows"}, InvalidOption),
        ({"sparsity": "0.4"}, InvalidSparsity),
        ({"sparsity": True}, InvalidSparsity),
    ],
)
def test_what_has_no_meaning_is_refused(values: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        loose(**values)


def test_a_recipe_is_settings(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('sparsity = 0.5\nscope = "row"\n[[rules]]\nmatch = "a"\nskip = true\n')
    assert prunectl.load_recipe(str(file)) == PruneSettings(
        sparsity=0.5, scope=Scope.ROW, rules=(Rule(("a",), skip=True),)
    )
