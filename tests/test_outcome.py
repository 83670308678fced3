"""Sentences on pools that got visibly more or fewer zeros than were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models

from prunectl import PruneSettings, prune
from prunectl.pattern import NM, Pattern, Unstructured
from prunectl.plan.plan import Pool
from prunectl.plan.settings import Budget, Scope
from prunectl.pruning.outcome import pool_note


@pytest.mark.parametrize(
    ("pattern", "scope", "sparsity", "zeros", "dense", "words"),
    [
        (Unstructured(), Scope.GLOBAL, 0.4, 400_000, 0, ""),
        (Unstructured(), Scope.GLOBAL, 0.4, 400_040, 0, ""),
        (Unstructured(), Scope.GLOBAL, 0.4, 500_000, 0, "more weights were zero already"),
        (Unstructured(), Scope.ROW, 0.4, 390_000, 0, "rounded for each row"),
        (NM(2, 4), Scope.GLOBAL, 0.4, 410_000, 1, "whole matrices take 2:4"),
        (NM(2, 4), Scope.GLOBAL, 0.001, 0, 4, "further away than none"),
        (NM(2, 4), Scope.GLOBAL, 0.5, 400_000, 2, "2 tensors cannot take 2:4"),
        (NM(2, 4), Scope.GLOBAL, None, 500_000, 0, ""),
        (NM(2, 4), Scope.GLOBAL, None, 400_000, 1, "1 tensor cannot take 2:4"),
    ],
)
def test_a_visible_difference_is_explained(
    pattern: Pattern, scope: Scope, sparsity: float | None, zeros: int, dense: int, words: str
) -> None:
    pool = Pool("default", pattern, scope, sparsity, ("a", "b"), 1_000_000)
    note = pool_note(pool, zeros, dense)
    assert bool(note) == bool(words)
    assert words in note


@pytest.mark.parametrize("budget", Budget)
def test_of_a_budget_too_it_is_said_that_zeros_were_there(budget: Budget) -> None:
    pool = Pool("default", NM(2, 4), Scope.GLOBAL, 0.3, ("a",), 1_000_000, budget=budget)
    assert "more weights were zero already" in pool_note(pool, 500_000, 1, before=500_000)
    assert "the nearest they come" in pool_note(pool, 310_000, 1, before=300_000)


def test_more_zeros_by_rounding_are_not_said_to_have_been_there(tmp_path: Path) -> None:
    """49% of rows of 32 and of 48 weights are 16 and 24, half of each."""
    tiny_models.build("llama", tmp_path / "source")
    for scope, words in (("row", "the number of zeros is rounded for each row"), ("tensor", "")):
        settings = PruneSettings(sparsity=0.49, scope=scope)  # type: ignore[arg-type]
        result = prune(tmp_path / "source", tmp_path / scope, settings)
        assert words in result.pools[0].note
        assert bool(result.pools[0].note) == bool(words)
