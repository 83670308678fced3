"""Points of a sweep as a table."""

from __future__ import annotations

import csv
import io

from prunectl.studies.sweep.result import SweepResult

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
