"""The timing itself, with a clock that only the work moves: order, warm-up, repeats, phases."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from prunectl.benchmarking.timing import (
    LEAST_ROUNDS,
    Clock,
    Pass,
    Span,
    WallClock,
    time_passes,
    turns,
    warm_up,
)


class Workshop:
    """Work that takes what it is told, on a clock that stands still otherwise."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.clock = WallClock(lambda: self.now)

    def job(self, name: str, seconds: list[float] | float, steps: int = 1) -> Pass:
        left = list(seconds) if isinstance(seconds, list) else []

        def run(clock: Clock) -> Mapping[str, Span]:
            self.log.append(name)
            begin = clock.mark()
            self.now += left.pop(0) if left else (seconds if isinstance(seconds, float) else 1.0)
            middle = clock.mark()
            self.now += 0.5
            return {"first": (begin, middle, 1), "rest": (middle, clock.mark(), steps)}

        return run


def test_every_round_has_every_side_once_and_directions_change() -> None:
    orders = [turns(["a", "b", "c"], number) for number in range(6)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert orders[0] == ["a", "b", "c"]
    assert orders[1] == ["c", "b", "a"]
    assert {order[0] for order in orders} == {"a", "b", "c"}
    assert [turns(["a", "b"], number) for number in range(2)] == [["a", "b"], ["b", "a"]]


def test_phases_are_the_marks_and_steps_are_divided() -> None:
    shop = Workshop()
    sides = {"a": shop.job("a", 1.0, 5), "b": shop.job("b", 2.0)}
    found = time_passes(sides, shop.clock, rounds=9, seconds=1e9)
    assert (found.rounds, found.repeats) == (9, 1)
    assert found.samples["a"]["first"] == pytest.approx([1.0] * 9)
    assert found.samples["a"]["rest"] == pytest.approx([0.1] * 9)
    assert found.samples["b"]["first"] == pytest.approx([2.0] * 9)


def test_rounds_are_interleaved_after_the_warm_up() -> None:
    shop = Workshop()
    found = time_passes(
        {"a": shop.job("a", 1.0), "b": shop.job("b", 1.0)}, shop.clock, rounds=8, seconds=1e9
    )
    measured = shop.log[found.warm_up :]
    assert len(measured) == 16
    assert all({*measured[i : i + 2]} == {"a", "b"} for i in range(0, 16, 2))


def test_short_passes_are_repeated_alike_on_all_sides() -> None:
    shop = Workshop()

    def quick(name: str, seconds: float) -> Pass:
        def run(clock: Clock) -> Mapping[str, Span]:
            shop.log.append(name)
            begin = clock.mark()
            shop.now += seconds
            return {"all": (begin, clock.mark(), 1)}

        return run

    sides = {"a": quick("a", 0.001), "b": quick("b", 0.01)}
    found = time_passes(sides, shop.clock, rounds=7, seconds=1e9)
    assert found.repeats == 20
    measured = shop.log[found.warm_up :]
    assert measured.count("a") == measured.count("b") == 7 * 20
    assert found.samples["a"]["all"] == pytest.approx([0.001] * 7)


def test_little_time_means_fewer_rounds_but_never_too_few() -> None:
    shop = Workshop()
    found = time_passes({"a": shop.job("a", 1.0)}, shop.clock, rounds=30, seconds=15.1)
    assert found.rounds == 10
    found = time_passes({"a": shop.job("a", 1.0)}, shop.clock, rounds=30, seconds=0.1)
    assert found.rounds == LEAST_ROUNDS


def test_the_warm_up_goes_on_until_three_passes_are_alike() -> None:
    shop = Workshop()
    lasted = warm_up(shop.job("a", [9.5, 4.5, 2.5, 1.5, 1.5, 1.5]), shop.clock, 1e9)
    assert lasted == [10.0, 5.0, 3.0, 2.0, 2.0, 2.0]


def test_a_warm_up_that_never_settles_ends() -> None:
    shop = Workshop()
    restless = [float(2**number) for number in range(40)]
    assert len(warm_up(shop.job("a", restless), shop.clock, 1e30)) == 12
    assert len(warm_up(shop.job("a", restless), shop.clock, 5.0)) == 3
    assert len(warm_up(shop.job("a", restless), shop.clock, 0.0)) == 1
