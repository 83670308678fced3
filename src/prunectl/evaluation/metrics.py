"""The metrics by name. A new one is a module with ``prepare``, and a line here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.module_tree import (
    build_on_meta,
    model_class,
    quiet_transformers,
    unknown_if_it_fails,
)
from prunectl.checkpoint.nature import nature_of
from prunectl.data.errors import other_data
from prunectl.errors import InvalidOption, UnsupportedCheckpoint
from prunectl.evaluation.errors import FORMS
from prunectl.evaluation.metric import Metric, Prepare, Request
from prunectl.evaluation.settings import EvalSettings
from prunectl.events import Note, OnEvent, ignore_events

METRICS = {
    "perplexity": "prunectl.evaluation.perplexity",
    "choice": "prunectl.evaluation.choice",
    "similarity": "prunectl.evaluation.similarity",
    "arithmetic": "prunectl.evaluation.arithmetic",
    "harness": "prunectl.evaluation.harness",
    "classification": "prunectl.evaluation.classification",
    "qa": "prunectl.evaluation.qa",
}
"""Where each metric's ``prepare`` is; imported when it is asked for."""


def prepare(
    checkpoint: Checkpoint, settings: EvalSettings, on_event: OnEvent = ignore_events
) -> Metric:
    """Read a metric's data for a checkpoint; no weight is read.

    Raises:
        InvalidOption: a metric that is not known.
        UnsupportedCheckpoint: one weights file without a config.
        UnknownArchitecture: transformers cannot build the model.
        MetricMismatch, NoData, BadData, MissingLibrary: see :mod:`prunectl.evaluation.errors` and
            :mod:`prunectl.data.errors`.
    """
    # Only the harness has something behind a colon.
    name = settings.name if settings.name == "harness" else settings.metric
    if name not in METRICS:
        raise InvalidOption(
            f"--metric '{settings.metric}' is not known", hint=f"one of {', '.join(METRICS)}"
        )
    if checkpoint.kind == "file":
        raise UnsupportedCheckpoint(
            checkpoint.model, "one weights file has no config", hint="name the folder it is in"
        )
    with unknown_if_it_fails(), quiet_transformers():
        cls, config = model_class(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
        model = build_on_meta(cls, config)
    nature = nature_of(model, checkpoint.folder)
    prepare_one: Prepare = import_module(METRICS[name]).prepare
    with other_data(FORMS):
        metric = prepare_one(Request(checkpoint, nature, settings, on_event))
    tell(metric.notes, on_event)
    return metric


def tell(notes: Iterable[str], on_event: OnEvent) -> None:
    """Notes as events."""
    for text in notes:
        on_event(Note(text))
