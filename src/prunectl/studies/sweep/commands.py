"""What models are called in a curve, and the command that prunes one as a point of it was."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.hub.snapshot import is_repo_id, split_revision
from prunectl.layouts.table import DENSE
from prunectl.methods.table import DEFAULT
from prunectl.pattern import NM, Pattern
from prunectl.plan.settings import Budget, PruneSettings


def named(checkpoint: Checkpoint) -> str:
    """What opens the checkpoint again, its revision included."""
    revision = checkpoint.revision
    if checkpoint.repo_id is None or revision in (None, "main"):
        return checkpoint.model
    return f"{checkpoint.repo_id}@{revision}"


def short_names(models: Sequence[str]) -> list[str]:
    """What models are called in charts: as much of a folder's path, from its end, as tells them
    apart."""
    for parts in range(1, max((len(PurePath(one).parts) for one in models), default=0)):
        short = [
            one if is_repo_id(split_revision(one)[0]) else "/".join(PurePath(one).parts[-parts:])
            for one in models
        ]
        if len(set(short)) == len(set(models)) and all(short):
            return short
    return list(models)


def command_for(checkpoint: Checkpoint, pattern: Pattern, settings: PruneSettings) -> str:
    """The line for a shell that prunes a checkpoint as a point of its curve was.

    A compressed one is made dense first, as ``prune`` wants it; and nothing is put into the folder
    of the model, where it is the one that is worked in.
    """
    model, output = named(checkpoint), _outside(checkpoint, "out")
    if checkpoint.opener is None:  # nothing has to be decoded
        return prune_command(model, pattern, settings, output)
    dense = _outside(checkpoint, DENSE)
    export = shlex.join(["prunectl", "export", model, "--layout", DENSE, "-o", dense])
    return f"{export} && {prune_command(dense, pattern, settings, output)}"


def _outside(checkpoint: Checkpoint, name: str) -> str:
    folder = checkpoint.folder.resolve()
    if checkpoint.kind == "folder" and Path.cwd().is_relative_to(folder):
        name = os.path.relpath(folder.parent / name)
    return f"{name}/"


def prune_command(
    model: str, pattern: Pattern, settings: PruneSettings, output: str = "out/"
) -> str:
    """The words for a shell.

    Args:
        settings: those of the point; a sparsity of None is all that an N:M pattern takes.
    """
    words = ["prunectl", "prune", model]
    if settings.sparsity is not None:
        words += ["--sparsity", str(settings.sparsity)]
    if isinstance(pattern, NM):
        words += ["--pattern", str(pattern)]
        if settings.budget is not Budget.MATRIX and settings.sparsity is not None:
            words += ["--budget", str(settings.budget)]
    if settings.method is not DEFAULT:
        words += ["--method", str(settings.method)]
    if settings.scope is not settings.method.spec.scope and not isinstance(pattern, NM):
        words += ["--scope", str(settings.scope)]
    words += [word for one in settings.include for word in ("--include", one)]
    words += [word for one in settings.exclude for word in ("--exclude", one)]
    words += ["--refine"] if settings.refine else []
    calibration = settings.calibration
    if calibration is not None and settings.needs_calibration:
        words += [word for one in calibration.source for word in ("--calibration", one)]
        words += ["--samples", str(calibration.samples)]
        words += ["--sequence-length", str(calibration.sequence_length)]
        words += ["--seed", str(calibration.seed)] if calibration.seed else []
        words += ["--damping", f"{calibration.damping:g}"] if calibration.damping != 0.01 else []
        words += ["--true-sequential"] if calibration.true_sequential else []
    return shlex.join([*words, "-o", output])
