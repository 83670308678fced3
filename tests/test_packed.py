"""Packed fields of TensorStats: seen as plain dicts and tuples, and small."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from dataclasses import fields, replace
from typing import Any

import pytest

from prunectl.analysis.result import PatternFit, TensorStats
from prunectl.to_json import to_json

IS = ("x.weight", "bf16", (32, 32), 1024, "mlp", "model.layers", 0, "mlp", True, "", True)
SETS: dict[str, Any] = {
    "near_zero": {"1e-08": 0, "0.01*std": 2**62},
    "quantiles": {f"{i / 8:g}": i / 3 for i in range(7)},
    "octaves": {e: e + 20 for e in range(-12, 0)},
    "patterns": {"2:4": PatternFit(0.75, 512), "4:8": PatternFit(None, 3, "why")},
    "sparsity": tuple(i / 19 for i in range(19)),
}


def stats() -> TensorStats:
    return TensorStats(*IS, **SETS)


def test_they_are_dicts_and_tuples_in_their_order() -> None:
    one = stats()
    for name, want in SETS.items():
        got = getattr(one, name)
        assert type(got) is type(want)
        assert got == want
        assert list(got) == list(want)


def test_they_are_empty_by_default() -> None:
    one = TensorStats(*IS)
    assert [getattr(one, name) for name in SETS] == [{}, {}, {}, {}, ()]


def test_copies_comparisons_and_json_see_them() -> None:
    one = stats()
    assert one == stats() == copy.deepcopy(one) == pickle.loads(pickle.dumps(one))
    changed = replace(one, octaves={3: 1}, minimum=math.nan)
    assert changed.octaves == {3: 1}
    assert changed.near_zero == SETS["near_zero"]
    assert changed != one
    assert [field.name for field in fields(one)][-4:] == list(SETS)[1:]
    assert to_json(one)["patterns"] == to_json(SETS["patterns"])
    assert to_json(one)["octaves"] == {str(e): n for e, n in SETS["octaves"].items()}
    assert to_json(one)["sparsity"] == list(SETS["sparsity"])
    with pytest.raises(AttributeError):
        one.octaves = {}  # type: ignore[misc]


def test_a_tensor_takes_little_memory() -> None:
    def many() -> list[TensorStats]:
        return [
            TensorStats(
                *IS,
                near_zero={str(t): 1000 + i for t in range(4)},
                quantiles={str(q): q + i / 7 for q in range(7)},
                octaves={e: 1000 + i + e for e in range(12)},
                patterns={"2:4": PatternFit(0.5 + i / 9, 512 + i)},
                sparsity=tuple(s + i / 7 for s in range(19)),
            )
            for i in range(1000)
        ]

    tracemalloc.start()
    try:
        held = many()
        size = tracemalloc.get_traced_memory()[0] / len(held)
    finally:
        tracemalloc.stop()
    assert size < 1800  # bytes; as dicts of Python numbers 3,500
