"""A sweep's document as the rows and ranges of its charts and tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prunectl import numbers
from prunectl.report.charts import LINEAR, LOG


@dataclass(frozen=True, slots=True)
class Words:
    """How the losses of one sweep are written.

    Attributes:
        relative: whether losses are shares of the dense score, or in its own units.
    """

    relative: bool

    def loss(self, value: float | None) -> str:
        """``+0.30%``, or ``+0.0030`` in units of the score."""
        if value is None:
            return ""
        if not self.relative:
            return f"{value:+.4f}"
        return f"{value:+.2%}" if abs(value) < 10 else f"{value:+,.0%}"


def score_text(value: float | None) -> str:
    """Four significant digits, or all digits before the point."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:#.4g}".rstrip(".")


def percent(value: float | None) -> str:
    """``24%`` or ``24.5%``, with at most two decimals."""
    return "" if value is None else f"{100 * value:.2f}".rstrip("0").rstrip(".") + "%"


def between(low: str, high: str) -> str:
    """An interval in words; '' where there is none."""
    return f"{low} to {high}" if low and high else ""


def interval(low: float | None, high: float | None) -> str:
    """An interval of scores in words; '' where there is none."""
    return "" if low is None or high is None else between(score_text(low), score_text(high))


def labels_of(document: dict[str, Any]) -> list[str]:
    """The labels of the curves, with numbers where two are equal."""
    labels: list[str] = []
    for curve in document["curves"]:
        label, again = str(curve["label"]), 2
        while label in labels:
            label, again = f"{curve['label']} ({again})", again + 1
        labels.append(label)
    return labels


