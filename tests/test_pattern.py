"""Patterns, the exact count that a sparsity means, and what errors say."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunectl import errors
from prunectl.errors import InvalidPattern, PrunectlError, UsageError
from prunectl.pattern import MAX_GROUP, NM, Unstructured, parse_nm, parse_pattern, pruned_count
from prunectl.tensorspec import DTYPES


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", NM(2, 4)),
        (" 2:4 ", NM(2, 4)),
        ("1:2", NM(1, 2)),
        ("02:04", NM(2, 4)),
        ("63:64", NM(63, 64)),
        ("unstructured", Unstructured()),
        ("Unstructured", Unstructured()),
        ("\tUNSTRUCTURED\n", Unstructured()),
    ],
)
def test_patterns_that_are_understood(text: str, pattern: NM | Unstructured) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("4:2", "did you mean 2:4"),
        ("0:4", "at least 1"),
        ("0:0", "at least 1"),
        ("3:3", "prunes nothing"),
        ("2:3x", "neither"),
        ("2:65", "M is 2 to 64"),
        ("2:0", "M is 2 to 64"),
        ("2 :4", "neither"),
        ("-2:4", "neither"),
        ("+2:4", "neither"),
        ("2:4:8", "neither"),
        ("2.0:4", "neither"),
        ("2/4", "neither"),
        ("2", "neither"),
        ("", "neither"),
        ("none", "neither"),
        ("\u0662:\u0664", "neither"),
        ("\uff12:\uff14", "neither"),
        ("1_0:20", "neither"),
        ("1:99999999999999999999", "neither"),
        ("2:4\n2:4", "neither"),
    ],
)
def test_patterns_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidPattern, match=why) as caught:
        parse_pattern(text)
    assert caught.value.text == text
    assert caught.value.exit_code == 2
    assert caught.value.hint


@given(n=st.integers(1, MAX_GROUP), m=st.integers(1, MAX_GROUP))
def test_what_prints_reads_back(n: int, m: int) -> None:
    if n >= m:
        with pytest.raises(InvalidPattern):
            parse_pattern(f"{n}:{m}")
        return
    pattern = parse_nm(f"{n}:{m}")
    assert (pattern.n, pattern.m) == (n, m)
    assert parse_pattern(str(pattern)) == pattern
    assert pattern.sparsity == pytest.approx(1 - n / m)
    assert str(parse_pattern(str(Unstructured()))) == "unstructured"


@pytest.mark.parametrize(
    ("n", "m", "why"),
    [(0, 4, "at least 1"), (-1, 4, "at least 1"), (4, 4, "prunes nothing"), (4, 2, "mean 2:4"),
     (2, 256, "M is 2 to 64"), (2.0, 4, "whole numbers"), ("2", "4", "whole numbers")],
)  # fmt: skip
def test_a_pattern_that_is_made_is_checked_as_one_that_is_read(n: Any, m: Any, why: str) -> None:
    with pytest.raises(InvalidPattern, match=why):
        NM(n, m)


def test_parse_nm_refuses_unstructured() -> None:
    with pytest.raises(InvalidPattern, match="N:M pattern"):
        parse_nm("unstructured")


@given(sparsity=st.floats(0, 1, exclude_min=True, exclude_max=True), weights=st.integers(0, 10**12))
def test_the_count_is_exact(sparsity: float, weights: int) -> None:
    with localcontext(prec=1200):
        exact = Decimal(repr(sparsity)) * weights + Decimal("0.5")
        expected = int(exact.to_integral_value(ROUND_FLOOR))
    assert pruned_count(sparsity, weights) == expected
    assert 0 <= pruned_count(sparsity, weights) <= weights


@pytest.mark.parametrize(
    ("sparsity", "weights", "count"),
    [
        (0.5, 1, 1),
        (0.5, 3, 2),
        (0.3, 5, 2),
        (0.7, 5, 4),
        (0.1, 5, 1),
        (0.1 + 0.2, 10, 3),
        (0.29, 50, 15),
        (0.4, 10**12 + 1, 4 * 10**11),
        (0.1, 10**18 + 5, 10**17 + 1),
        (0.9999999999999999, 10, 10),
        (5e-324, 10**12, 0),
        (0.4, 0, 0),
    ],
)
def test_counts_where_floats_go_wrong(sparsity: float, weights: int, count: int) -> None:
    assert pruned_count(sparsity, weights) == count


def test_only_floats_of_16_bits_and_more_are_prunable() -> None:
    assert {name for name, d in DTYPES.items() if d.is_prunable} == {"F64", "F32", "F16", "BF16"}
    assert {name for name, d in DTYPES.items() if d.is_float} == {
        "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2",
    }  # fmt: skip
    for dtype in DTYPES.values():
        if dtype.is_float:
            exponent_bits = dtype.bits - 1 - dtype.mantissa_bits
            assert exponent_bits in {4, 5, 8, 11}


def test_errors_say_what_where_and_what_to_do() -> None:
    made: list[PrunectlError] = [
        errors.InvalidSparsity("40", "too large"),
        errors.RecipeError("r.toml", "bad key"),
        errors.NoModelGiven(),
        errors.ModelNotFound("org/name", "no such repository", hint="check it"),
        errors.AccessDenied("org/name", "gated"),
        errors.HubUnreachable("org/name", "offline"),
        errors.NoWeights("folder", "only model.onnx"),
        errors.BadCheckpoint("model.safetensors", "truncated"),
        errors.UnsafePickle("model.bin", "os.system"),
        errors.UnsupportedCheckpoint("x.gguf", "is GGUF", hint="use another"),
        errors.NaNWeights("layer.weight", 1),
        errors.NothingPrunable("all excluded"),
        errors.OutputConflict("out", "is a file"),
        errors.NoSpace("out", 10**9, 5),
        errors.CannotWrite("out", "read-only"),
        errors.BadManifest("prunectl.json", "newer"),
    ]
    for error in made:
        assert error.message == str(error)
        assert error.hint
        assert "\n" not in str(error)
        assert error.exit_code == (
            2 if isinstance(error, UsageError | errors.OutputConflict) else 1
        )
    assert "holds 1 NaN value," in str(errors.NaNWeights("t", 1))
    assert "holds 2 NaN values," in str(errors.NaNWeights("t", 2))
    assert "1,000,000,000 bytes are needed and 5 are free" in str(errors.NoSpace("o", 10**9, 5))
