"""Classification: the model is fine-tuned with its pruned weights held at zero, then scored.

Texts, pairs of texts or images with a class: tasks of GLUE and image sets by their names, or any
table or folder. The head is that of the class that transformers has for the task, and is trained
with the model. The score is the accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunectl.checkpoint.model_kind import Kind
from prunectl.data.datasets import IMAGE_COLUMNS, TEXT_COLUMNS
from prunectl.data.errors import BadData
from prunectl.data.images import load_processor
from prunectl.data.tables import Table, column, digest_rows, has_column
from prunectl.evaluation import labels
from prunectl.evaluation.examples import Data, Reader, choose, read
from prunectl.evaluation.inputs import (
    Floats,
    ImageSamples,
    Ints,
    Samples,
    TextSamples,
    length_of,
    padding_tokenizer,
    tokens_of,
)
from prunectl.evaluation.metric import MAJORITY, Request, Score, majority
from prunectl.evaluation.tasks import CLASSIFICATION, UNNAMED_IMAGES, UNNAMED_TEXT, Task, task_of
from prunectl.evaluation.tuning import HeadClass, TunedMetric, head_class, recipe_of, record_of
from prunectl.events import Note, OnEvent

if TYPE_CHECKING:
    from prunectl.evaluation.metric import Values

LENGTH = 128
"""Tokens of a text, or of two, where none are asked for; as usual for GLUE."""
MOST_NAMED = 20
"""More classes than this are not named in a record."""
TEXT, IMAGES = "AutoModelForSequenceClassification", "AutoModelForImageClassification"

PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
    ("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"),
)  # fmt: skip
LABELS = ("label", "labels", "class", "category", "target", "intent", "sentiment", "fine_label")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Classification(TunedMetric):
    """See :class:`prunectl.evaluation.tuning.TunedMetric`; a sample is a row: (number of its class,
    number of the class that the model predicts)."""

    name, unit, fed, batch = "classification", "rows", "rows", 32

    classes: tuple[str, ...]

    def statistic(self, values: Values) -> float:
        """Accuracy."""
        return float((values[:, 0] == values[:, 1]).mean())

    def read(self, found: Any) -> tuple[Floats, ...]:
        """Logits."""
        return (found.logits.float().cpu().numpy(),)

    def graded(self, found: Mapping[str, list[tuple[Floats, ...]]], on_event: OnEvent) -> Score:
        predicted = {
            part: np.array([one[0] for one in rows]).argmax(1) for part, rows in found.items()
        }
        right, own, count = self.scored.labels["labels"], predicted.pop(""), len(self.classes)
        parts = {
            "f1" if count == 2 else "macro f1": labels.f1(right, own, count),
            "mcc": labels.matthews(right, own, count),
            MAJORITY: majority(right.tolist()),
        }
        for part, rows in predicted.items():
            parts[part] = labels.accuracy(self.further[part].labels["labels"], rows)
        if (own == own[0]).all():
            text = f"all {len(own):,} answers are '{self.classes[own[0]]}': nothing was learned"
            on_event(Note(text, warning=True))
        values = np.stack([right, own], axis=1).astype(np.float64)
        return Score(self.statistic(values), values, parts)


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
        raise request.mismatch(why)
    head = head_class(request, IMAGES if images else TEXT)
    recipe = recipe_of(request, task)
    trains = recipe.epochs > 0
    wanted = settings.label_column or task.label
    chosen = choose(request, task, [wanted] if wanted else LABELS, trains=trains)
    columns = _columns(request, task, chosen.scored, images=images)
    rows = partial(_examples, request, columns)
    reader = Reader("rows", rows, _digest, group=lambda one: one.name, unit=id, units="rows")
    data = read(request, chosen, reader, trains=trains)
    names, known = _classes(request, data, columns)
    make, pad, facts = _images(request) if images else _texts(request, head)

    def samples(rows: Sequence[Example], table: Table) -> Samples:
        found = labels.numbered(table, [one.name for one in rows], names, known)
        return make(rows, table.name, {"labels": found})

    train = None if data.train is None else samples(data.train, chosen.train or chosen.scored)
    scored = samples(data.scored, chosen.scored)
    further = {part: samples(one, chosen.further[part]) for part, one in data.further.items()}
    for one in (scored, *further.values()) if train else ():
        if isinstance(one, ImageSamples):
            one.check()
    named = {"columns": [*columns.inputs, columns.label]}
    common = Counter(one.name for one in data.scored).most_common(1)[0][1]
    facts = {
        "classes": list(names) if len(names) <= MOST_NAMED else len(names),
        "most_frequent_class": round(common / len(data.scored), 4),
        **facts,
    }
    return Classification(
        train=train,
        scored=scored,
        further=further,
        settings=settings,
        recipe=recipe,
        head_class=head,
        head=head.head(
            request, pad, num_labels=len(names), problem_type="single_label_classification"
        ),
        record=record_of(request, data, reader, recipe, len(chosen.scored.rows), facts, named),
        notes=tuple(request.notes),
        classes=names,
    )


# --- rows with a class ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table that count: one or two of text or one of images, and the classes."""

    inputs: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Example:
    """A row that has all that is needed, and the name of its class."""

    row: Mapping[str, Any]
    columns: Columns
    name: str

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the model is to predict the class from."""
        return tuple(self.row[name] for name in self.columns.inputs)


def _digest(rows: Sequence[Example], trained: bool) -> str:
    """A hash of rows, order included."""
    columns = rows[0].columns
    return digest_rows((one.row for one in rows), [*columns.inputs, columns.label])


def _columns(request: Request, task: Task, table: Table, *, images: bool) -> Columns:
    """The columns that were asked for, or that the task has, or that are known."""
    settings = request.settings
    label = column(table, settings.label_column or task.label, LABELS)
    wanted = settings.text_columns or task.inputs
    if not wanted and not images:
        wanted = next((one for one in PAIRS if all(has_column(table, [name]) for name in one)), ())
    if wanted:
        return Columns(tuple(column(table, name, ()) for name in wanted), label)
    mine, others = (IMAGE_COLUMNS, TEXT_COLUMNS) if images else (TEXT_COLUMNS, IMAGE_COLUMNS)
    if not has_column(table, mine) and has_column(table, others):
        reads, are = ("images", "text") if images else ("text", "images")
        raise request.mismatch(f"it reads {reads}, and the data are {are}")
    return Columns((column(table, None, mine),), label)


def _examples(request: Request, wanted: Columns, table: Table, trained: bool) -> list[Example]:
    """The rows that have a class and something to predict it from."""
    columns = Columns(
        tuple(column(table, name, ()) for name in wanted.inputs), column(table, wanted.label, ())
    )
    found = []
    for row in table.rows:
        name = labels.read_label(table, columns.label, row.get(columns.label))
        if name is not None and all(_is_there(table, one, row.get(one)) for one in columns.inputs):
            found.append(Example(row, columns, name))
    if not found:
        raise BadData(table.name, f"none of its {len(table.rows):,} rows has a class and an input")
    if lost := len(table.rows) - len(found):
        request.notes.append(
            f"{table.name}: {lost:,} rows without a class or an input are left out"
        )
    if trained:
        labels.check_classes(table, columns.label, [one.name for one in found])
    return found


def _is_there(table: Table, name: str, value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if value is not None and not isinstance(value, bytes | Path):
        raise BadData(
            table.name, f"column '{name}' holds {value!r:.40}, which is neither text nor an image"
        )
    return value is not None


def _classes(
    request: Request, data: Data[Example], columns: Columns
) -> tuple[tuple[str, ...], set[str]]:
    """The classes in the order of the head's outputs, and those of them that the head knows."""
    chosen = data.chosen
    if data.train is None:
        scored = [one.name for one in data.scored]
        own = labels.own_names(request, chosen.scored, columns.label, scored)
        return own, set(own)
    found = [one.name for one in data.train]
    label, table = data.train[0].columns.label, chosen.train or chosen.scored
    return labels.class_names(table, label, found, request.checkpoint.config), set(found)


