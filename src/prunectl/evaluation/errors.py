"""Errors of evaluating a model, raised on purpose."""

from __future__ import annotations

from prunectl.errors import PrunectlError, UsageError

FORMS = (
    "--data text:FILE or hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]] for a text; for other metrics, a "
    "table (CSV, TSV, JSONL, JSON, Parquet) or a folder of them"
)


class NoData(UsageError):
    """A metric without data to measure on."""

    def __init__(self, metric: str, model: str, hint: str = "") -> None:
        super().__init__(f"--metric {metric} needs --data for {model}", hint=hint or FORMS)
        self.metric, self.model = metric, model


class MetricMismatch(UsageError):
    """A metric that this kind of model cannot be measured by."""

    def __init__(self, metric: str, model: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"--metric {metric} does not fit {model}: {why}", hint=hint)
        self.metric, self.model, self.why = metric, model, why


class EvaluationFailed(PrunectlError):
    """The model ran, and there is no score: its outputs or its loss are not numbers."""

    def __init__(self, metric: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{metric}: {why}", hint=hint)
        self.metric, self.why = metric, why
