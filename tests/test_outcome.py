"""Sentences on pools that got visibly more or fewer zeros than were asked for."""

from __future__ import annotations

import pytest

from prunectl.pattern import NM, Pattern, Unstructured
from prunectl.plan import Pool
from prunectl.pruning.outcome import pool_note
from prunectl.settings import Scope


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


def test_a_rules_pool_is_named() -> None:
    pool = Pool("*.mlp.*", NM(2, 4), Scope.GLOBAL, None, ("a",), 1000)
    assert "in *.mlp.*" in pool_note(pool, 0, 1)
