"""The table of metrics. A new metric is a module with ``prepare``, and an entry here.

Help, completion and settings read the table, so it imports nothing heavy: the module of a metric,
which imports numpy and reads data, is imported when the metric is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunectl.checkpoint.model_kind import Kind
from prunectl.errors import InvalidOption
from prunectl.evaluation.tasks import CLASSIFICATION, QA, Task


@dataclass(frozen=True)
class MetricSpec:
    """What is known of a metric before its module is imported.

    Attributes:
        module: has ``prepare``, a :data:`prunectl.evaluation.metric.Prepare`.
        help: what the metric measures, in a few words.
        kinds: models that it is suggested for, where another metric does not fit.
        options: fields of :class:`prunectl.evaluation.settings.EvalSettings` that only the metrics
            that name them take.
        trains: whether it can fine-tune the model before it scores it.
        argument: what follows the name and a colon: ``TASK``; '' if nothing may.
        tasks: values of ``--task``.
    """

    module: str
    help: str
    kinds: tuple[Kind, ...]
    options: tuple[str, ...] = ()
    trains: bool = False
    argument: str = ""
    tasks: Mapping[str, Task] = field(default_factory=dict)


METRICS = {
    "perplexity": MetricSpec(
        "prunectl.evaluation.perplexity",
        "how well a model continues text",
        (Kind.CAUSAL_LM,),
        options=("stride",),
    ),
    "choice": MetricSpec(
        "prunectl.evaluation.multiple_choice",
        "multiple choice, by log likelihood",
        (Kind.CAUSAL_LM,),
        options=("shots", "protocol"),
    ),
    "similarity": MetricSpec(
        "prunectl.evaluation.similarity",
        "how an encoder ranks pairs of sentences",
        (Kind.ENCODER,),
    ),
    "arithmetic": MetricSpec(
        "prunectl.evaluation.arithmetic",
        "word problems, by the number that is generated",
        (Kind.CAUSAL_LM,),
        options=("shots", "max_new_tokens"),
    ),
    "classification": MetricSpec(
        "prunectl.evaluation.classification",
        "labels, after fine-tuning with the pruned weights held",
        (Kind.ENCODER, Kind.SEQ2SEQ, Kind.VISION),
        options=("task", "train_data", "text_columns", "label_column", "training"),
        trains=True,
        tasks=CLASSIFICATION,
    ),
    "qa": MetricSpec(
        "prunectl.evaluation.qa",
        "spans of text, after fine-tuning with the pruned weights held",
        (Kind.ENCODER, Kind.SEQ2SEQ),
        options=("task", "train_data", "training"),
        trains=True,
        tasks=QA,
    ),
    "harness": MetricSpec(
        "prunectl.evaluation.harness",
        "tasks of lm-evaluation-harness",
        (Kind.CAUSAL_LM, Kind.SEQ2SEQ),
        options=("shots",),
        argument="TASK[,TASK]",
    ),
}
DEFAULT = "perplexity"
DEFAULT_TRAINED = "classification"
"""The metrics of ``evaluate`` and ``sweep``, and of ``lottery``, where none is named."""


def spec_of(metric: str) -> MetricSpec:
    """The entry of ``NAME`` or ``NAME:ARGUMENT``.

    Raises:
        InvalidOption: there is none, or the metric takes no argument.
    """
    name, colon, _ = metric.partition(":")
    spec = METRICS.get(name)
    if spec is None or (colon and not spec.argument):
        raise InvalidOption(
            f"--metric '{metric}' is not known", hint=f"one of {', '.join(METRICS)}"
        )
    return spec


def taking(option: str) -> list[str]:
    """Names of the metrics that take an option; none where all do."""
    return [name for name, spec in METRICS.items() if option in spec.options]


def trained() -> list[str]:
    """Names of the metrics that fine-tune the model."""
    return [name for name, spec in METRICS.items() if spec.trains]


def suggested(kind: Kind) -> str:
    """What to say where a metric does not fit this kind of model."""
    names = [name for name, spec in METRICS.items() if kind in spec.kinds]
    return f"for this kind of model: --metric {' or '.join(names)}"
