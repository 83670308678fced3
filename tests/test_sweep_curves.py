"""Which sparsities are measured, and what is read off a curve: against plain definitions."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kneed import KneeLocator

from prunectl.checkpoint.opening import open_checkpoint
from prunectl.cli.sweep_screen import HEIGHT, WIDTH, chart
from prunectl.errors import InvalidOption, PrunectlError
from prunectl.pattern import NM, Unstructured
from prunectl.plan.settings import Calibration, PruneSettings
from prunectl.studies.sweep.commands import named, prune_command, short_names
from prunectl.studies.sweep.curves import (
    Read,
    Redraws,
    Requested,
    essential,
    knee,
    last_within,
    read_curve,
)
from prunectl.studies.sweep.points import Point
from prunectl.studies.sweep.result import (
    Curve,
    CurvePoint,
    Essential,
    Status,
    SweepResult,
    sweep_csv,
)
from prunectl.studies.sweep.settings import (
    EpsilonMode,
    Grid,
    SweepSettings,
    Tolerance,
    most_of,
    next_point,
    parse_grid,
)

TENTHS = [Fraction(i, 10) for i in range(1, 10)]


# --- grids ----------------------------------------------------------------------------------


def test_a_range_is_what_people_count() -> None:
    assert parse_grid("0:0.9:0.1").points == tuple(TENTHS)
    assert parse_grid("0.1:0.35:0.1").points == tuple(TENTHS[:3])
    assert parse_grid(" 0.5:0.5:0.1 ").points == (Fraction(1, 2),)
    assert parse_grid("0.3, 0.1,0.3,0").points == (Fraction(1, 10), Fraction(3, 10))
    assert parse_grid("AUTO", 0.02) == Grid("auto", tuple(TENTHS), Fraction(1, 50))
    assert parse_grid("auto", 0.1).step == Fraction(1, 10)
    assert parse_grid("0.1").step is None


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 50))
def test_any_range_of_hundredths_holds_all_its_points(start: int, stop: int, gap: int) -> None:
    text = f"{Decimal(start) / 100}:{Decimal(stop) / 100}:{Decimal(gap) / 100}"
    wanted = [Fraction(at, 100) for at in range(start, stop + 1, gap) if at]
    if not wanted:
        with pytest.raises(InvalidOption):
            parse_grid(text)
    else:
        assert parse_grid(text).points == tuple(wanted)


@given(st.lists(st.integers(1, 999), min_size=1, max_size=9))
def test_any_list_is_sorted_and_without_repeats(thousandths: list[int]) -> None:
    text = ",".join(str(one / 1000) for one in thousandths)
    found = parse_grid(text).points
    assert found == tuple(Fraction(one, 1000) for one in sorted(set(thousandths)))
    assert [float(one) for one in found] == sorted({one / 1000 for one in thousandths})


@given(st.text(alphabet="0123456789.:,-+einfau_ \t", max_size=12) | st.text(max_size=8))
def test_any_other_text_is_refused_in_words(text: str) -> None:
    with contextlib.suppress(InvalidOption):  # and nothing else
        found = parse_grid(text)
        assert found.points
        assert all(0 < one < 1 for one in found.points)
        assert list(found.points) == sorted(set(found.points))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no sparsity above 0"),
        ("0", "names no sparsity above 0"),
        ("1", "each is 0 or more, and below 1"),
        ("40", "each is 0 or more, and below 1"),
        ("-0.1", "each is 0 or more, and below 1"),
        ("nan", "'nan' is no number"),
        ("0.1,inf", "'inf' is no number"),
        ("half", "'half' is no number"),
        ("0.9:0.1:0.1", "is no range"),
        ("0:0.9", "is no range"),
        ("0:0.9:0", "is no range"),
        ("0:0.9:-0.1", "is no range"),
        ("0:0.9:0.1:0.1", "is no range"),
        ("0:0.9:", "'' is no number"),
        ("0:0.9:1e-300", "more than 1,000 points"),
        ("0:1:0.1", "each is 0 or more, and below 1"),
        ("1e-999999999,1", "each is 0 or more, and below 1"),
        ("0:0.9:1e-999999999", "is no range"),
        ("0.1,1e999999999", "is no number"),
    ],
)
def test_a_grid_without_a_meaning(text: str, words: str) -> None:
    with pytest.raises(InvalidOption, match=words) as failed:
        parse_grid(text)
    assert "auto, START:STOP:STEP" in failed.value.hint or "points" in words


def test_a_pattern_ends_its_curve() -> None:
    assert [most_of(one) for one in (Unstructured(), NM(2, 4), NM(1, 3))] == [
        1, Fraction(1, 2), Fraction(2, 3),
    ]  # fmt: skip
    auto = parse_grid("auto")
    assert auto.within(Unstructured()) == tuple(TENTHS)
    assert auto.within(NM(2, 4)) == tuple(TENTHS[:5])
    assert auto.within(NM(1, 3)) == (*TENTHS[:6], Fraction(2, 3))
    assert parse_grid("0.1:0.9:0.2").within(NM(2, 4)) == (*TENTHS[0:5:2],)
    assert parse_grid("0.2,0.4").within(NM(2, 4)) == (Fraction(1, 5), Fraction(2, 5))
    assert parse_grid("0.6").within(NM(2, 4)) == ()
    with pytest.raises(InvalidOption, match="no point that pattern 2:4 can reach"):
        SweepSettings(sparsity="0.6,0.7", patterns=("unstructured", "2:4"))  # type: ignore[arg-type]


def test_all_that_a_pattern_takes_is_no_budget() -> None:
    for pattern in (NM(2, 4), NM(1, 3), NM(3, 7), NM(5, 8)):
        settings = SweepSettings(patterns=(pattern,))
        last = float(settings.grid.within(pattern)[-1])
        assert settings.at(pattern, last, 0).sparsity is None
        assert settings.at(pattern, 0.1, 0).sparsity == 0.1


@given(
    st.integers(1, 100),
    st.sampled_from([Fraction(1, 100), Fraction(1, 50), Fraction(3, 100), Fraction(1, 1000)]),
)
def test_a_search_closes_in_on_where_it_turns(percent: int, step: Fraction) -> None:
    """Of a score that is good up to a place, the last good point and the first bad one are found,
    a step from one another, without a point measured twice."""
    turns = Fraction(percent, 100) + Fraction(1, 300)
    free = {one: one <= turns for one in (Fraction(0), *TENTHS)}
    for _ in range(40):
        wanted = next_point(free, step)
        if wanted is None:
            break
        assert wanted not in free
        assert 0 < wanted < 1
        free[wanted] = wanted <= turns
    else:
        pytest.fail("the search does not end")
    good = max(one for one, ok in free.items() if ok)
    bad = [one for one, ok in free.items() if not ok]
    if bad:
        assert good <= turns < min(bad)
        assert min(bad) - good <= step
    else:
        assert good == TENTHS[-1]
    assert len(free) <= 10 + 1 + math.ceil(math.log2(Fraction(1, 10) / step))


@given(st.lists(st.booleans(), min_size=9, max_size=9), st.integers(0, 2**32 - 1))
def test_a_search_ends_on_a_curve_that_is_not_even(good: list[bool], seed: int) -> None:
    step = Fraction(1, 100)
    rng = np.random.default_rng(seed)
    free = {Fraction(0): True, **dict(zip(TENTHS, good, strict=True))}
    for _ in range(200):
        wanted = next_point(free, step)
        if wanted is None:
            break
        assert wanted not in free
        free[wanted] = bool(rng.integers(2))
    last = max(one for one, ok in free.items() if ok)
    beyond = [one for one in free if one > last]
    assert not beyond or min(beyond) - last <= step


# --- tolerances -----------------------------------------------------------------------------


def test_losses_are_shares_of_dense_or_plain_differences() -> None:
    scores = np.array([19.0, 20.0, 22.0])
    relative, absolute = Tolerance(0.05), Tolerance(0.05, EpsilonMode.ABSOLUTE)
    assert np.allclose(relative.losses(scores, 20.0, higher_is_better=False), [-0.05, 0, 0.1])
    assert np.allclose(relative.losses(scores, 20.0, higher_is_better=True), [0.05, 0, -0.1])
    assert np.allclose(absolute.losses(scores, 20.0, higher_is_better=True), [1, 0, -2])
    # Of a dense score below 0, as a rank correlation may be, worse is still worse.
    assert np.allclose(relative.losses(np.array([-0.3]), -0.2, higher_is_better=True), [0.5])
    assert relative.bound(20.0, higher_is_better=False) == pytest.approx(21)
    assert relative.bound(-0.2, higher_is_better=True) == pytest.approx(-0.21)
    assert absolute.bound(0.9, higher_is_better=True) == pytest.approx(0.85)
    assert (str(relative), str(absolute)) == ("5% of the dense score", "0.05")
    for score in (0.0, 1.0):
        assert np.isnan(relative.losses(np.array([score]), 0.0, higher_is_better=True)).all()
    infinite = relative.losses(np.array([math.inf]), math.inf, higher_is_better=False)
    assert np.isnan(infinite).all()


# --- the turning point ----------------------------------------------------------------------

ONE_PERCENT = Tolerance(0.01)


def sure(losses: list[float], draws: int = 100) -> Any:
    """Draws that all say the same."""
    return np.repeat(np.array(losses)[None], draws, axis=0)


def read(losses: list[float], redrawn: Any = None, tolerance: Tolerance = ONE_PERCENT) -> Essential:
    grid = [0.1 * (i + 1) for i in range(len(losses))]
    drawn = sure(losses) if redrawn is None else redrawn
    return essential([round(s, 3) for s in grid], losses, drawn, tolerance)


def test_the_last_point_within_is_essential() -> None:
    found = read([0.001, 0.004, 0.03, 0.2])
    assert found == Essential(
        0.2, 0.2, 0.2, Status.FOUND, 0.3,
        "20% is within 1% of the dense score (95%: 20% to 20%), 30% is not.",
    )  # fmt: skip
    assert read([0.01, 0.010001]).sparsity == 0.1  # a loss of epsilon is within it


def test_what_an_essential_sparsity_can_be() -> None:
    all_within = read([-0.01, 0.0, 0.009])
    assert (all_within.status, all_within.sparsity, all_within.beyond) == (
        Status.NOT_REACHED, 0.3, None,
    )  # fmt: skip
    assert all_within.text.startswith("Not reached in this range: 30% is still within")
    none = read([0.02, 0.3])
    assert (none.status, none.sparsity, none.beyond) == (Status.NONE, None, 0.1)
    assert none.text == "Nothing is free: 10% already loses more than 1% of the dense score."
    nothing = essential([0.0, 0.25], [0.0, 0.3], np.zeros((0, 2)), Tolerance())
    assert (nothing.status, nothing.sparsity, nothing.beyond) == (Status.NONE, None, 0.25)
    near = essential([0.0264, 0.0343], [0.0, 0.3], np.zeros((0, 2)), Tolerance())
    assert near.text == "2.64% is within 1% of the dense score, 3.43% is not."
    failed = read([])
    assert (failed.status, failed.sparsity) == (Status.FAILED, None)
    assert failed.text == "No point could be measured."


def test_a_curve_that_is_not_even_is_read_to_its_last_point_within() -> None:
    found = read([0.004, 0.02, 0.009, 0.03])
    assert (found.sparsity, found.beyond, found.status) == (0.3, 0.4, Status.FOUND)
    assert found.text.endswith("Some points before it are not: the curve is not even.")


def test_a_loss_that_is_no_number_is_not_within() -> None:
    found = read([0.001, math.nan, 0.2])
    assert (found.sparsity, found.beyond) == (0.1, 0.2)
    assert read([math.nan, math.inf]).status is Status.NONE
    assert list(last_within(np.array([[0.0, math.nan], [math.nan, 0.0]]), 0.01)) == [1, 2]


def test_noise_is_told_from_a_result() -> None:
    rng = np.random.default_rng(0)

    def spread(losses: list[float], width: float) -> Any:
        return np.array(losses) + rng.uniform(-width, width, size=(2000, 1))

    # Half of the 95% interval of a uniform spread is 0.95 of its half.
    close = [0.001, 0.004, 0.03]
    assert read(close, spread(close, 0.0100)).status is Status.FOUND
    noisy = read(close, spread(close, 0.0110))
    assert (noisy.status, noisy.sparsity) == (Status.NOISE, 0.2)
    assert "The noise is larger than the tolerance of 1% of the dense score" in noisy.text
    assert "More samples tell more." in noisy.text
    # With no point within, noise is one where some draws are within.
    lost = [0.3, 0.5]
    assert read(lost, spread(lost, 0.2)).status is Status.NONE
    maybe = [0.05, 0.5]
    found = read(maybe, spread(maybe, 0.2))
    assert (found.status, found.sparsity) == (Status.NOISE, None)
    assert "no point is within it" in found.text
    # What lies beyond may be as unsure as it likes.
    wide = sure([0.001, 0.5])
    wide[:, 1] += rng.uniform(-0.4, 0.4, size=len(wide))
    assert read([0.001, 0.5], wide).status is Status.FOUND


def test_noise_that_changes_nothing_is_none() -> None:
    rng = np.random.default_rng(0)
    better = np.array([-0.05, -0.3]) + rng.uniform(-0.2, 0.2, size=(2000, 1))
    found = read([-0.05, -0.3], better)  # every draw ends at the last point
    assert (found.status, found.low, found.high) == (Status.NOT_REACHED, 0.2, 0.2)
    assert "Not reached in this range: 20% is still within" in found.text
    apart = np.array([-0.3, 0.4]) + rng.uniform(-0.2, 0.2, size=(2000, 1))
    assert read([-0.3, 0.4], apart).status is Status.FOUND


def test_models_have_short_names_where_they_are_told_apart() -> None:
    assert short_names(["/a/b/minilm", "org/name", "demo"]) == ["minilm", "org/name", "demo"]
    assert short_names(["/x/a/one", "/x/b/one"]) == ["a/one", "b/one"]
    assert short_names(["a/b/c/one", "/y/b/c/one"]) == ["a/b/c/one", "y/b/c/one"]
    assert short_names(["/one"]) == ["one"]
    assert short_names(["org/name@main", "org/name@v2"]) == ["org/name@main", "org/name@v2"]
    assert short_names(["/a/one", "/a/one"]) == ["one", "one"]
    assert short_names(["."]) == ["."]


def test_an_interval_has_measured_points_for_ends() -> None:
    drawn = np.concatenate([sure([0.0, 0.0, 0.5], 900), sure([0.0, 0.5, 0.5], 60),
                            sure([0.5, 0.5, 0.5], 40)])  # fmt: skip
    found = read([0.0, 0.001, 0.5], drawn)
    assert (found.low, found.sparsity, found.high) == (0.0, 0.2, 0.2)
    rare = np.concatenate([sure([0.0, 0.0, 0.5], 990), sure([0.5, 0.5, 0.5], 10)])
    assert read([0.0, 0.001, 0.5], rare).low == 0.2
    none = read([0.001, 0.5], np.zeros((0, 2)))
    assert (none.low, none.high, none.status) == (None, None, Status.FOUND)
    assert none.text == "10% is within 1% of the dense score, 20% is not."


def plain_last(losses: list[float], epsilon: float) -> int:
    found = 0
    for at, loss in enumerate(losses):
        if loss <= epsilon:
            found = at + 1
    return found


@given(
    st.lists(
        st.lists(st.floats(-1, 1) | st.just(math.nan) | st.just(math.inf), min_size=5, max_size=5),
        min_size=1,
        max_size=6,
    )
)
def test_the_last_within_is_that_of_a_plain_loop(curves: list[list[float]]) -> None:
    found = last_within(np.array(curves), 0.1)
    assert list(found) == [plain_last(one, 0.1) for one in curves]


@given(
    st.lists(st.floats(-0.1, 2) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=8),
    st.floats(0, 0.2),
)
def test_any_curve_is_read(losses: list[float], width: float) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array(losses) + rng.normal(0, width, size=(50, len(losses)))
    found = read(losses, drawn)
    assert found.text.endswith(".")
    assert "nan" not in found.text
    at = plain_last(losses, 0.01)
    place = round(0.1 * at, 3)
    assert found.sparsity == (place if at else None)
    assert (found.beyond is None) == (at == len(losses))
    assert found.status in set(Status) - {Status.FAILED}


# --- knees ----------------------------------------------------------------------------------


def test_a_knee_is_where_a_curve_bends() -> None:
    grid = [0.1 * i for i in range(1, 10)]
    losses = [0.0, 0.001, 0.002, 0.003, 0.01, 0.3, 0.6, 0.9, 1.2]
    assert knee(grid, losses) == pytest.approx(0.5)
    # One exploding point does not hide the others.
    assert knee(grid, [*losses[:8], 1e12]) in (pytest.approx(0.5), pytest.approx(0.8))


def test_what_has_no_knee() -> None:
    grid = [0.1 * i for i in range(1, 10)]
    assert knee([0.1, 0.2, 0.3], [0.0, 0.1, 0.9]) is None
    assert knee(grid, [0.0] * 9) is None
    assert knee(grid, [-0.01 * i for i in range(9)]) is None
    assert knee(grid, [math.nan] * 9) is None
    assert knee([], []) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.floats(-1, 1e300) | st.just(math.nan) | st.just(math.inf)),
        max_size=12,
    )
)
def test_a_knee_is_one_of_the_points(points: list[tuple[int, float]]) -> None:
    """Sparsities may come twice: of whole matrices, two budgets may be the same."""
    ordered = sorted(points, key=lambda one: one[0])
    grid = [at / 21 for at, _ in ordered]
    found = knee(grid, [loss for _, loss in ordered])
    assert found is None or found in grid


@given(
    st.lists(st.integers(1, 99), min_size=5, max_size=15, unique=True),
    st.lists(st.floats(-0.1, 10) | st.just(0.0), min_size=15, max_size=15),
)
def test_a_knee_is_that_of_kneed(places: list[int], losses: list[float]) -> None:
    grid = [at / 100 for at in sorted(places)]
    heights = np.maximum.accumulate(np.log1p(np.maximum([0.0, *losses[: len(grid)]], 0.0)))
    if heights[-1] > 0:
        wanted = KneeLocator([0.0, *grid], heights, curve="convex", direction="increasing").knee
        assert knee(grid, losses[: len(grid)]) == (None if wanted == grid[-1] else wanted)


# --- curves ---------------------------------------------------------------------------------


def mean(values: Any) -> float:
    return float(values.mean())


def point(sparsity: float, values: list[float], **changes: Any) -> Point:
    table = np.array(values, np.float64)[:, None]
    return replace(Point(sparsity, sparsity / 2, mean(table), table, {}, 1.0), **changes)


def failed(sparsity: float, why: str = "the loss is NaN") -> Point:
    return Point(sparsity, 0.0, None, None, {}, 1.0, why)


def asked(*points: Point) -> list[Requested]:
    return [Requested(one.sparsity, {0: one}) for one in points]


def curve_of(
    requested: list[Requested], tolerance: Tolerance = ONE_PERCENT, *, higher: bool = True
) -> Read:
    return read_curve(requested, Redraws(mean, 0), tolerance, higher_is_better=higher)


NOISE = np.random.default_rng(0).uniform(0, 1, 50)


def test_losses_of_the_same_samples_are_compared() -> None:
    """Every sample loses the same: how unsure the score is does not make the loss so."""
    dense, lost = list(1 + NOISE), list(1 + NOISE - 0.02)
    found = curve_of(asked(point(0, dense), point(0.1, lost), point(0.2, list(0.5 + NOISE))),
                     Tolerance(0.05, EpsilonMode.ABSOLUTE))  # fmt: skip
    first, second, third = found.points
    assert first.low is not None
    assert first.high is not None
    assert first.high - first.low > 0.1
    assert (first.change, first.change_low, first.change_high) == (0, None, None)
    assert second.change == pytest.approx(0.02)
    assert second.change_low == pytest.approx(0.02)
    assert second.change_high == pytest.approx(0.02)
    assert third.change == pytest.approx(0.5)
    assert (found.essential.sparsity, found.essential.low, found.essential.high) == (0.1,) * 3
    assert found.essential.status is Status.FOUND
    assert found.bound == pytest.approx(np.mean(dense) - 0.05)
    assert second.overall == 0.05
    # A plain loop over the same draws.
    drawn = np.random.default_rng(0).integers(50, size=(1000, 50))
    scores = sorted(float(np.mean([dense[i] for i in row])) for row in drawn)
    assert first.low == pytest.approx(np.percentile(scores, 2.5))
    assert first.high == pytest.approx(np.percentile(scores, 97.5))


def test_a_score_is_the_mean_over_seeds_and_as_unsure_as_they_differ() -> None:
    flat = [1.0] * 20
    several = Requested(
        0.1, {0: point(0.1, [0.9] * 20), 1: point(0.1, [0.8] * 20), 7: point(0.1, [0.7] * 20)}
    )
    found = curve_of([Requested(0, {0: point(0, flat), 1: point(0, flat), 7: point(0, flat)}),
                      several])  # fmt: skip
    one = found.points[1]
    assert one.score == pytest.approx(0.8)
    assert one.change == pytest.approx(0.2)
    assert one.seeds == {"0": pytest.approx(0.9), "1": pytest.approx(0.8), "7": pytest.approx(0.7)}
    assert one.seconds == 3
    assert (one.low, one.high) == (pytest.approx(0.7), pytest.approx(0.9))
    assert (one.change_low, one.change_high) == (pytest.approx(0.1), pytest.approx(0.3))


def test_a_point_that_failed_leaves_the_others() -> None:
    good = point(0.1, list(1 + NOISE))
    found = curve_of(asked(point(0, list(1 + NOISE)), good, failed(0.2), point(0.3, [0.1] * 50)))
    bad = found.points[2]
    assert (bad.score, bad.change, bad.low, bad.failed) == (None, None, None, "the loss is NaN")
    assert bad.seeds == {"0": None}
    assert (found.essential.sparsity, found.essential.beyond) == (0.1, 0.3)
    assert found.essential.text.endswith("Not measured: 0.2.")
    # Nor is a curve that ends in one said to go on.
    found = curve_of(asked(point(0, list(1 + NOISE)), good, failed(0.2)))
    assert found.essential.status is Status.NOT_REACHED
    assert found.essential.text.endswith("Not measured: 0.2.")


def test_one_seed_that_failed_is_a_point_that_failed() -> None:
    dense = Requested(0, {0: point(0, [1.0] * 9), 1: point(0, [1.0] * 9)})
    half = Requested(0.1, {0: point(0.1, [1.0] * 9), 1: failed(0.1)})
    found = curve_of([dense, half])
    assert (found.points[1].score, found.points[1].failed) == (None, "the loss is NaN")
    assert found.points[1].seeds == {"0": 1.0, "1": None}
    assert found.essential.status is Status.FAILED


def test_without_a_dense_score_there_is_no_curve() -> None:
    found = curve_of(asked(failed(0), point(0.1, [1.0] * 9)))
    assert found.bound is None
    assert found.essential.status is Status.FAILED
    assert found.essential.text == "No point could be measured. The dense model has no score."
    assert found.knee is None
    assert [one.change for one in found.points] == [None, None]


def test_a_dense_score_of_nothing() -> None:
    found = curve_of(asked(point(0, [0.0] * 9), point(0.1, [0.0] * 9)))
    assert found.essential.status is Status.FAILED
    assert "a share of it is nothing: --epsilon-mode absolute" in found.essential.text
    absolute = Tolerance(0.01, EpsilonMode.ABSOLUTE)
    found = curve_of(asked(point(0, [0.0] * 9), point(0.1, [0.0] * 9)), absolute)
    assert found.essential.status is Status.NOT_REACHED


def test_a_score_beyond_all_numbers() -> None:
    infinite = Point(0.2, 0.1, math.inf, np.full((9, 1), math.inf), {}, 1.0)
    dense = point(0, [1.0] * 9)
    found = curve_of(asked(dense, point(0.1, [1.0] * 9), infinite), higher=False)
    assert (found.essential.sparsity, found.essential.beyond) == (0.1, 0.2)
    last = found.points[2]
    assert (last.score, last.low, last.change, last.change_high) == (None,) * 4
    assert last.failed is None
    dense = replace(infinite, sparsity=0.0)
    found = curve_of(asked(dense, point(0.1, [1.0] * 9)), higher=False)
    assert (found.bound, found.points[0].score) == (None, None)
    assert found.essential.status is Status.FAILED
    assert found.essential.text.endswith("The dense model's score is infinite.")


def test_one_sample_has_no_interval() -> None:
    found = curve_of(asked(point(0, [1.0]), point(0.1, [1.0]), point(0.2, [0.5])))
    assert [one.low for one in found.points] == [None] * 3
    assert (found.essential.sparsity, found.essential.low) == (0.1, None)
    seeds = {0: point(0, [1.0]), 1: point(0, [1.0])}
    assert curve_of([Requested(0, seeds), Requested(0.1, dict(seeds))]).points[1].low is None


def test_further_scores_are_means_where_there_are_any() -> None:
    def made(value: float) -> Point:
        return point(0.1, [1.0, 1.0], parts={"f1": value, "mcc": math.nan})

    dense = Requested(0, {0: point(0, [1.0, 1.0]), 1: point(0, [1.0, 1.0])})
    found = curve_of([dense, Requested(0.1, {0: made(0.5), 1: made(0.7)})])
    assert found.points[1].parts == {"f1": pytest.approx(0.6), "mcc": None}


# --- settings, commands, tables -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pruning", "words"),
    [
        ({"patterns": ()}, {}, "a sweep needs a pattern"),
        ({"patterns": ("4:2",)}, {}, "pattern '4:2' is not valid"),
        ({"seeds": ()}, {}, "--seeds"),
        ({"seeds": (-1,)}, {}, "--seeds"),
        ({"seeds": (2**64,)}, {}, "--seeds"),
        ({"patterns": ("2:4",)}, {"sparsity": 0.5, "scope": "row"},
         "scope 'row' has no meaning with pattern 2:4"),
        ({}, {"sparsity": 0.5, "method": "wanda"}, "method wanda needs calibration samples"),
        ({}, {"sparsity": 0.5, "budget": "rows"}, "--budget rows is for N:M"),
        ({}, {"sparsity": 0.5, "include": ("re:(",)}, "no.* regular expression"),
        ({}, {"mask": "m.safetensors"}, "no masks and no recipe"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(
    changes: dict[str, Any], pruning: dict[str, Any], words: str
) -> None:
    with pytest.raises(PrunectlError, match=words):
        SweepSettings(pruning=PruneSettings(**pruning), **changes)


def test_the_same_pattern_or_seed_twice_is_one() -> None:
    settings = SweepSettings(patterns=("2:4", NM(2, 4), "unstructured"), seeds=(1, 0, 1))  # type: ignore[arg-type]
    assert settings.patterns == (NM(2, 4), Unstructured())
    assert settings.seeds == (1, 0)


def test_the_command_says_all_that_a_point_was_pruned_by() -> None:
    plain = PruneSettings(sparsity=0.24)
    assert prune_command("demo", Unstructured(), plain) == (
        "prunectl prune demo --sparsity 0.24 -o out/"
    )
    assert prune_command("my model", NM(2, 4), PruneSettings(pattern=NM(2, 4))) == (
        "prunectl prune 'my model' --pattern 2:4 -o out/"
    )
    rows = PruneSettings(sparsity=0.123456789, pattern=NM(2, 4), budget="rows")  # type: ignore[arg-type]
    assert prune_command("m", NM(2, 4), rows) == (
        "prunectl prune m --sparsity 0.123456789 --pattern 2:4 --budget rows -o out/"
    )
    chosen = PruneSettings(
        sparsity=0.3,
        scope="tensor",  # type: ignore[arg-type]
        method="wanda",  # type: ignore[arg-type]
        refine=True,
        include=("lm_head",),
        exclude=("re:layers.0.*",),
        calibration=Calibration(("text:a b.txt",), 8, 64, seed=3, damping=0.01),
    )
    assert prune_command("org/name", Unstructured(), chosen) == (
        "prunectl prune org/name --sparsity 0.3 --method wanda --scope tensor --include lm_head "
        "--exclude 're:layers.0.*' --refine --calibration 'text:a b.txt' --samples 8 "
        "--sequence-length 64 --seed 3 --damping 0.01 -o out/"
    )


def test_the_command_names_the_revision() -> None:
    checkpoint = open_checkpoint("demo")
    assert named(checkpoint) == "demo"
    of_hub = replace(checkpoint, model="org/name", repo_id="org/name", revision="main")
    assert named(of_hub) == "org/name"
    assert named(replace(of_hub, revision="v1.0")) == "org/name@v1.0"
    assert named(replace(of_hub, model="org/name@v1.0", revision="v1.0")) == "org/name@v1.0"


def test_a_table_of_points_has_empty_cells_for_what_is_not() -> None:
    def made(**changes: Any) -> CurvePoint:
        base = CurvePoint(0.1, 0.1, 0.05, 2.5, 2.0, 3.0, 0.01, 0.0, 0.02, 1.5, {"0": 2.5})
        return replace(base, **changes)

    turning = Essential(None, None, None, Status.FAILED, None, "")
    dense = made(sparsity=0.0, requested=0.0, change_low=None, change_high=None)
    bad = made(score=None, low=None, high=None, failed='NaN, "really"')
    curve = Curve("a, 2:4", "a,b", "2:4", "wanda", None, (dense, bad), turning, None, None)
    result = SweepResult("perplexity", "windows", False, (), (curve,), {}, {}, "", 1.0)
    rows = list(csv.DictReader(io.StringIO(sweep_csv(result))))
    assert [row["model"] for row in rows] == ["a,b", "a,b"]
    assert rows[0]["change_low"] == ""
    assert (rows[1]["score"], rows[1]["failed"]) == ("", 'NaN, "really"')
    assert rows[0]["score"] == "2.5"
    assert "\r" not in sweep_csv(result)


# --- the chart on the terminal --------------------------------------------------------------


def drawn_curve(scores: list[float | None], label: str = "m, unstructured") -> Curve:
    points = tuple(
        CurvePoint(s, s, s, score, None, None, 0.0, None, None, 1.0, {"0": score})
        for s, score in zip([0.1 * i for i in range(len(scores))], scores, strict=True)
    )
    turning = Essential(None, None, None, Status.NONE, None, "")
    return Curve(label, "m", "unstructured", "magnitude", None, points, turning, None, None)


def charted(*curves: Curve, higher: bool = False) -> list[str]:
    result = SweepResult("score", "rows", higher, (), curves, {}, {}, "", 1.0)
    return [line for line in chart(result).plain.splitlines() if "│" in line]


def test_a_chart_is_a_line_without_gaps() -> None:
    lines = charted(drawn_curve([20.0, 20.5, 22.0, 30.0, 55.0]))
    assert len(lines) == HEIGHT
    inside = [line.partition("│")[2].rpartition("│")[0] for line in lines]
    assert {len(line) for line in inside} == {WIDTH}
    for column in range(WIDTH):
        assert any(0x2801 <= ord(line[column]) <= 0x28FF for line in inside), column
    for line in inside:
        assert line.strip("\u2800 ")  # nor is there one in a steep part


def test_a_score_that_explodes_leaves_the_rest_to_be_seen() -> None:
    lines = charted(drawn_curve([20.0, 20.5, 22.0, 30.0, 1e9]))
    labels = [line.rpartition("│")[2].strip() for line in lines]
    assert any(label and float(label) < 60 for label in labels)
    assert not any(label and float(label.replace(",", "")) > 70 for label in labels)


@given(
    st.lists(
        st.lists(st.none() | st.floats(-1e300, 1e300), min_size=1, max_size=5),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_any_curves_can_be_charted(scores: list[list[float | None]], higher: bool) -> None:
    curves = [drawn_curve(one, f"model {at}, [red]") for at, one in enumerate(scores)]
    lines = charted(*curves, higher=higher)
    anything = any(s is not None and abs(s) < 1e100 for one in scores for s in one)
    assert len(lines) == (HEIGHT if anything else 0)