# --- the model's inputs ---------------------------------------------------------------------------

Make = Callable[[Sequence[Example], str, dict[str, Ints]], Samples]
Maker = tuple[Make, int | None, dict[str, Any]]
"""What makes inputs of rows of a table; the token that pads; and what a record says of them."""


def _images(request: Request) -> Maker:
    process, note = load_processor(request.checkpoint, request.model_kind)
    request.notes += [note] if note else []
    assert request.model_kind.image is not None
    channels, height, width = request.model_kind.image

    def make(rows: Sequence[Example], name: str, numbers: dict[str, Ints]) -> ImageSamples:
        return ImageSamples(name, [one.inputs[0] for one in rows], process, channels, numbers)

    return make, None, {"image": f"{channels}x{height}x{width}"}


def _texts(request: Request, head: HeadClass) -> Maker:
    tokenizer = padding_tokenizer(request)
    length = length_of(request, tokenizer, LENGTH)

    def make(rows: Sequence[Example], name: str, numbers: dict[str, Ints]) -> TextSamples:
        texts = [one.inputs for one in rows]
        made = tokens_of(request, tokenizer, texts, length, head.accepted)
        return TextSamples(tokenizer.inner, made, numbers)

    return make, tokenizer.inner.pad_token_id, {"sequence_length": length}
