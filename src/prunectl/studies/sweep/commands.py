"""Names of models in curves, and the command that prunes a model like a point of its curve."""

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
    """The name that opens the checkpoint again, with its revision."""
    revision = checkpoint.revision
    if checkpoint.repo_id is None or revision in (None, "main"):
        return checkpoint.model
    return f"{checkpoint.repo_id}@{revision}"


def short_names(models: Sequence[str]) -> list[str]:
    """Names for charts: the end of each folder's path, as long as needed to tell them apart."""
    for parts in range(1, max((len(PurePath(one).parts) for one in models), default=0)):
        short = [
            one if is_repo_id(split_revision(one)[0]) else "/".join(PurePath(one).parts[-parts:])
            for one in models
        ]
        if len(set(short)) == len(set(models)) and all(short):
            return short
    return list(models)


def command_for(checkpoint: Checkpoint, pattern: Pattern, settings: PruneSettings) -> str:
    """The shell command that prunes a checkpoint like a point of its curve.

    A compressed checkpoint is exported to dense first, as ``prune`` needs it. Outputs are placed
    outside the model's folder, even if that is the current one.
    """
    model, output = named(checkpoint), _outside(checkpoint, "out")
    if checkpoint.opener is None:  # it is dense
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
    """The command line of ``prune``.

    Args:
        settings: of the point; sparsity None prunes all that an N:M pattern takes.
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
    words += ["--reconstruct"] if settings.reconstruct else []
    calibration = settings.calibration
    if calibration is not None and settings.needs_calibration:
        words += [word for one in calibration.source for word in ("--calibration", one)]
        words += ["--samples", str(calibration.samples)]
        words += ["--sequence-length", str(calibration.sequence_length)]
        words += ["--seed", str(calibration.seed)] if calibration.seed else []
        words += ["--damping", str(calibration.damping)] if calibration.damping else []
    return shlex.join([*words, "-o", output])
