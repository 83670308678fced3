"""The training step of each checkpoint, and the order of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from prunectl.checkpoint.index import find_weights
from prunectl.checkpoint.opening import local_path
from prunectl.documents import read_object
from prunectl.errors import PrunectlError
from prunectl.hub.snapshot import split_revision
from prunectl.studies.errors import SameStep, TooFewCheckpoints

LEAST = 2
STATE = "trainer_state.json"
"""Written by the Trainer of transformers next to the weights of a checkpoint."""
_STEP = re.compile(
    r"(?:^|[-_.])(?:global[-_]?step|steps?|checkpoint|ckpt|iter|iteration|epoch)[-_]?(\d{1,15})$"
    r"|^step(\d{1,15})-tokens\d+[BMT]$"  # OLMo
    r"|^(\d{1,15})$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Named:
    """A checkpoint before it is opened.

    Attributes:
        model: as given. step: of the training, or its position in the order given.
    """

    model: str
    step: int


@dataclass(frozen=True, slots=True)
class Course:
    """The checkpoints in the order of their steps.

    Attributes:
        known: whether steps are those of the training, and not positions in the order given.
        sorted: whether they were given in another order.
    """

    checkpoints: tuple[Named, ...]
    known: bool
    sorted: bool


def course(models: Sequence[str]) -> Course:
    """Find the checkpoints and their steps.

    Args:
        models: folders, Hub ids with revisions, or folders of ``checkpoint-*`` folders.

    Raises:
        TooFewCheckpoints: fewer than two. SameStep: two are of one step.
    """
    found = [one for model in models for one in expanded(model)]
    if len(found) < LEAST:
        raise TooFewCheckpoints(len(found), LEAST)
    steps = [step_of(model) for model in found]
    if any(step is None for step in steps):
        return Course(tuple(map(Named, found, range(1, len(found) + 1))), False, False)
    named = [Named(model, step) for model, step in zip(found, steps, strict=True)
             if step is not None]  # fmt: skip
    ordered = sorted(named, key=lambda one: one.step)
    for one, other in pairwise(ordered):
        if one.step == other.step:
            raise SameStep(one.step, one.model, other.model)
    return Course(tuple(ordered), True, ordered != named)


def expanded(model: str) -> list[str]:
    """The checkpoints in a folder that holds several; else the model itself.

    A folder with ``checkpoint-*`` folders and weights of its own (a Trainer's output) stands for
    the ``checkpoint-*`` folders: its own weights repeat the last of them.
    """
    path = local_path(model)
    if path is None or not path.is_dir():
        return [model]
    try:
        found = sorted(path.iterdir(), key=lambda one: (one.is_symlink(), one.name))
        # ``latest`` is often a link to one of the others.
        folders = {one.resolve(): one for one in reversed(found) if one.is_dir()}
        inner = [one for one in folders.values() if _holds_weights(one)]
    except OSError:  # opening the folder reports the error
        return [model]
    steps = {one: step for one in inner if (step := step_of(str(one))) is not None}
    if not steps:
        return [model]
    return [str(one) for one in sorted(steps, key=lambda one: (steps[one], one.name))]


def step_of(model: str) -> int | None:
    """The training step from a checkpoint's own files, its folder's name or its revision."""
    path = local_path(model)
    if path is None:
        revision = split_revision(model)[1]
        return _in_name(revision) if revision else None
    if path.is_dir():
        step = _in_state(path / STATE)
        return _in_name(path.resolve().name) if step is None else step
    return _in_name(path.stem)


def _in_name(name: str) -> int | None:
    match = _STEP.search(name)
    return int(match[match.lastindex or 0]) if match else None


def _in_state(path: Path) -> int | None:
    step = read_object(path).get("global_step")
    return step if type(step) is int and 0 <= step < 10**15 else None


def _holds_weights(folder: Path) -> bool:
    try:
        find_weights([one.name for one in folder.iterdir()], str(folder))
    except (OSError, PrunectlError):
        return False
    return True
