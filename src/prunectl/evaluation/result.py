"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunectl._version import __version__
from prunectl.evaluation.resampling import Interval
from prunectl.to_json import to_json

SCHEMA = "prunectl.evaluate/1"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's score.

    Attributes:
        model: what was evaluated. revision: its commit on the Hub, if it is from there.
        metric: the name. higher_is_better: which way is up.
        score: the value. interval: of 95%, by bootstrap over samples; None where there is none.
        parts: further scores by name.
        samples, unit: on how many of what.
        zeros, weights: of the prunable weights. disk_bytes: of the weights' files.
        record: the metric's protocol.
        device, dtype: it was run on and in. seconds: of loading and scoring.
    """

    model: str
    revision: str | None
    metric: str
    higher_is_better: bool
    score: float
    interval: Interval | None
    parts: dict[str, float]
    samples: int
    unit: str
    zeros: int
    weights: int
    disk_bytes: int
    record: dict[str, Any]
    device: str
    dtype: str
    seconds: float

    @property
    def sparsity(self) -> float:
        """Zeros among the prunable weights, 0..1."""
        return self.zeros / self.weights if self.weights else 0.0

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``; NaN and Inf are strings."""
        document: dict[str, Any] = to_json(self)
        head = {"schema": SCHEMA, "prunectl": __version__}
        return {**head, **document, "sparsity": self.sparsity}
