"""Numbers, the histogram's rows, and the recorded command line."""

from __future__ import annotations

import itertools
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunectl import numbers
from prunectl.cli.command_line import recorded_command, redact
from prunectl.cli.histogram import BAR_WIDTH, histogram_cells, histogram_rows

TOKEN = "hf_abcdefghijklmnop"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10.0 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (22_713_216, "22.7 M"),
        (84_934_656, "84.9 M"),
        (999_999_999, "1.00 B"),
        (6_738_415_616, "6.74 B"),
        (10**15, "1000 T"),
    ],
)
def test_counts(value: int, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (90_868_376, "90.9 MB"), (10**13, "10.0 TB")],
)
def test_sizes(value: int, text: str) -> None:
    assert numbers.size(value) == text


@given(st.integers(10_000, 10**15))
def test_a_shown_count_is_within_half_a_percent(value: int) -> None:
    number, unit = numbers.count(value).split(" ")
    shown = float(number) * {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[unit]
    assert abs(shown - value) <= 0.00501 * value
    assert number != "1000" or unit == "T"


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (0.0, "0.0%"),
        (1e-9, "<0.1%"),
        (0.4126, "41.3%"),
        (0.99999, ">99.9%"),
        (1.0, "100.0%"),
    ],
)
def test_shares_never_round_to_none_or_all(part: float, text: str) -> None:
    assert numbers.share(part) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_plurals_and_rates() -> None:
    assert numbers.plural(1, "tensor") == "1 tensor"
    assert numbers.plural(72, "tensor") == "72 tensors"
    assert numbers.plural(0, "matrix") == "0 matrices"
    assert numbers.rate(3 * 10**9, 2.0) == "1.50 GB/s"
    assert numbers.rate(5, 0.0) == ""


# --- histogram ------------------------------------------------------------------------------


def test_histogram_rows_by_hand() -> None:
    octaves = {-30: 1, -20: 2, -6: 3000, -4: 6990, -3: 7}
    rows = histogram_rows(octaves, 0, [(0.1, 2.0**-6), (0.9, 0.0625), (0.2, 2.0**-5 - 1e-9)])
    # Three of 10,000 are less than the share that deserves rows of its own; 2^-5 is empty.
    assert [(row.low, row.high, row.count) for row in rows] == [
        (-30, -7, 3),
        (-6, -6, 3000),
        (-5, -5, 0),
        (-4, -4, 6990),
        (-3, -3, 7),
    ]
    assert [row.marks for row in rows] == [(), (0.1, 0.2), (), (0.9,), ()]
    assert rows[1].cumulative == 3003 / 10_000
    assert rows[-1].cumulative == 1.0


@given(
    st.dictionaries(st.integers(-200, 100), st.integers(0, 10**12), max_size=60),
    st.integers(0, 1000),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 2.0**100))),
)
def test_histogram_loses_nothing(
    octaves: dict[int, int], zeros: int, thresholds: list[tuple[float, float]]
) -> None:
    rows = histogram_rows(octaves, zeros, thresholds)
    total = zeros + sum(octaves.values())
    assert sum(row.count for row in rows) == total
    assert len(rows) <= 22
    spans = [(row.low, row.high) for row in rows if row.low is not None and row.high is not None]
    assert all(high + 1 == low for (_, high), (low, _) in itertools.pairwise(spans))
    assert all(a.cumulative <= b.cumulative for a, b in itertools.pairwise(rows))
    if total:
        assert rows[-1].cumulative == 1.0
        cells = histogram_cells(rows)
        assert max(len(bar) for _, bar, *_ in cells) == BAR_WIDTH
        assert all(
            bool(bar) == bool(row.count) for row, (_, bar, *_) in zip(rows, cells, strict=True)
        )


# --- the recorded command -------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["prune", "m", "--token", TOKEN, "-o", "my out"],
        ["prune", "m", f"--token={TOKEN}", "-o", "my out"],
        ["prune", "--token", "short", "m", "--token", TOKEN, "-o", "my out"],
    ],
)
def test_recorded_command_has_no_token(argv: list[str]) -> None:
    assert recorded_command(argv) == "prunectl prune m -o 'my out'"


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(words.filter(lambda w: "hf_" not in w and not w.startswith("--token"))))
def test_recorded_command_can_be_typed_again(argv: list[str]) -> None:
    assert shlex.split(recorded_command(argv)) == ["prunectl", *argv]


def test_redaction_hides_given_and_hub_tokens() -> None:
    text = f"401 for private-secret and Bearer {TOKEN} and not"
    argv = ["analyze", "--token", "private-secret", "--token", "and"]
    assert redact(text, argv) == "401 for *** and Bearer *** and not"
