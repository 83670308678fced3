"""What every metric is: data that were read, and a way to score a model on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import ModelKind, model_kind_of
from prunectl.checkpoint.module_tree import (
    build_on_meta,
    model_class,
    quiet_transformers,
    unknown_if_it_fails,
)
from prunectl.data.errors import other_data
from prunectl.errors import UnsupportedCheckpoint
from prunectl.evaluation.errors import FORMS, MetricMismatch
from prunectl.evaluation.heads import Head as Head
from prunectl.evaluation.metrics import spec_of
from prunectl.evaluation.settings import EvalSettings
from prunectl.events import Note, OnEvent, ignore_events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prunectl.evaluation.loaded_model import LoadedModel

    Values = NDArray[np.float64]


MAJORITY = "majority"
"""The part of a score that says what always giving the most frequent answer would score."""


def majority(answers: Sequence[Hashable]) -> float:
    """The share of the most frequent of the right answers, 0..1."""
    return Counter(answers).most_common(1)[0][1] / len(answers)


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """How good a model is.

    Attributes:
        value: the score.
        values: float64 [samples, columns], what was seen of each sample: the metric's ``statistic``
            of all of them is ``value``, and of samples drawn again it says how sure that is.
        parts: further scores by name, such as those of groups of questions.
    """

    value: float
    values: Values
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Request:
    """What a metric is prepared from.

    ``facts`` go into the metric's record, ``notes`` are sentences for people.
    """

    checkpoint: Checkpoint
    model_kind: ModelKind
    settings: EvalSettings
    on_event: OnEvent = ignore_events
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def mismatch(self, why: str, *, hint: str = "") -> MetricMismatch:
        """The error of a metric that does not fit the model."""
        return MetricMismatch(self.settings.metric, self.checkpoint.model, why, hint=hint)


class Metric(Protocol):
    """Data that were read and checked, ready to score models of one checkpoint.

    Attributes:
        name: of the metric.
        unit: what a sample is, in the plural: ``windows``.
        samples: how many there are.
        higher_is_better: which way is up.
        trains: whether scoring trains the model, so that it has to be loaded anew for each score.
        head: the class to load the model as; None is the one that its config names.
        record: the protocol, ready for JSON: all that fixes the number, a hash of the data
            included. Equal records mean comparable scores.
        notes: sentences for people: what had to be other than asked for.
    """

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def trains(self) -> bool: ...
    @property
    def head(self) -> Head | None: ...
    @property
    def record(self) -> dict[str, Any]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def tolerates(self, parameter: str) -> bool:
        """Whether the model may lack a parameter outside of its blocks: the metric does not use it,
        or trains it."""
        ...

    def statistic(self, values: Values) -> float:
        """The score of samples [samples, columns]."""
        ...

    def score(self, loaded: LoadedModel, *, seed: int, on_event: OnEvent = ignore_events) -> Score:
        """Run the model on the data.

        Args:
            seed: of training; metrics that do not train ignore it.

        Raises:
            EvaluationFailed: its outputs are not numbers.
        """
        ...


Prepare = Callable[[Request], Metric]


def prepare(
    checkpoint: Checkpoint, settings: EvalSettings, on_event: OnEvent = ignore_events
) -> Metric:
    """Read a metric's data for a checkpoint; no weight is read.

    Raises:
        UnsupportedCheckpoint: one weights file without a config.
        UnknownArchitecture: transformers cannot build the model.
        MetricMismatch, NoData, BadData, MissingLibrary: see :mod:`prunectl.evaluation.errors` and
            :mod:`prunectl.data.errors`.
    """
    if checkpoint.kind == "file":
        raise UnsupportedCheckpoint(
            checkpoint.model, "one weights file has no config", hint="name the folder it is in"
        )
    with unknown_if_it_fails(), quiet_transformers():
        cls, config = model_class(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
        model = build_on_meta(cls, config)
    model_kind = model_kind_of(model, checkpoint.folder)
    prepare_one: Prepare = import_module(spec_of(settings.metric).module).prepare
    with other_data(FORMS):
        metric = prepare_one(Request(checkpoint, model_kind, settings, on_event))
    tell(metric.notes, on_event)
    return metric


def tell(notes: Iterable[str], on_event: OnEvent) -> None:
    """Notes as events."""
    for text in notes:
        on_event(Note(text))
