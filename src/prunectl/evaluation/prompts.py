"""What metrics that prompt a model share: which models fit, how long a prompt may be, which rows
are taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from prunectl.checkpoint.model_kind import Kind
from prunectl.data.errors import BadData
from prunectl.data.tables import Table, column, has_column, pick
from prunectl.data.tokens import Tokenizer
from prunectl.evaluation.metric import Request
from prunectl.evaluation.metrics import suggested

Row = TypeVar("Row")

LEAST = 2
"""Fewer samples than this say nothing of how sure a score is."""
SCORED = ("test", "validation", "all")
EXAMPLES = ("dev", "train", "validation")
MOST_GROUPS = 20
"""More kinds of samples than this are no groups."""


def continues_text(request: Request) -> None:
    """Refuse models that do not continue text.

    Raises:
        MetricMismatch: this one does something else.
    """
    kind = request.model_kind.kind
    if kind is not Kind.CAUSAL_LM:
        raise request.mismatch(
            f"it is for models that continue text, and this one is of kind {kind}",
            hint=suggested(kind),
        )


def room(request: Request, tokenizer: Tokenizer) -> int | None:
    """Tokens that the model takes at once, or that were asked for, if that is less.

    None where nothing limits them.
    """
    known = (tokenizer.limit(request.model_kind.context), request.settings.sequence_length)
    return min((one for one in known if one is not None), default=None)


def drawn(request: Request, rows: Sequence[Row]) -> list[Row]:
    """No more rows than were asked for, drawn by the seed, in their order."""
    wanted = request.settings.samples
    if wanted is None or wanted >= len(rows):
        return list(rows)
    chosen = np.random.default_rng(request.settings.seed).choice(len(rows), wanted, replace=False)
    return [rows[int(index)] for index in np.sort(chosen)]


def taken(request: Request, rows: Sequence[Row], unit: str) -> tuple[list[Row], dict[str, int]]:
    """As :func:`drawn`, and what a record says of it: how many, of how many, and drawn by what.

    Args:
        unit: what a row is, in the plural.
    """
    found = drawn(request, rows)
    facts = {unit: len(found), f"{unit}_available": len(rows)}
    return found, facts if len(found) == len(rows) else facts | {"seed": request.settings.seed}


def scored_split(splits: dict[str, Table], answers: Sequence[str], name: str) -> Table:
    """The split to score on: ``test``, ``validation``, or the one that is there.

    Published tests often have no answers; those are passed over.

    Args:
        answers: names that the column of answers may have.

    Raises:
        MissingColumn: no split has one.
        BadData: there is no split of use, or which one is meant is not clear.
    """
    having = {key: one for key, one in splits.items() if has_column(one, answers)}
    if not having:
        column(next(iter(splits.values())), None, answers)
    useful = {key: one for key, one in having.items() if has_answers(one, answers)}
    if not useful:
        raise BadData(name, "its column of answers is empty")
    return pick(useful, SCORED, name)


def has_answers(table: Table, answers: Sequence[str]) -> bool:
    """Whether any row has an answer: published test splits often have none, or -1."""
    if not has_column(table, answers):
        return False
    name = column(table, None, answers)
    return any(str(row.get(name)).strip() not in ("None", "", "-1") for row in table.rows)


def examples_split(splits: dict[str, Table], scored: Table, name: str) -> Table:
    """The split that solved examples are taken from.

    Raises:
        BadData: there is only the one that is scored.
    """
    for split in EXAMPLES:
        if split in splits and splits[split] is not scored:
            return splits[split]
    raise BadData(
        name,
        "--shots takes examples from a split of its own (dev, train or validation), and it has "
        f"only {', '.join(splits)}",
        hint="put dev.csv and test.csv into a folder, or leave --shots out",
    )


def enough(samples: int, unit: str, name: str) -> None:
    """Refuse too few samples.

    Raises:
        BadData: with their number.
    """
    if samples < LEAST:
        raise BadData(name, f"{samples} {unit}, and at least {LEAST} are needed")


def shares(
    groups: Sequence[str | None], right: NDArray[np.float64], order: Sequence[str] = ()
) -> dict[str, float]:
    """The mean of ``right`` in each group, those of ``order`` first.

    Nothing where there is one group, or where there are more than tell anything.
    """
    known = set(groups)
    if not 2 <= len(known) <= MOST_GROUPS:
        return {}
    places = {name: place for place, name in enumerate(order)}
    members: dict[str, list[int]] = {}
    for index, name in enumerate(groups):
        members.setdefault("(none)" if name is None else name, []).append(index)
    names = sorted(members, key=lambda one: (places.get(one, len(places)), one))
    return {name: float(right[members[name]].mean()) for name in names}
