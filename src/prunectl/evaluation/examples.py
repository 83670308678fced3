"""What is trained on and what is scored on: splits are chosen, and rows drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tables import TABLE_FORMS, Table, column, has_column, pick
from prunectl.evaluation.errors import NoData
from prunectl.evaluation.metric import Request
from prunectl.evaluation.settings import Training
from prunectl.evaluation.sources import splits_of
from prunectl.evaluation.tasks import Task

One = TypeVar("One")
"""What a metric makes of a row."""

HELD_OUT = 0.2
"""Share of the rows that are scored on, where the data have one split only."""
_TRAIN = ("train", "all")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tables to train and to score on; ``train`` is None where rows of ``scored`` are to be taken.

    ``further`` are more tables to score on, by the name of their part.
    """

    train: Table | None
    scored: Table
    further: dict[str, Table]


@dataclass(frozen=True, slots=True)
class Reader(Generic[One]):
    """How a metric reads tables.

    Attributes:
        name: what rows are called, in the plural.
        rows: what the metric makes of a table's rows; the second argument says whether they are
            trained on.
        digest: a hash of rows; of rows to train on, if the second argument is true.
        group: where rows are drawn, each group keeps its share.
        unit: rows of one unit are all trained on or all scored on. units: what units are called.
        usable: those that can be trained on.
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
    """Rows to train on (None: nothing is trained) and to score on.

    Attributes:
        further: more rows to score on, by the name of their part.
        available: rows that ``scored`` were drawn from.
        divided: whether the rows to train and to score on are of one split.
        chosen: the tables that they are from.
    """

    train: list[One] | None
    scored: list[One]
    further: dict[str, list[One]]
    available: int
    divided: bool
    chosen: Chosen


def choose(request: Request, task: Task, answers: Sequence[str], *, trains: bool) -> Chosen:
    """Read the data and choose splits of them.

    Args:
        answers: names that the column of answers may have. Published tests often have no answers,
            and are passed over where another split can be scored on.
        trains: whether data to train on are needed.

    Raises:
        NoData, BadData: there are none, or none of their splits is one to train or to score on.
        InvalidOption, MissingLibrary, AccessDenied, HubUnreachable: they cannot be read.
    """
    settings = request.settings
    given = settings.data or ((task.data,) if task.data else ())
    if len(given) != 1:
        raise NoData(
            settings.metric, request.checkpoint.model, f"--data takes one table: {TABLE_FORMS}"
        )
    name = given[0]
    splits = splits_of(request, name, skip=task.skipped)
    given_up = [one for one in splits if one == "test" and not _answered(splits[one], answers)]
    others = {key: one for key, one in splits.items() if key not in given_up}
    scored = pick(others if set(others) & set(task.scored) else splits, task.scored, name)
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
            f"no split 'train' beside '{scored.facts['split']}'; it has {', '.join(splits)}",
            hint="name what to train on: --train-data SOURCE",
        )
    return Chosen(splits["train"] if len(splits) > 1 else None, scored, further)


def read(request: Request, chosen: Chosen, reader: Reader[One], *, trains: bool) -> Data[One]:
    """Read the tables, and draw as many of their rows as are asked for.

    Raises:
        BadData: there are too few to train and to score on; and what the reader raises.
    """
    settings = request.settings
    scored = reader.rows(chosen.scored, trains and chosen.train is None)
    train = reader.rows(chosen.train, True) if chosen.train else None
    divided = trains and train is None
    if divided:
        units = {reader.unit(one): reader.group(one) for one in scored}
        _, rest = held_out(list(units.values()), settings.seed)
        held = {list(units)[index] for index in rest}
        train = [one for one in scored if reader.unit(one) not in held]
        scored = [one for one in scored if reader.unit(one) in held]
        if not train or not scored:
            text = f"its {reader.units} are too few to train and to score on"
            raise BadData(chosen.scored.name, text)

    def some(rows: list[One], count: int | None) -> list[One]:
        return [rows[index] for index in drawn(list(map(reader.group, rows)), count, settings.seed)]

    if train is not None:
        most = (settings.training or Training()).train_samples
        train = some(reader.usable(train, chosen.train or chosen.scored), most)
    further = {part: reader.rows(table, False) for part, table in chosen.further.items()}
    return Data(
        train,
        some(scored, settings.samples),
        {part: some(rows, settings.samples) for part, rows in further.items()},
        len(scored),
        divided,
        chosen,
    )


def _answered(table: Table, answers: Sequence[str]) -> bool:
    """Whether any row has an answer."""
    if not has_column(table, answers):
        return False
    name = column(table, None, answers)
    return any(str(row.get(name)).strip() not in ("None", "", "-1") for row in table.rows)


def drawn(groups: Sequence[Hashable], count: int | None, seed: int) -> list[int]:
    """Indices of ``count`` rows by seed, in order; each group has its share, and at least one row.

    All rows if there are no more. If there are more groups than ``count``, groups do not count.
    """
    total = len(groups)
    if count is None or count >= total:
        return list(range(total))
    rng = np.random.default_rng(seed)
    members = _shuffled(groups, rng)
    if len(members) > count:
        return sorted(rng.choice(total, count, replace=False).tolist())
    exact = [len(one) * count / total for one in members]
    takes = [max(1, int(share)) for share in exact]
    while sum(takes) != count:
        step = 1 if sum(takes) < count else -1
        # The group that is furthest from its share comes a row nearer to it.
        far = [
            step * (share - take) if step > 0 or take > 1 else -np.inf
            for share, take in zip(exact, takes, strict=True)
        ]
        takes[int(np.argmax(far))] += step
    return sorted(i for one, take in zip(members, takes, strict=True) for i in one[:take])


def held_out(groups: Sequence[Hashable], seed: int) -> tuple[list[int], list[int]]:
    """Indices of rows to train and to score on, in order: a fifth of each group is scored on.

    A group of two rows has one on either side; a group of one is trained on.
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
    """What a record says of a table."""
    return {key: one for key, one in table.facts.items() if key not in ("rows", "classes")}
