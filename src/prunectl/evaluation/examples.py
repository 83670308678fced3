"""Choose splits to train on and to score on, and draw rows from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tables import TABLE_FORMS, Table, pick
from prunectl.evaluation.errors import NoData
from prunectl.evaluation.metric import Request
from prunectl.evaluation.prompts import has_answers
from prunectl.evaluation.settings import Training
from prunectl.evaluation.sources import splits_of
from prunectl.evaluation.tasks import Task

One = TypeVar("One")
"""The type into which a metric reads a row."""

HELD_OUT = 0.2
"""Share of the rows that are scored on, where the data have only one split."""
_TRAIN = ("train", "all")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tables to train on and to score on.

    Attributes:
        train: None if nothing is trained, or if ``scored`` is to be divided.
        further: more tables to score on, by the name of their part.
    """

    train: Table | None
    scored: Table
    further: dict[str, Table]


@dataclass(frozen=True, slots=True)
class Reader(Generic[One]):
    """How a metric reads tables.

    Attributes:
        name: what rows are called, in the plural.
        rows: reads the rows of a table; the second argument is true for rows to train on.
        digest: hashes rows; the second argument is true for rows to train on.
        group: the group of a row; draws keep each group's share.
        unit: the unit of a row; rows of one unit are all trained on or all scored on.
        units: what units are called, in the plural.
        usable: selects the rows that can be trained on.
    """

    name: str
    rows: Callable[[Table, bool], list[One]]
    digest: Callable[[Sequence[One], bool], str]
    group: Callable[[One], Hashable]
    unit: Callable[[One], Hashable]
    units: str
    usable: Callable[[list[One], Table], list[One]] = field(default=lambda rows, table: rows)


@dataclass(frozen=True, slots=True)
class Data(Generic[One]):
    """The rows to train on (None: nothing is trained) and to score on.

    Attributes:
        further: more rows to score on, by the name of their part.
        available: number of rows from which ``scored`` was drawn.
        divided: whether the rows to train on and to score on are from one split.
        chosen: the tables that the rows are from.
    """

    train: list[One] | None
    scored: list[One]
    further: dict[str, list[One]]
    available: int
    divided: bool
    chosen: Chosen


def choose(request: Request, task: Task, answers: Sequence[str], *, trains: bool) -> Chosen:
    """Open the data and choose splits to train on and to score on.

    Args:
        answers: possible names of the column of answers. Published test splits often lack answers,
            and are skipped where another split can be scored on.
        trains: whether data to train on are needed.

    Raises:
        NoData: not exactly one source is named.
        BadData: there is no split to train on or to score on.
        InvalidOption, MissingLibrary, AccessDenied, HubUnreachable: the data cannot be read.
    """
    settings = request.settings
    given = settings.data or ((task.data,) if task.data else ())
    if len(given) != 1:
        raise NoData(
            settings.metric, request.checkpoint.model, f"--data takes one table: {TABLE_FORMS}"
        )
    name = given[0]
    splits = splits_of(request, name, skip=task.skipped)
    unanswered = [one for one in splits if one == "test" and not has_answers(splits[one], answers)]
    usable = {key: one for key, one in splits.items() if key not in unanswered}
    scored = pick(usable if set(usable) & set(task.scored) else splits, task.scored, name)
    further = {
        part: splits[next(one for one in names if one in splits)]
        for part, names in task.further.items()
        if any(one in splits for one in names)
    }
    if not trains:
        return Chosen(None, scored, further)
    if settings.train_data:
        own = splits_of(request, settings.train_data, "--train-data", skip=task.skipped)
        return Chosen(pick(own, _TRAIN, settings.train_data), scored, further)
    if len(splits) > 1 and ("train" not in splits or splits["train"] is scored):
        raise BadData(
            name,
            f"no split to train on besides '{scored.facts['split']}'; it has {', '.join(splits)}",
            hint="name data to train on: --train-data SOURCE",
        )
    return Chosen(splits["train"] if len(splits) > 1 else None, scored, further)


def read(request: Request, chosen: Chosen, reader: Reader[One], *, trains: bool) -> Data[One]:
    """Read the tables, and draw the requested numbers of rows.

    Raises:
        BadData: there are too few rows to divide.

    Errors of the reader pass through.
    """
    settings = request.settings
    scored = reader.rows(chosen.scored, trains and chosen.train is None)
    train = reader.rows(chosen.train, True) if chosen.train else None
    divided = trains and train is None
    if divided:
        units = {reader.unit(one): reader.group(one) for one in scored}
        _, indices = held_out(list(units.values()), settings.seed)
        scored_units = {list(units)[index] for index in indices}
        train = [one for one in scored if reader.unit(one) not in scored_units]
        scored = [one for one in scored if reader.unit(one) in scored_units]
        if not train or not scored:
            text = f"its {reader.units} are too few to train and to score on"
            raise BadData(chosen.scored.name, text)

    def draw(rows: list[One], count: int | None) -> list[One]:
        return [rows[index] for index in drawn(list(map(reader.group, rows)), count, settings.seed)]

    if train is not None:
        limit = (settings.training or Training()).train_samples
        train = draw(reader.usable(train, chosen.train or chosen.scored), limit)
    further = {part: reader.rows(table, False) for part, table in chosen.further.items()}
    return Data(
        train,
        draw(scored, settings.samples),
        {part: draw(rows, settings.samples) for part, rows in further.items()},
        len(scored),
        divided,
        chosen,
    )


def drawn(groups: Sequence[Hashable], count: int | None, seed: int) -> list[int]:
    """Indices of ``count`` rows by seed, in order; each group has its share, and at least one row.

    All rows if ``count`` is not less than their number. If there are more groups than ``count``,
    groups are ignored.
    """
    total = len(groups)
    if count is None or count >= total:
        return list(range(total))
    rng = np.random.default_rng(seed)
    members = _shuffled(groups, rng)
    if len(members) > count:
        return sorted(rng.choice(total, count, replace=False).tolist())
    exact = [len(one) * count / total for one in members]
    sizes = [max(1, int(share)) for share in exact]
    while sum(sizes) != count:
        step = 1 if sum(sizes) < count else -1
        # Give a row to, or take one from, the group that is furthest from its exact share.
        far = [
            step * (share - size) if step > 0 or size > 1 else -np.inf
            for share, size in zip(exact, sizes, strict=True)
        ]
        sizes[int(np.argmax(far))] += step
    return sorted(i for one, size in zip(members, sizes, strict=True) for i in one[:size])


def held_out(groups: Sequence[Hashable], seed: int) -> tuple[list[int], list[int]]:
    """Indices, in order, of rows to train on and of rows to score on: a fifth of each group.

    Of two or more rows of a group, at least one is scored on; a single row is trained on.
    """
    scored = []
    for one in _shuffled(groups, np.random.default_rng(seed)):
        count = int(HELD_OUT * len(one) + 0.5)
        scored += one[: min(max(count, 1), len(one) - 1)]
    chosen = set(scored)
    return [index for index in range(len(groups)) if index not in chosen], sorted(scored)


def _shuffled(groups: Sequence[Hashable], rng: np.random.Generator) -> list[list[int]]:
    """Indices of each group's members, in random order."""
    members: dict[Hashable, list[int]] = {}
    for index in rng.permutation(len(groups)).tolist():
        members.setdefault(groups[index], []).append(index)
    return list(members.values())


def facts_of(table: Table) -> dict[str, Any]:
    """The facts about a table for a record."""
    return {key: one for key, one in table.facts.items() if key not in ("rows", "classes")}
