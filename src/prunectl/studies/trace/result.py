"""What a trace says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunectl._version import __version__
from prunectl.measure.model_stats import ModelStats
from prunectl.studies.trace.changes import Change, Trend
from prunectl.to_json import to_json

SCHEMA = "prunectl.trace/1"


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One checkpoint.

    Attributes:
        model: as given. label: ``step 500``, or the model where steps are not known.
        revision: commit, if it came from the Hub.
        step: of the training, or the place in the order given. stats: of its prunable weights.
    """

    model: str
    label: str
    revision: str | None
    step: int
    stats: ModelStats


@dataclass(frozen=True, slots=True)
class Series:
    """One number over the steps.

    Attributes:
        name: such as ``near zero 0.01*std`` or ``lost at 0.4``; values are shares of 1.
        change: where it changes abruptly; None where it does not, or checkpoints are too few.
        trend: None where it stays the same.
    """

    name: str
    values: tuple[float, ...]
    change: Change | None
    trend: Trend | None


@dataclass(frozen=True, slots=True)
class Trace:
    """The whole result of ``prunectl trace``.

    Attributes:
        points: in the order of their steps. steps_known: whether these are of the training.
        tensors, weights: prunable, of each checkpoint.
        series: what was followed. findings: sentences.
        command: that was given. seconds: all of it.
    """

    points: tuple[TracePoint, ...]
    steps_known: bool
    tensors: int
    weights: int
    series: tuple[Series, ...]
    findings: tuple[str, ...]
    command: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json`` and of ``-o``."""
        return {"schema": SCHEMA, "prunectl": __version__, **to_json(self)}


def measures(stats: ModelStats) -> dict[str, Callable[[ModelStats], float]]:
    """What is followed over the steps: shares of all weights, or of their squared norm."""

    def near(limit: str) -> Callable[[ModelStats], float]:
        return lambda one: one.near_zero[limit] / one.weights

    def lost(sparsity: str) -> Callable[[ModelStats], float]:
        return lambda one: 1 - one.norm_kept[sparsity]

    def broken(pattern: str) -> Callable[[ModelStats], float]:
        return lambda one: 1 - one.patterns[pattern]

    return {
        "zero": lambda one: one.zeros / one.weights,
        **{f"near zero {limit}": near(limit) for limit in stats.near_zero},
        **{f"lost at {sparsity}": lost(sparsity) for sparsity in stats.norm_kept},
        **{f"lost by {pattern}": broken(pattern) for pattern in stats.patterns},
    }
