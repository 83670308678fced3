"""What a sweep found."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prunectl._version import __version__
from prunectl.to_json import to_json

SCHEMA = "prunectl.sweep/1"
_INTERVAL = ("score", "low", "high")


class Status(StrEnum):
    """How far the essential sparsity of a curve is known."""

    FOUND = "found"
    NOT_REACHED = "not reached"
    """Every point is within the tolerance: it lies beyond the range."""
    NONE = "none"
    """Not even the first point is within the tolerance."""
    NOISE = "noise"
    """The scores are less certain than the tolerance is wide."""
    UNLEARNED = "unlearned"
    """The dense model is no better than always giving the most frequent answer."""
    FAILED = "failed"
    """No point was measured."""


@dataclass(frozen=True, slots=True)
class Essential:
    """The essential sparsity of a curve.

    Attributes:
        sparsity: None where none was found. low, high: its 95% interval, at measured points.
        status: how far it is known.
        beyond: the next measured point, which is outside the tolerance.
        text: all of this in one sentence.
    """

    sparsity: float | None
    low: float | None
    high: float | None
    status: Status
    beyond: float | None
    text: str


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One sparsity of a curve; numbers that do not exist are None.

    Attributes:
        sparsity: achieved, of the prunable weights. requested: asked for. overall: of all weights.
        score: the mean over seeds. low, high: its 95% interval.
        change: the loss against dense, in the tolerance's mode; change_low, change_high: 95%.
        seconds: all seeds together. seeds: the score of each.
        parts: further scores, means over seeds. failed: why there is no score.
    """

    sparsity: float
    requested: float
    overall: float
    score: float | None
    low: float | None
    high: float | None
    change: float | None
    change_low: float | None
    change_high: float | None
    seconds: float
    seeds: dict[str, float | None]
    parts: dict[str, float | None] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Scores of one model along one pattern.

    Attributes:
        label: its name in tables and charts. bound: the worst score within the tolerance.
        points: ascending in sparsity; the first is the dense model.
        essential: its essential sparsity. knee: by Kneedle, which needs no tolerance.
        command: prunes the model to its essential sparsity; None where there is none.
    """

    label: str
    model: str
    pattern: str
    method: str
    bound: float | None
    points: tuple[CurvePoint, ...]
    essential: Essential
    knee: float | None
    command: str | None

    @property
    def dense(self) -> CurvePoint:
        return self.points[0]


@dataclass(frozen=True, slots=True)
class SweptModel:
    """A model of a sweep.

    Attributes:
        record: of its metric, since windows differ with the tokenizer. dtype: that it was run in.
    """

    model: str
    revision: str | None
    parameters: int
    prunable: int
    samples: int
    record: dict[str, Any]
    dtype: str


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All curves, and what they depend on.

    ``interrupted``: Ctrl-C ended the sweep; the curves up to then are complete.
    """

    metric: str
    unit: str
    higher_is_better: bool
    models: tuple[SweptModel, ...]
    curves: tuple[Curve, ...]
    settings: dict[str, Any]
    machine: dict[str, Any]
    command: str
    seconds: float
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json`` and of ``-o``; numbers that do not exist are null."""
        first = self.models[0] if self.models else None
        metric = {
            "name": self.metric,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "samples": first.samples if first else 0,
            "record": first.record if first else {},
        }
        # Inf is None in documents: charts cannot show it.
        curves = [
            to_json(curve) | {"dense": {key: getattr(curve.dense, key) for key in _INTERVAL}}
            for curve in self.curves
        ]
        return {
            "schema": SCHEMA,
            "prunectl": __version__,
            "command": self.command,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "metric": to_json(metric),
            "settings": to_json(self.settings),
            "machine": to_json(self.machine),
            "models": to_json(self.models),
            "curves": curves,
        }


_COLUMNS = (
    "sparsity", "requested", "overall", "score", "low", "high", "change", "change_low",
    "change_high", "seconds", "failed",
)  # fmt: skip


def sweep_csv(result: SweepResult) -> str:
    """One line for each point, with its curve; numbers that do not exist are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "pattern", "method", "metric", *_COLUMNS])
    for curve in result.curves:
        for point in curve.points:
            values = [getattr(point, name) for name in _COLUMNS]
            row = ["" if value is None else value for value in values]
            writer.writerow([curve.model, curve.pattern, curve.method, result.metric, *row])
    return file.getvalue()
