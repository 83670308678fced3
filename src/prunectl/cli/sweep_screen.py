"""A sweep as people read it: where each curve turns, the curves, and their points."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.text import Text

from prunectl import numbers
from prunectl.cli.command_line import visible
from prunectl.cli.evaluate import protocol_rows, score
from prunectl.cli.tables import columns, facts, heading, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunectl.studies.sweep.result import Curve, CurvePoint, SweepResult

HEIGHT, WIDTH = 12, 60
_STEPS = 4 * (HEIGHT + WIDTH)
"""Dots of a line from corner to corner, and some more: a character has two by four."""
_COLOURS = ("blue", "yellow", "magenta", "cyan", "green", "red")
_MORE_DIGITS = 4
_LEAST, _MOST = 1e-12, 1e100
"""Differences that are none, and scores that are as good as infinite: what can be drawn."""
_WORST = 2.0
"""Scores that are worse than dense by more than this share of it are beyond the chart's edge: a
perplexity of thousands would leave nothing to see of the turning point."""


def sweep_screen(result: SweepResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """Parts of the screen, in order."""
    for curve in result.curves:
        yield heading(curve.label)
        yield Text(f"  {curve.essential.text}")
        if curve.knee is not None:
            yield Text(
                f"  The knee, independent of the tolerance, is at {numbers.share(curve.knee)}."
            )
        if curve.command:
            yield Text(f"  {visible(curve.command)}", style="bold")
        yield columns(
            ("sparsity", "of all", result.metric, "95% interval", "loss", "95% interval", "time"),
            [_row(point, result.settings) for point in curve.points],
            joined=(3, 5),
        )
        yield from _failures(curve)
    yield Text("")
    yield chart(result)
    first = result.models[0]
    machine = result.machine
    yield facts(
        [
            ("measured on", f"{first.samples:,} {result.unit}"),
            ("run on", f"{machine['device']}, {machine['name']}"),
            ("took", numbers.duration(result.seconds)),
            *protocol_rows(first.record, everything=everything),
        ]
    )
    if result.interrupted:
        yield sentence("Interrupted: these are the points so far.")


def point_line(curve: Curve, point: CurvePoint, mode: str) -> str:
    """One point in a line, for logs."""
    if point.failed:
        return f"{curve.label}, {_place(point)}: {point.failed}"
    loss = "" if point.change is None or not point.requested else f" ({_loss(point.change, mode)})"
    value = "too large for a number" if point.score is None else score(point.score)
    return f"{curve.label}, {_place(point)}: {value}{loss}"


def _place(point: CurvePoint) -> str:
    return numbers.share(point.sparsity) if point.requested else "dense"


def chart(result: SweepResult) -> Text:
    """Score over sparsity; a line marks the worst score within the tolerance."""
    from uniplot import plot_to_string

    known = [
        [(100 * p.sparsity, p.score) for p in curve.points
         if p.score is not None and abs(p.score) < _MOST]
        for curve in result.curves
    ]  # fmt: skip
    drawn = [(curve, points) for curve, points in zip(result.curves, known, strict=True) if points]
    if not drawn:
        return Text("")
    scores = [value for _, points in drawn for _, value in points]
    low, high = _edges(scores, [points[0][1] for _, points in drawn], result.higher_is_better)
    bounds = [curve.bound for curve, _ in drawn if curve.bound is not None]
    joined = [_joined(points, low, high) for _, points in drawn]
    text = plot_to_string(
        xs=[[x for x, _ in points] for points in joined],
        ys=[[y for _, y in points] for points in joined],
        width=WIDTH,
        height=HEIGHT,
        title=f"{result.metric} over sparsity",
        legend_labels=[visible(curve.label) for curve, _ in drawn] if len(drawn) > 1 else None,
        color=[_COLOURS[i % len(_COLOURS)] for i in range(len(drawn))],
        character_set="braille",
        x_unit="%",
        x_min=0.0,
        x_max=max(10.0, *(x for _, points in drawn for x, _ in points)),
        y_min=low,
        y_max=high,
        x_gridlines=[],
        y_gridlines=bounds,
    )
    return Text.from_ansi(str(text))


def _joined(
    points: list[tuple[float, float]], low: float, high: float
) -> list[tuple[float, float]]:
    """Points close enough to look like straight lines between those given, as far as they are seen.

    The library's own lines are compiled when the first is drawn, which takes seconds.
    """
    found = [(x, y) for x, y in points if low <= y <= high]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        ends = sorted(((low - y) / (to_y - y), (high - y) / (to_y - y))) if to_y != y else [0, 1]
        first, last = max(0.0, ends[0]), min(1.0, ends[1])
        for i in range(_STEPS + 1):
            part = first + (last - first) * i / _STEPS
            height = (1 - part) * y + part * to_y
            if first <= last:
                found.append((x + part * (to_x - x), min(max(height, low), high)))
    return found


def _edges(scores: list[float], dense: list[float], higher_is_better: bool) -> tuple[float, float]:
    """Lowest and highest score that is shown, never the same."""
    low, high = min(scores), max(scores)
    if higher_is_better:
        low = max(low, min(d - _WORST * abs(d) for d in dense))
    else:
        high = min(high, max(d + _WORST * abs(d) for d in dense))
    room = 0.04 * max(high - low, 0.001 * abs(high))
    room = room if room > _LEAST else 1.0
    return low - room, high + room


def _row(point: CurvePoint, settings: dict[str, Any]) -> tuple[str, ...]:
    share, mode = _place(point), settings["epsilon_mode"]
    if point.failed:
        return (share, "", "failed", "", "", "", numbers.duration(point.seconds))
    moved = point.requested > 0 and point.change is not None
    return (
        share,
        numbers.share(point.overall),
        "Inf" if point.score is None else score(point.score),
        _between(point.low, point.high, score),
        _told_apart(point.change or 0.0, settings) if moved else "",
        _between(point.change_low, point.change_high, lambda v: _loss(v, mode)) if moved else "",
        numbers.duration(point.seconds),
    )


def _between(low: float | None, high: float | None, words: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    return f"{words(low)} to {words(high)}"


def _told_apart(value: float, settings: dict[str, Any]) -> str:
    """A loss with as many digits as tell it from the tolerance."""
    limit, mode = settings["epsilon"], settings["epsilon_mode"]
    for more in range(_MORE_DIGITS):
        text = _loss(value, mode, more)
        if text != _loss(limit, mode, more):
            return text
    return _loss(value, mode)


def _loss(value: float, mode: str, more: int = 0) -> str:
    """How much worse, with its sign: ``+1.2%``, ``-0.0004``; with so many more digits."""
    text = f"{value:+.{1 + more}%}" if mode == "relative" else f"{value:+.{4 + more}f}"
    return text.replace("-", "+") if not text.strip("+-0.%") else text


def _failures(curve: Curve) -> Iterator[RenderableType]:
    for point in curve.points:
        if point.failed:
            yield Text(f"  {_place(point)}: {visible(point.failed)}")
