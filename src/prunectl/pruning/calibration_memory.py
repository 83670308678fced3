"""What a calibration will take of memory, told before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl.checkpoint.skeleton import Skeleton
from prunectl.pruning.calibrated_matrix import needs_full
from prunectl.pruning.job import Job

if TYPE_CHECKING:
    from prunectl.calibration.units import Course


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Bytes, at most.

    Attributes:
        block: the weights of the largest block.
        moments: of the inputs of a block's matrices, if no two of them have the same input.
        states: what a block puts out for all samples.
        spilled: whether the states are kept in a file and not in memory.
    """

    block: int
    moments: int
    states: int
    spilled: bool = False

    def __str__(self) -> str:
        total = self.block + self.moments + (0 if self.spilled else self.states)
        where = "in a file" if self.spilled else "of memory"
        return (
            f"Calibration takes up to {_size(total)} of memory: {_size(self.block)} for a block, "
            f"up to {_size(self.moments)} for its inputs' moments; and {_size(self.states)} "
            f"{where} for what blocks put out."
        )


def forecast(job: Job, skeleton: Skeleton, course: Course, free: int | None) -> MemoryForecast:
    """What a calibration takes.

    Args:
        free: bytes of memory that can be used; the states go into a file if they would take more
            than half of it. None is not known.
    """
    moments: dict[str, int] = {}
    full = needs_full(job.settings.method, job.settings.refine)
    for name, entry in job.planned.items():
        if entry.pool is None and entry.mask is None:
            continue
        target = skeleton.targets.get(name)
        block = None if target is None else skeleton.block_of(target.parameter)
        if block is None or entry.input_axis is None or len(entry.spec.shape) < 2:
            continue
        width = entry.spec.shape[entry.input_axis]
        stack = entry.spec.numel // (entry.spec.shape[-1] * entry.spec.shape[-2])
        moments[block] = moments.get(block, 0) + stack * 4 * width * (width if full else 1)
    return MemoryForecast(
        block=max(skeleton.nbytes(path) for path in skeleton.blocks),
        moments=max(moments.values(), default=0),
        states=course.states,
        spilled=free is not None and course.states > free // 2,
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
