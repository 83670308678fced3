"""What measurements lack, taken in one pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import NaNWeights
from prunectl.measure.measured import Measured, measure
from prunectl.parallel.run import Run
from prunectl.pattern import NM
from prunectl.plan.prunable import input_axis, misfit_reason, prunable_tensors


def measure_missing(
    checkpoint: Checkpoint,
    measured: Measured,
    run: Run,
    *,
    names: Sequence[str],
    patterns: Sequence[NM],
    pattern_names: Sequence[str] | None = None,
) -> None:
    """One pass for what ``measured`` lacks: facts of ``names``, losses of ``patterns``."""
    roles = checkpoint.roles.roles
    specs = {tensor.name: tensor.spec for tensor in checkpoint.tensors}
    todo: dict[str, tuple[NM, ...]] = {}
    axes: dict[str, int] = {}
    for name in prunable_tensors(checkpoint, fp8=True) if pattern_names is None else pattern_names:
        axis = input_axis(specs[name], roles[name])
        missing = tuple(
            pattern
            for pattern in dict.fromkeys(patterns)
            if (name, str(pattern)) not in measured.patterns
            and not misfit_reason(specs[name], roles[name], pattern)
        )
        if missing and axis is not None:
            todo[name], axes[name] = missing, axis
    measure(
        checkpoint,
        [name for name in names if name not in measured.facts],
        todo,
        axes,
        into=measured,
        run=run,
    )


def refuse_nans(measured: Measured, names: Sequence[str]) -> None:
    """Raise NaNWeights for the first of ``names`` that holds NaN."""
    for name in names:
        if measured.facts[name].nans:
            raise NaNWeights(name, measured.facts[name].nans)
