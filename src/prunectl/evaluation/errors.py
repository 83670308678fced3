"""Errors of evaluating a model, raised on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from prunectl.errors import PrunectlError, UsageError

FORMS = (
    "perplexity takes --data text:FILE or hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]], all other metrics "
    "a table (CSV, TSV, JSONL, JSON, Parquet) or a folder of them"
)


class BadData(PrunectlError):
    """Data that cannot be read, or that nothing can be measured on."""

    def __init__(self, source: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"data {source}: {why}", hint=hint or FORMS)
        self.source, self.why = source, why


class MissingColumn(BadData):
    """A table without a column that the metric needs."""

    def __init__(self, source: str, wanted: Sequence[str], columns: Sequence[str]) -> None:
        names = " or ".join(f"'{one}'" for one in wanted)
        super().__init__(
            source,
            f"no column {names}; it has {', '.join(columns) or 'none'}",
            hint="rename a column, or name it with the option for it",
        )
        self.wanted, self.columns = tuple(wanted), tuple(columns)


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
