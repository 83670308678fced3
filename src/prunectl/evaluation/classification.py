"""Classification: the model is fine-tuned with its pruned weights held at zero, then scored.

Texts, pairs of texts or images with a class: tasks of GLUE and image sets by their names, or any
table or folder. The head is that of the class that transformers has for it, and is trained with the
model. The score is the accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.checkpoint.model_kind import Kind
from prunectl.data.images import load_processor
from prunectl.evaluation import classes_data, labels
from prunectl.evaluation.classes_data import Data, Rows
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch
from prunectl.evaluation.examples import HELD_OUT, facts_of
from prunectl.evaluation.heads import HeadClass, head_class
from prunectl.evaluation.inputs import (
    Floats,
    ImageSamples,
    Ints,
    TextSamples,
    length_of,
    outputs,
    padding_tokenizer,
    tokens_of,
)
from prunectl.evaluation.metric import MAJORITY, Head, Request, Score, majority
from prunectl.evaluation.tasks import CLASSIFICATION, UNNAMED_IMAGES, UNNAMED_TEXT, Recipe, task_of
from prunectl.evaluation.tuning import recipe_of, tuned
from prunectl.events import Note, OnEvent, ignore_events

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

LENGTH = 128
"""Tokens of a text, or of two, where none are asked for; as usual for GLUE."""
BATCH = 32
MOST_NAMED = 20
"""More classes than this are not named in a record."""
TEXT, IMAGES = "AutoModelForSequenceClassification", "AutoModelForImageClassification"

Samples = TextSamples | ImageSamples


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """See :class:`prunectl.evaluation.metric.Metric`; a sample is a row: (number of its class, of
    that which the model tells).

    Attributes:
        train: None where nothing is trained.
        scored: to score on. beside: the same, by the names of parts.
    """

    train: Samples | None
    scored: Samples
    beside: Mapping[str, Samples]
    classes: tuple[str, ...]
    recipe: Recipe
    head_class: HeadClass
    head: Head
    batch_size: int
    checkpoints: Path | None
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = "classification"
    unit: str = "rows"
    higher_is_better: bool = True

    @property
    def samples(self) -> int:
        return len(self.scored)

    @property
    def trains(self) -> bool:
        return self.train is not None

    def tolerates(self, parameter: str) -> bool:
        return self.trains and self.head_class.is_head(parameter)

    def statistic(self, values: Values) -> float:
        """Accuracy."""
        return float((values[:, 0] == values[:, 1]).mean())

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Train the model in place and run it on the rows.

        Raises:
            EvaluationFailed: the loss or the outputs are not numbers.
        """
        with tuned(
            loaded,
            self.train,
            self.recipe,
            record=self.record,
            seed=seed,
            checkpoints=self.checkpoints,
            on_event=on_event,
        ):
            told = self._told(loaded.model, self.scored, on_event)
            beside = {
                part: labels.accuracy(one.labels["labels"], self._told(loaded.model, one, on_event))
                for part, one in self.beside.items()
            }
        there, count = self.scored.labels["labels"], len(self.classes)
        values = np.stack([there, told], axis=1).astype(np.float64)
        f1 = "f1" if count == 2 else "macro f1"
        parts = {f1: labels.f1(there, told, count), "mcc": labels.matthews(there, told, count)}
        parts[MAJORITY] = majority(there.tolist())
        if (told == told[0]).all():
            text = f"all {len(told):,} answers are '{self.classes[told[0]]}': nothing was learned"
            on_event(Note(text, warning=True))
        return Score(self.statistic(values), values, parts | beside)

    def _told(self, model: Any, samples: Samples, on_event: OnEvent) -> Ints:
        found = outputs(
            model,
            samples,
            _logits,
            batch_size=self.batch_size,
            phase="classification",
            unit=self.unit,
            on_event=on_event,
        )
        logits = np.array([one[0] for one in found])
        if np.isnan(logits).any():
            bad = int(np.isnan(logits).any(1).sum())
            raise EvaluationFailed(self.name, f"the outputs of {bad:,} rows are NaN")
        told: Ints = logits.argmax(1)
        return told


def _logits(found: Any) -> tuple[Floats, ...]:
    return (found.logits.float().cpu().numpy(),)


