"""Rows with a class: which columns of a table they are in, and which rows count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunectl.data.datasets import IMAGE_COLUMNS, TEXT_COLUMNS
from prunectl.data.errors import BadData
from prunectl.data.tables import Table, column, digest_rows, has_column
from prunectl.evaluation.errors import MetricMismatch
from prunectl.evaluation.examples import Chosen, choose, drawn, held_out
from prunectl.evaluation.labels import check_classes, read_label
from prunectl.evaluation.metric import Request
from prunectl.evaluation.settings import Training
from prunectl.evaluation.tasks import Task

PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
    ("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"),
)  # fmt: skip
LABELS = ("label", "labels", "class", "category", "target", "intent", "sentiment", "fine_label")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns count: one or two of text or one of images, and that of classes."""

    inputs: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that have all that is needed, and the name of each one's class."""

    table: Table
    columns: Columns
    rows: tuple[dict[str, Any], ...]
    names: tuple[str, ...]

    def at(self, indices: Sequence[int]) -> Rows:
        """Some of them."""
        rows = tuple(self.rows[index] for index in indices)
        return Rows(self.table, self.columns, rows, tuple(self.names[index] for index in indices))

    @property
    def inputs(self) -> list[tuple[Any, ...]]:
        """What the model is to tell the class of."""
        return [tuple(row[name] for name in self.columns.inputs) for row in self.rows]

    @property
    def digest(self) -> str:
        """A hash of them, order included."""
        return digest_rows(self.rows, [*self.columns.inputs, self.columns.label])


@dataclass(frozen=True, slots=True)
class Data:
    """Rows to train on (None: nothing is trained), to score on, and by name further ones."""

    train: Rows | None
    scored: Rows
    beside: dict[str, Rows]
    divided: bool
    """Whether the rows to train and to score on are of one split."""


def read(request: Request, task: Task, *, images: bool, trains: bool) -> Data:
    """Read the rows, and draw of them what is asked for.

    Raises:
        MetricMismatch: images for a model that reads text, or the other way round.
        MissingColumn, BadData, and others: see :func:`prunectl.evaluation.examples.choose`.
    """
    settings = request.settings
    wanted = settings.label_column or task.label
    chosen: Chosen = choose(request, task, [wanted] if wanted else LABELS, trains=trains)
    columns = columns_of(request, task, chosen.scored, images=images)
    scored = rows_of(request, chosen.scored, columns)
    train = rows_of(request, chosen.train, columns) if chosen.train else None
    divided = trains and train is None
    if trains:
        rows = train or scored
        check_classes(rows.table, rows.columns.label, rows.names)
    if divided:
        kept, rest = held_out(scored.names, settings.seed)
        train, scored = scored.at(kept), scored.at(rest)
        if not scored.rows:
            raise BadData(scored.table.name, "its rows are too few to train and to score on")
    if train is not None:
        most = (settings.training or Training()).train_samples
        train = train.at(drawn(train.names, most, settings.seed))
    beside = {part: rows_of(request, one, columns) for part, one in chosen.beside.items()}
    return Data(train, _drawn(scored, request), {k: _drawn(one, request) for k, one in
                beside.items()}, divided)  # fmt: skip


def _drawn(rows: Rows, request: Request) -> Rows:
    return rows.at(drawn(rows.names, request.settings.samples, request.settings.seed))


def columns_of(request: Request, task: Task, table: Table, *, images: bool) -> Columns:
    """The columns that were asked for, or that the task has, or that are known.

    Raises:
        MissingColumn: one is not there.
        MetricMismatch: the data are of the other kind.
    """
    settings = request.settings
    label = column(table, settings.label_column or task.label, LABELS)
    wanted = settings.text_columns or task.inputs
    if wanted:
        return Columns(tuple(column(table, name, ()) for name in wanted), label)
    mine, others = (IMAGE_COLUMNS, TEXT_COLUMNS) if images else (TEXT_COLUMNS, IMAGE_COLUMNS)
    pair = next((one for one in PAIRS if all(has_column(table, [name]) for name in one)), None)
    if pair and not images:
        return Columns(tuple(column(table, name, ()) for name in pair), label)
    if not has_column(table, mine) and has_column(table, others):
        reads, are = ("images", "text") if images else ("text", "images")
        raise MetricMismatch(
            settings.metric, request.checkpoint.model, f"it reads {reads}, and the data are {are}"
        )
    return Columns((column(table, None, mine),), label)


def rows_of(request: Request, table: Table, columns: Columns) -> Rows:
    """The rows that have a class and something to tell it by.

    Raises:
        MissingColumn: a column is not there.
        BadData: there are none, or a cell holds something else.
    """
    columns = Columns(
        tuple(column(table, name, ()) for name in columns.inputs), column(table, columns.label, ())
    )
    rows, names = [], []
    for row in table.rows:
        name = read_label(table, columns.label, row.get(columns.label))
        if name is not None and all(_is_there(table, one, row.get(one)) for one in columns.inputs):
            rows.append(row)
            names.append(name)
    if not rows:
        raise BadData(
            table.name, f"none of its {len(table.rows):,} rows has a class and what it is told by"
        )
    if lost := len(table.rows) - len(rows):
        request.notes.append(
            f"{table.name}: {lost:,} rows without a class or an input are left out"
        )
    return Rows(table, columns, tuple(rows), tuple(names))


def _is_there(table: Table, name: str, value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if value is not None and not isinstance(value, bytes | Path):
        raise BadData(
            table.name, f"column '{name}' holds {value!r:.40}, which is neither text nor an image"
        )
    return value is not None
