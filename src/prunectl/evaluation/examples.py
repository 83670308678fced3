"""What is trained on and what is scored: splits chosen, rows drawn with each class's share kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunectl.data.errors import BadData
from prunectl.data.tables import TABLE_FORMS, Table, column, has_column, pick
from prunectl.evaluation.errors import NoData
from prunectl.evaluation.metric import Request
from prunectl.evaluation.sources import splits_of
from prunectl.evaluation.tasks import Task

HELD_OUT = 0.2
"""Share of the rows that are scored on, where the data have one split only."""
_TRAIN = ("train", "all")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tables to train and to score on; ``train`` is None where rows of ``scored`` are to be taken.

    ``beside`` are further tables to score on, by the name of their part.
    """

    train: Table | None
    scored: Table
    beside: dict[str, Table]


def choose(request: Request, task: Task, answers: Sequence[str], *, trains: bool) -> Chosen:
    """Read the data and choose splits of them.

    Args:
        answers: names that the column of answers may have; published tests often have none, and
            are passed over where something else can be scored on.
        trains: whether data to train on are needed at all.

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
    beside = {
        part: splits[next(one for one in names if one in splits)]
        for part, names in task.beside.items()
        if any(one in splits for one in names)
    }
    if not trains:
        return Chosen(None, scored, beside)
    if settings.train_data:
        own = splits_of(request, settings.train_data, "--train-data", skip=task.skipped)
        return Chosen(pick(own, _TRAIN, settings.train_data), scored, beside)
    if len(splits) > 1 and ("train" not in splits or splits["train"] is scored):
        raise BadData(
            name,
            f"no split 'train' beside '{scored.facts['split']}'; it has {', '.join(splits)}",
            hint="name what to train on: --train-data SOURCE",
        )
    return Chosen(splits["train"] if len(splits) > 1 else None, scored, beside)


def _answered(table: Table, answers: Sequence[str]) -> bool:
    """Whether any row has an answer."""
    if not has_column(table, answers):
        return False
    name = column(table, None, answers)
    return any(str(row.get(name)).strip() not in ("None", "", "-1") for row in table.rows)


def drawn(groups: Sequence[Hashable], count: int | None, seed: int) -> list[int]:
    """Indices of ``count`` rows by seed, in order; each group has its share, and at least one.

    All of them where there are no more; groups too are drawn where they are more than ``count``.
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

    Of two rows in a group, one is on either side; of a single one, nothing is scored on.
    """
    scored = []
    for one in _shuffled(groups, np.random.default_rng(seed)):
        count = int(HELD_OUT * len(one) + 0.5)
        scored += one[: min(max(count, 1), len(one) - 1)]
    chosen = set(scored)
    return [index for index in range(len(groups)) if index not in chosen], sorted(scored)


def _shuffled(groups: Sequence[Hashable], rng: np.random.Generator) -> list[list[int]]:
    """Indices of each group's members, in an order that is drawn."""
    members: dict[Hashable, list[int]] = {}
    for index in rng.permutation(len(groups)).tolist():
        members.setdefault(groups[index], []).append(index)
    return list(members.values())


def facts_of(table: Table) -> dict[str, Any]:
    """What a record says of a table."""
    return {key: one for key, one in table.facts.items() if key not in ("rows", "classes")}