def prepare(request: Request) -> Classification:
    """Read the rows and make the model's inputs of them.

    Raises:
        MetricMismatch: there is no such head for this kind of model, or the data are of another
            kind.
        NoData, BadData, MissingColumn, BadTokenizer, WrongTokenizer, InvalidOption: see there.
    """
    settings = request.settings
    images = request.model_kind.kind is Kind.VISION
    unnamed = UNNAMED_IMAGES if images else UNNAMED_TEXT
    task = task_of(settings.task, CLASSIFICATION, unnamed, settings.metric)
    if task.images not in (None, images):
        reads, about = ("images", "text") if images else ("text", "images")
        why = f"it reads {reads}, and task {settings.task} is about {about}"
        raise MetricMismatch(settings.metric, request.checkpoint.model, why)
    found = head_class(request, IMAGES if images else TEXT)
    recipe = recipe_of(request, task)
    data = classes_data.read(request, task, images=images, trains=recipe.epochs > 0)
    names, trained = _classes(request, data)
    make, pad, facts = _maker(request, data, found, images)
    train = make(data.train, _numbers(data.train, names, trained)) if data.train else None
    scored = make(data.scored, _numbers(data.scored, names, trained))
    beside = {k: make(one, _numbers(one, names, trained)) for k, one in data.beside.items()}
    for one in (scored, *beside.values()) if train else ():
        if isinstance(one, ImageSamples):
            one.check()
    head = found.head(
        request, pad, num_labels=len(names), problem_type="single_label_classification"
    )
    record = _record(request, data, names, recipe if train else None, facts)
    return Classification(
        train,
        scored,
        beside,
        names,
        recipe,
        found,
        head,
        settings.batch_size or BATCH,
        settings.training.checkpoints if settings.training else None,
        record,
        tuple(request.notes),
    )


def _classes(request: Request, data: Data) -> tuple[tuple[str, ...], set[str]]:
    """The classes in the order of the head's outputs, and those of them that it knows."""
    config = request.checkpoint.config
    if data.train is None:
        own = labels.own_names(request, data.scored.table, data.scored.columns.label,
                               data.scored.names)  # fmt: skip
        return own, set(own)
    found = labels.class_names(data.train.table, data.train.columns.label, data.train.names, config)
    return found, set(data.train.names)


def _numbers(rows: Rows, names: tuple[str, ...], trained: set[str]) -> dict[str, Ints]:
    return {"labels": labels.numbered(rows.table, rows.names, names, trained)}


Make = Callable[[Rows, dict[str, Ints]], Samples]


def _maker(
    request: Request, data: Data, head: HeadClass, images: bool
) -> tuple[Make, int | None, dict[str, Any]]:
    """What makes inputs of rows; the token that pads; and what a record says of it."""
    if images:
        process, note = load_processor(request.checkpoint, request.model_kind)
        request.notes += [note] if note else []
        assert request.model_kind.image is not None
        channels, height, width = request.model_kind.image

        def of_images(rows: Rows, numbers: dict[str, Ints]) -> ImageSamples:
            files = [one[0] for one in rows.inputs]
            return ImageSamples(rows.table.name, files, process, channels, numbers)

        return of_images, None, {"image": f"{channels}x{height}x{width}"}
    tokenizer = padding_tokenizer(request)
    length = length_of(request, tokenizer, LENGTH)

    def of_texts(rows: Rows, numbers: dict[str, Ints]) -> TextSamples:
        made = tokens_of(request, tokenizer, rows.inputs, length, head.accepted)
        return TextSamples(tokenizer.inner, made, numbers)

    return of_texts, tokenizer.inner.pad_token_id, {"sequence_length": length}


def _record(
    request: Request,
    data: Data,
    names: tuple[str, ...],
    recipe: Recipe | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    settings, scored = request.settings, data.scored
    common = Counter(scored.names).most_common(1)[0][1]
    record: dict[str, Any] = {
        "metric": "classification",
        "task": settings.task,
        **facts_of(scored.table),
        **request.facts,
        "blake3": scored.digest,
        "columns": [*scored.columns.inputs, scored.columns.label],
        "rows": len(scored.rows),
        "rows_available": len(scored.table.rows),
        "classes": list(names) if len(names) <= MOST_NAMED else len(names),
        "most_frequent_class": round(common / len(scored.rows), 4),
        **facts,
    }
    if data.train is not None and recipe is not None:
        record["train"] = {
            **facts_of(data.train.table),
            "blake3": data.train.digest,
            "rows": len(data.train.rows),
        }
        record["recipe"] = recipe.to_json()
    if data.divided:
        record["held_out"] = {"share": HELD_OUT, "seed": settings.seed}
    return record
