"""Classes: read from cells, checked, put in order; and scores of predicted classes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.data.errors import BadData
from prunectl.data.tables import Table
from prunectl.evaluation.metric import Request

Ints = NDArray[np.int64]

MOST = 0.5
"""Where a column has many values, more than this share of them different, they are no classes."""
_MANY = 50
_WHOLE = re.compile(r"(-?\d+)\.0+")
_UNNAMED = re.compile(r"LABEL_\d+")


def read_label(table: Table, column: str, value: Any) -> str | None:
    """The name of a cell's class; None where it has none (empty, or the -1 of a test split).

    Raises:
        BadData: it is no class.
    """
    names = table.facts.get("classes", {}).get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and (whole := _WHOLE.fullmatch(value)):
        value = whole[1]  # as 1.0 of a CSV, which is the 1 of a JSONL
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | bool):
        hint = "--metric similarity is for scores of pairs" if isinstance(value, float) else ""
        raise BadData(
            table.name,
            f"column '{column}' holds {value!r:.40}, which is no class",
            hint=hint or "name the column of classes: --label-column NAME",
        )
    return str(value)


def class_names(
    table: Table, column: str, found: Sequence[str], config: Mapping[str, Any]
) -> tuple[str, ...]:
    """The classes in order: in the model's own where it has the same ones, else in the dataset's,
    else by number or name.
    """
    counts = Counter(found)
    stated = table.facts.get("classes", {}).get(column)
    names = stated or (sorted(counts, key=int) if all(map(_is_int, counts)) else sorted(counts))
    known = {one.casefold(): at for at, one in enumerate(_known(config))}
    if known.keys() == {one.casefold() for one in names} and len(known) == len(names):
        names = sorted(names, key=lambda one: known[one.casefold()])
    return tuple(names)


def check_classes(table: Table, column: str, found: Sequence[str]) -> None:
    """Refuse a column that holds no classes.

    Raises:
        BadData: it has one value only, or so many that they are something else.
    """
    counts = Counter(found)
    if len(counts) < 2:
        only = f"one class only, '{next(iter(counts))}'" if counts else "no class at all"
        raise BadData(table.name, f"column '{column}' has {only}", hint="two are needed to tell")
    if len(counts) > _MANY and len(counts) > MOST * len(found):
        raise BadData(
            table.name,
            f"column '{column}' has {len(counts):,} values in {len(found):,} rows: no classes",
            hint="name the column of classes: --label-column NAME",
        )


def own_names(request: Request, table: Table, column: str, found: Sequence[str]) -> tuple[str, ...]:
    """The classes of a model that is not trained, in its order and as the data spell them.

    They are matched by name, or by number where the model or the data have no names.

    Raises:
        MetricMismatch: the model has other classes.
    """
    config = request.checkpoint.config
    known = _known(config)
    spelled = {one.casefold(): one for one in found}
    if spelled.keys() <= {one.casefold() for one in known}:
        return tuple(spelled.get(one.casefold(), one) for one in known)
    count = len(known) or 2  # as transformers has it, where config.json says nothing
    stated = table.facts.get("classes", {}).get(column)
    if stated and len(stated) == count and all(map(_UNNAMED.fullmatch, known)):
        return tuple(stated)
    if all(_is_int(one) and 0 <= int(one) < count for one in spelled):
        return tuple(map(str, range(count)))
    some = ", ".join(sorted(set(found))[:3])
    raise request.mismatch(
        f"its classes are {', '.join(known[:3]) or 'not named'}, and those of the data {some}",
        hint="--epochs 1 or more trains a head for them",
    )


def _known(config: Mapping[str, Any]) -> list[str]:
    """The names of a model's classes in their order; empty where config.json has none."""
    known = config.get("label2id")
    if not isinstance(known, dict):
        return []
    at = {str(number): str(name) for name, number in known.items()}
    every = [at.get(str(number)) for number in range(len(known))]
    return [one for one in every if one is not None] if None not in every else []


def numbered(table: Table, found: Sequence[str], names: Sequence[str], trained: set[str]) -> Ints:
    """The number of each row's class.

    Raises:
        BadData: a class is not trained on.
    """
    strange = Counter(one for one in found if one not in trained)
    if strange:
        name, count = strange.most_common(1)[0]
        raise BadData(
            table.name,
            f"class '{name}' of {count:,} of its rows is in no row that is trained on",
            hint=f"trained on are {', '.join(map(repr, sorted(trained)[:5]))}"
            + (" and others" if len(trained) > 5 else ""),
        )
    at = {name: number for number, name in enumerate(names)}
    return np.array([at[one] for one in found], np.int64)


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


# --- scores ---------------------------------------------------------------------------------------


def accuracy(labels: Ints, predicted: Ints) -> float:
    """Share of samples whose class is predicted."""
    return float((labels == predicted).mean())


def f1(labels: Ints, predicted: Ints, classes: int) -> float:
    """F1 of the second class where there are two, as GLUE has it for QQP; else the mean over all
    classes ("macro"). A class that is neither there nor predicted counts as 0.
    """
    scores = []
    for one in [1] if classes == 2 else range(classes):
        both = int(((labels == one) & (predicted == one)).sum())
        all_of = int((labels == one).sum()) + int((predicted == one).sum())
        scores.append(2 * both / all_of if all_of else 0.0)
    return float(np.mean(scores))


def matthews(labels: Ints, predicted: Ints, classes: int) -> float:
    """Matthews correlation of several classes (Gorodkin, 2004): 1 all right, 0 as by chance.

    0 where there is only one class, or only one is predicted.
    """
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, predicted), 1)
    total, right = table.sum(), np.trace(table)
    there, said = table.sum(1), table.sum(0)
    spread = math.sqrt((total**2 - (said**2).sum()) * (total**2 - (there**2).sum()))
    return float((right * total - (there * said).sum()) / spread) if spread else 0.0