def curves_of(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The curves with their labels."""
    yield from zip(labels_of(document), document["curves"], strict=True)


def point_rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each point of each curve, with the texts of its tooltip."""
    words = Words(document["settings"]["epsilon_mode"] == "relative")
    for label, curve in curves_of(document):
        alone = len(curve["points"]) < 3  # two points make no band
        for point in curve["points"]:
            row = {
                key: point.get(key)
                for key in ("sparsity", "score", "low", "high", "change", "change_low",
                            "change_high")
            }  # fmt: skip
            if row["change"] == 0 and point["sparsity"] == 0:  # the dense model itself
                row |= {"change_low": 0, "change_high": 0}
            yield row | {
                "label": label,
                "at": percent(point["sparsity"]),
                "of_all": percent(point.get("overall")),
                "score_text": score_text(point.get("score")),
                "interval": interval(point.get("low"), point.get("high")) or "not measured",
                "loss": words.loss(point.get("change")) or "not measured",
                "loss_interval": loss_interval(words, point) or "not measured",
                "failed": point.get("failed") or "",
                "alone": alone,
            }


def loss_interval(words: Words, point: dict[str, Any]) -> str:
    """The interval of a point's loss in words; '' where there is none."""
    return between(words.loss(point.get("change_low")), words.loss(point.get("change_high")))


def mark_rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Essential sparsity and knee of each curve, at their height on the curve."""
    for label, curve in curves_of(document):
        essential = curve["essential"]
        places = [
            ("essential sparsity", essential["sparsity"], essential["low"], essential["high"]),
            ("knee", curve["knee"], None, None),
        ]
        for kind, place, low, high in places:
            if place is not None:
                yield {
                    "label": label,
                    "kind": kind,
                    "sparsity": place,
                    "from": low,
                    "to": high,
                    "score": height(curve["points"], place, "score"),
                    "change": height(curve["points"], place, "change"),
                    "at": percent(place),
                    "interval": between(percent(low), percent(high)) or "none",
                    "text": essential["text"] if kind != "knee" else "found on the whole curve",
                }


def dense_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Dense score and bound, once for each model, whose curves share them."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for curve in document["curves"]:
        score, bound = curve["dense"]["score"], curve["bound"]
        if score is not None:
            row = {"dense": score, "bound": bound, "text": f"dense {score_text(score)}"}
            rows.setdefault((curve["model"], score, bound), row)
    return list(rows.values())


def height(points: Sequence[dict[str, Any]], place: float, key: str) -> float | None:
    """The value of a curve of straight lines at one sparsity; None outside the curve."""
    known = sorted((p["sparsity"], p[key]) for p in points if p.get(key) is not None)
    for (left, low), (right, high) in itertools.pairwise(known):
        if left <= place <= right:
            part = (place - left) / (right - left) if right > left else 0.0
            return float(low + part * (high - low))
    return next((float(value) for at, value in known if at == place), None)


def known(rows: Iterable[dict[str, Any]], *keys: str) -> list[float]:
    """All numbers at these keys."""
    return [float(row[key]) for row in rows for key in keys if row.get(key) is not None]


def model_text(model: dict[str, Any]) -> str:
    """One of the models in a line."""
    parts = [f"revision {model['revision']}"] if model.get("revision") else []
    if model.get("parameters"):
        parts.append(f"{numbers.count(model['parameters'])} parameters")
    if model.get("prunable"):
        parts.append(f"{numbers.count(model['prunable'])} prunable")
    if model.get("dtype"):
        parts.append(f"run in {model['dtype']}")
    return ", ".join(parts)


Rows = Sequence[dict[str, Any]]

NEAR = "Near dense"
WITHIN, WHOLE = "Near the tolerance", "All"

_UNEVEN, _STEEP = 1.5, 3.0
"""Scores that differ by more than the first factor can be shown on a log scale; by more than the
second, the log scale is shown first."""
_ROOM_BETTER, _ROOM_WORSE = 2.5, 8.0
"""Room above and below the dense score, in tolerances, on its better and its worse side."""


def score_scales(points: Rows, dense: Rows, *, higher_is_better: bool) -> dict[str, dict[str, Any]]:
    """Scales for scores by name, as in Vega-Lite; the one to show first is first.

    Perplexity rises without bound, which a log scale can show. Empty without scores.
    """
    values = known(points, "score", "low", "high") + known(dense, "dense", "bound")
    if not values:
        return {}
    own = known(points, "score")
    scales: dict[str, dict[str, Any]] = {LINEAR: {"zero": False, "nice": True}}
    ratio = max(own) / min(own) if own and min(values) > 0 else 1.0
    if ratio > _UNEVEN:
        log = {LOG: {"type": "log", "nice": False, "domain": _wider(values)}}
        scales = log | scales if ratio > _STEEP else scales | log
    if near := _near(dense, values, higher_is_better=higher_is_better):
        scales[NEAR] = {"domain": near, "nice": False, "zero": False}
    return scales


def loss_ranges(points: Rows, epsilon: float) -> dict[str, list[float]]:
    """Ranges for losses by name; empty without losses."""
    values = known(points, "change")
    if not values:
        return {}
    if epsilon <= 0:
        return {WHOLE: [min([*values, -0.01]), max([*values, 0.01])]}
    low = max(min([*known(points, "change", "change_low"), -epsilon]), -4 * epsilon)
    high = min(max([*values, 2 * epsilon]), _ROOM_WORSE * epsilon)
    whole = [min([*values, -epsilon]), max([*values, 2 * epsilon])]
    ranges = {WITHIN: [low * 1.1, high]}
    if whole[1] > high or whole[0] < low:
        ranges[WHOLE] = whole
    return ranges


def _wider(values: list[float]) -> list[float]:
    """The range of positive values with some room on a log scale."""
    room = (max(values) / min(values)) ** 0.04
    return [min(values) / room, max(values) * room]


def _near(dense: Rows, values: list[float], *, higher_is_better: bool) -> list[float] | None:
    """A range of some tolerances around the dense scores; None if all values are within."""
    ends = []
    for row in dense:
        if row["bound"] is None:
            continue
        step = abs(row["bound"] - row["dense"])
        worse = -step if higher_is_better else step
        ends += [row["dense"] + _ROOM_WORSE * worse, row["dense"] - _ROOM_BETTER * worse]
    if not ends or (min(ends) <= min(values) and max(values) <= max(ends)):
        return None
    return [min(ends), max(ends)] if max(ends) > min(ends) else None
