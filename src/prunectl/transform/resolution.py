"""The numbers of a plan: what happens to each tensor once the weights have been looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunectl.geometry import Ranges
from prunectl.transform.edits import Edit


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an edit must give: zeros afterwards, and the share of the squared norm that goes."""

    zeros: int
    norm_lost: float


@dataclass(frozen=True)
class Resolution:
    """The numbers of a plan.

    Attributes:
        edits: by tensor name; tensors that are not in it are copied.
        reasons: why prunable tensors stay dense after all.
        thresholds: by pool; None where a pool has no one threshold.
        forecasts: by tensor name, where the measurements tell before the weights are written.
        calibrated: by tensor name, what calibration did, JSON-ready.
        pattern_rows: by tensor name, the rows that take its N:M pattern, where not all of them do.
    """

    edits: dict[str, Edit]
    reasons: dict[str, str]
    thresholds: tuple[float | None, ...]
    forecasts: dict[str, Forecast]
    calibrated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pattern_rows: Mapping[str, Ranges] = field(default_factory=dict)
