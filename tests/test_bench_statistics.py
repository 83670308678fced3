"""Medians, spreads and intervals of benchmarks, against samples whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from prunectl.benchmarking.timing import (
    FASTER,
    SLOWER,
    UNDECIDED,
    Ratio,
    paired_ratio,
    sign_test,
    summarize,
    unpaired_ratio,
)


def test_a_summary_of_eleven_samples() -> None:
    found = summarize([float(value) for value in (10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)])
    assert (found.median, found.p10, found.p90, found.rounds) == (5.0, 1.0, 9.0, 11)
    assert found.cv == pytest.approx(11**0.5 / 5)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize([])
    with pytest.raises(ValueError, match="no samples"):
        unpaired_ratio([], [1.0], 0)
    with pytest.raises(ValueError, match="every round"):
        paired_ratio([1.0, 2.0], [1.0], 0)


def test_constant_samples_give_the_exact_ratio() -> None:
    assert paired_ratio([3.0] * 7, [2.0] * 7, 0) == Ratio(1.5, 1.5, 1.5, 2 / 2**7)
    assert unpaired_ratio([1.0] * 7, [2.0] * 9, 0) == Ratio(0.5, 0.5, 0.5)


def test_the_same_seed_gives_the_same_interval() -> None:
    draw = np.random.default_rng(1)
    left, right = draw.normal(1, 0.1, 15).tolist(), draw.normal(1, 0.1, 15).tolist()
    assert paired_ratio(left, right, 5) == paired_ratio(left, right, 5)
    assert paired_ratio(left, right, 5) != paired_ratio(left, right, 6)


def test_drift_that_hits_both_sides_hides_no_difference() -> None:
    drift = np.linspace(1, 3, 15)
    assert paired_ratio((drift * 1.10).tolist(), drift.tolist(), 0).verdict == FASTER
    # The same samples, as if they came from two runs: the drift is all that is seen.
    assert unpaired_ratio((drift * 1.10).tolist(), drift.tolist(), 0).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict"),
    [
        (1.1, 1.01, 1.2, FASTER),
        (0.9, 0.8, 0.99, SLOWER),
        (1.1, 0.99, 1.2, UNDECIDED),
        (1.1, 1.0, 1.2, UNDECIDED),
        (0.9, 0.8, 1.0, UNDECIDED),
        (1.02, 1.01, 1.03, UNDECIDED),  # no more than equal models differ by
        (0.98, 0.97, 0.99, UNDECIDED),
    ],
)
def test_a_verdict_needs_an_interval_without_one_and_a_difference(
    ratio: float, low: float, high: float, verdict: str
) -> None:
    assert Ratio(ratio, low, high).verdict == verdict


def test_the_sign_test_is_that_of_a_fair_coin() -> None:
    for wins in range(9):
        falls = [bin(heads).count("1") for heads in range(2**8)]
        expected = sum(abs(one - 4) >= abs(wins - 4) for one in falls) / 2**8
        assert sign_test(wins, 8 - wins) == expected
    assert sign_test(0, 0) == 1.0


def test_a_difference_in_too_few_rounds_is_none() -> None:
    # Medians are far apart in every resample that matters, and 5 of 7 rounds prove nothing.
    assert Ratio(1.5, 1.2, 1.9, sign_test(5, 2)).verdict == UNDECIDED
    assert Ratio(1.5, 1.2, 1.9, sign_test(7, 0)).verdict == FASTER
    assert Ratio(0.5, 0.4, 0.9, sign_test(3, 12)).verdict == SLOWER
    left, right = [2.0, 2, 2, 2, 2, 1, 1], [1.0, 1, 1, 1, 1, 2, 2]
    assert paired_ratio(left, right, 0).chance == sign_test(5, 2)


@pytest.mark.parametrize("rounds", [7, 15])
def test_equal_sides_are_rarely_called_different(rounds: int) -> None:
    draw = np.random.default_rng(2)
    called = 0
    for seed in range(300):
        common = draw.gamma(4, 0.1, rounds)
        left, right = (1 + common + draw.normal(0, 0.05, rounds) for _ in range(2))
        called += paired_ratio(left.tolist(), right.tolist(), seed).verdict != UNDECIDED
    assert called / 300 < 0.03


def test_a_true_difference_lies_in_most_intervals() -> None:
    draw = np.random.default_rng(3)
    inside = 0
    for seed in range(300):
        left, right = 1.3 * draw.lognormal(0, 0.1, 15), draw.lognormal(0, 0.1, 15)
        found = paired_ratio(left.tolist(), right.tolist(), seed)
        inside += found.low <= 1.3 <= found.high
    assert inside / 300 > 0.9
