"""What a sweep found."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

from prunectl._version import __version__
from prunectl.studies.sweep.curves import Essential
from prunectl.to_json import to_json

SCHEMA = "prunectl.sweep/1"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One sparsity of a curve; numbers that do not exist are None.

    Attributes:
        sparsity: achieved, of the prunable weights. requested: asked for. overall: of all.
        score: the mean over seeds. low, high: its 95% interval.
        change: how much worse than dense, in the tolerance's mode; change_low, change_high: 95%.
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
        label: what it is called. bound: the worst score within the tolerance.
        points: ascending in sparsity; the first is the dense model.
        essential: where it turns. knee: the same by Kneedle, without a tolerance.
        command: what prunes the model to its essential sparsity; None where there is none.
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
    """A model of a sweep. ``record`` is its metric's: windows differ with the tokenizer; ``dtype``
    is what it was run in."""

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

    ``interrupted``: Ctrl-C ended it; what is there is whole.
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
        curves = [
            {**to_json(curve), "dense": _range(curve.dense)} for curve in self.curves
        ]  # Inf has no place in a chart: it is None by now
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


def _range(point: CurvePoint) -> dict[str, float | None]:
    return {"score": point.score, "low": point.low, "high": point.high}


_COLUMNS = (
    "sparsity", "requested", "overall", "score", "low", "high", "change", "change_low",
    "change_high", "seconds", "failed",
)  # fmt: skip


def sweep_csv(result: SweepResult) -> str:
    """A line a point, with what curve it is of; numbers that do not exist are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "pattern", "method", "metric", *_COLUMNS])
    for curve in result.curves:
        for point in curve.points:
            values = [getattr(point, name) for name in _COLUMNS]
            row = ["" if value is None else value for value in values]
            writer.writerow([curve.model, curve.pattern, curve.method, result.metric, *row])
    return file.getvalue()
