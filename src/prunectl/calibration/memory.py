"""The memory that a calibration needs, predicted before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunectl.calibration.matrix import needs_full, runs_dense
from prunectl.checkpoint.block_model import BlockModel
from prunectl.device import free_memory
from prunectl.methods.spec import Memory
from prunectl.plan.job import Job
from prunectl.plan.plan import TensorPlan

if TYPE_CHECKING:
    from prunectl.calibration.block_order import BlockOrder


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Upper bounds in bytes, without torch itself.

    Attributes:
        rest: weights outside the blocks.
        block: the weights of the largest block. Weights that are assembled from several tensors
            count twice.
        moments: second moments of the inputs of a block's matrices, if none share an input.
        work: to run a block, or to prune one of its matrices.
        states: a block's outputs for all samples; twice, if the dense model runs too.
        spilled: whether the states are in a file and not in memory.
        keeps_blocks: whether all blocks stay in memory while the whole model is fitted.
    """

    rest: int
    block: int
    moments: int
    work: int
    states: int
    spilled: bool = False
    keeps_blocks: bool = False

    @property
    def total(self) -> int:
        """Bytes of memory."""
        states = 0 if self.spilled else self.states
        return self.rest + self.block + self.moments + self.work + states

    def __str__(self) -> str:
        where = "in a file" if self.spilled else "in memory"
        rest = f"{_size(self.rest)} for weights outside the blocks, " if self.rest else ""
        return (
            f"Calibration takes up to {_size(self.total)} of memory: {rest}{_size(self.block)} for "
            f"a block, up to {_size(self.moments)} for second moments of its inputs, "
            f"{_size(self.work)} of working memory; and {_size(self.states)} {where} for block "
            "outputs."
        )


_AIMED = Memory(squares=4, matrices=1)
"""Copies that an aim needs, before the method runs, and the weight to fit to."""

_REFINED = Memory(squares=2, matrices=18)
"""Copies of a matrix that refinement needs, after any method; measured."""


def forecast(
    job: Job, block_model: BlockModel, order: BlockOrder, free: int | None
) -> MemoryForecast:
    """Predict the memory of a calibration.

    Args:
        free: bytes of free memory, None if unknown. States that need more than half go to a file.
    """
    moments: dict[str, int] = {}
    pruning = 0
    full = needs_full(job.settings.method, job.settings.refine) or any(
        pool.is_budget for pool in job.plan.pools
    )
    for name, entry in job.planned.items():
        if entry.pool is None and entry.mask is None:
            continue
        pruning = max(pruning, _pruning(job, entry))
        target = block_model.targets.get(name)
        block = None if target is None else block_model.block_of(target.parameter)
        if block is None or entry.input_axis is None or len(entry.spec.shape) < 2:
            continue
        width = entry.spec.shape[entry.input_axis]
        stack = entry.spec.numel // (entry.spec.shape[-1] * entry.spec.shape[-2])
        moments[block] = moments.get(block, 0) + stack * 4 * width * (width if full else 1)
    runs = [_running(block_model, block, order) for block in block_model.blocks]
    loaded = max(_loaded(job, block_model, block) for block in block_model.blocks)
    with_dense = runs_dense(job.settings)
    if with_dense:
        # Dense and pruned weights; the moments of both inputs, which are kept for a batch.
        loaded *= 2
        if full:
            moments = {name: 2 * nbytes for name, nbytes in moments.items()}
            runs = [2 * nbytes for nbytes in runs]
    if job.settings.reconstruct:
        fitting = _FITTED * max(map(block_model.nbytes, block_model.blocks))
        runs = [fitting * 4 // block_model.dtype.itemsize + _KEPT * nbytes for nbytes in runs]
    states = order.states * (1 + with_dense)
    sizes = sum(map(block_model.nbytes, block_model.blocks))
    keeps = False
    if job.settings.reconstruct and order.has_logits:
        device = block_model.device
        room = free if device.type == "cpu" else free_memory(device)
        keeps = room is not None and sizes <= room // 4
        logits = _LOGITS * 4 * order.rows * len(block_model.model.get_output_embeddings().weight)
        outputs = len(block_model.blocks) * order.batch_states
        runs.append((sizes if keeps else 0) + outputs + max(logits, *runs))
    return MemoryForecast(
        rest=_outside(block_model),
        block=loaded,
        moments=max(moments.values(), default=0),
        work=max(pruning, *runs) + _FREED,
        states=states,
        spilled=free is not None and states > free // 2,
        keeps_blocks=keeps,
    )


def _outside(block_model: BlockModel) -> int:
    """Bytes of the loaded weights outside the blocks; tied weights count once."""
    loaded = {
        id(parameter): parameter.nbytes
        for name, parameter in block_model.model.named_parameters()
        if block_model.block_of(name) is None and not parameter.is_meta
    }
    return sum(loaded.values())


def _pruning(job: Job, entry: TensorPlan) -> int:
    """Bytes to prune a tensor: its old and new values, and the work on one of its matrices."""
    shape = entry.spec.shape
    if len(shape) < 2:
        return 4 * entry.spec.nbytes
    axis = len(shape) - 1 if entry.input_axis is None else entry.input_axis
    squares, matrices = job.settings.method.spec.memory
    if runs_dense(job.settings):
        squares, matrices = max(squares, _AIMED.squares), matrices + _AIMED.matrices
    if job.settings.refine:
        squares, matrices = max(squares, _REFINED.squares), max(matrices, _REFINED.matrices)
    work = squares * shape[axis] ** 2 + matrices * shape[-1] * shape[-2]
    return 3 * entry.spec.nbytes + 4 * work


def _loaded(job: Job, block_model: BlockModel, block: str) -> int:
    tensors = job.checkpoint.by_any_name
    names = (name for name in block_model.names_of(block) if block_model.targets[name].converted)
    together = sum(tensors[name].spec.numel for name in names)
    return block_model.nbytes(block) + together * block_model.dtype.itemsize


def _running(block_model: BlockModel, block: str, order: BlockOrder) -> int:
    """Bytes to run a block: the inputs and outputs of each of its parameters."""
    parameters = block_model.model.get_submodule(block).parameters()
    widths: int = sum(sum(one.shape[-2:]) for one in parameters if one.ndim > 1)
    return order.rows * widths * block_model.dtype.itemsize


_FITTED = 7
"""Copies in fp32 of a block that is fitted: its new, exact and best values, two of its gradients,
and the two of Adam."""

_KEPT = 3
"""Results of operations that gradients need, for each input and output of a parameter, roughly."""

_LOGITS = 6
"""Copies in fp32 of a batch's logits: the dense and the own ones, their logarithms, gradients."""

_FREED = 80 * 10**6
"""Freed memory that the C library keeps, roughly; measured."""


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
