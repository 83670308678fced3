"""The calibrated part of a prune: decide the targets, then prune block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from prunectl.calibration.calibrator import Calibrator, replaced
from prunectl.calibration.errors import memory_errors
from prunectl.calibration.matrix import needs_full, runs_dense
from prunectl.calibration.memory import MemoryForecast, forecast
from prunectl.calibration.reconstruction import LEAST_BATCHES
from prunectl.calibration.store import CalibratedStore
from prunectl.calibration.targets import (
    ByCounts,
    ScoreCounts,
    TensorTarget,
    allocate,
    pool_targets,
    share_targets,
    take_by_error,
)
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.device import free_memory
from prunectl.parallel.launched import on_this_host
from prunectl.parallel.run import Run
from prunectl.plan.job import Job, device_of, dtype_of, fingerprint
from prunectl.plan.settings import Budget, Calibration, Scope
from prunectl.tensorspec import TensorSpec
from prunectl.transform.edits import Copy, Edit, Resolution
from prunectl.transform.writing import edited

if TYPE_CHECKING:
    from prunectl.calibration.block_order import BlockOrder
    from prunectl.calibration.engine import Values, Wanted
    from prunectl.calibration.forward import Forward
    from prunectl.calibration.pruner import Pruner
    from prunectl.checkpoint.block_model import BlockModel


class _Passes:
    """The model and the samples, and passes over them."""

    def __init__(self, job: Job, reader: TensorReader, run: Run) -> None:
        assert job.settings.calibration is not None
        assert job.samples is not None
        self.job, self.reader, self.run = job, reader, run
        free = free_memory(torch.device("cpu"))
        sharing = on_this_host() if run.ranks.count > 1 else 1
        self._free = None if free is None else free // sharing
        self.block_model = _block_model(
            job.checkpoint, job.settings.calibration, reader, heads=job.settings.reconstruct
        )
        run.ranks.use(self.block_model.device, run.on_event)
        self._samples = job.samples.inputs
        self._least = LEAST_BATCHES if job.settings.reconstruct else 1

    @cached_property
    def _prepared(self) -> tuple[BlockOrder, MemoryForecast]:
        """The model's block order, and the memory that is needed."""
        from prunectl.calibration.engine import try_model

        order = try_model(self.block_model, self._samples, self.run, least=self._least)
        memory = forecast(self.job, self.block_model, order, self._free)
        self.run.note(str(memory))
        return order, memory

    def puts_out_logits(self) -> bool:
        """Whether the model puts out logits, so that scales can be fitted to them."""
        return self._prepared[0].has_logits

    def calibrate(
        self,
        wanted: Wanted,
        pruner: Pruner,
        *,
        phase: str = "calibrating",
        finished: Callable[[str], Values | None] = lambda block: None,
        done: Callable[[str], object] = lambda block: None,
    ) -> Forward:
        """Make one pass; see :func:`prunectl.calibration.engine.calibrate`."""
        from prunectl.calibration.engine import calibrate

        order, memory = self._prepared
        spill = self.job.target.resolve().parent if memory.spilled else None
        return calibrate(
            self.block_model, self._samples, wanted, pruner, order=order, least=self._least,
            finished=finished, done=done, spill=spill, phase=phase, run=self.run,
        )  # fmt: skip

    def fit_scales(
        self, forward: Forward, blocks: Mapping[str, list[TensorSpec]], store: CalibratedStore
    ) -> None:
        """Scale the weights in the store to bring the model's logits nearest the dense ones.

        Args:
            forward: of the pass that pruned all blocks.
        """
        from prunectl.calibration.scales import ScaleFit, TensorScales

        written = store.written(first=True)
        tensors = {
            spec.name: TensorScales.of(
                spec.shape,
                self.job.planned[spec.name].input_axis,
                written[spec.name].facts["movable_rows"],
            )
            for block, specs in blocks.items()
            if block
            for spec in specs
        }
        order, memory = self._prepared
        scales = ScaleFit(forward, order.groups, tensors, store.read, keeps=memory.keeps_blocks)
        with memory_errors(
            self.block_model.device, self.block_model.dtype, "a block, and the model's logits"
        ):
            fit = scales.run(self.run)
        if fit is None:
            text = "The logits on the samples held out are not finite: weights are not scaled."
            self.run.note(text, warning=True)
        store.again()
        for block, specs in blocks.items():
            for spec in specs:
                values, facts = store.read(spec.name), written[spec.name].facts
                if fit is not None and spec.name in tensors:
                    new = tensors[spec.name].applied(values)
                    if not torch.equal(new, values):
                        facts["survivors"] = "updated"
                    values = new
                    facts |= {"scale_steps": fit.steps, "divergence_before": fit.before}
                    facts["divergence"] = fit.after
                store.put(spec.name, values, facts)
            store.finish(block)


@contextmanager
def calibrated(job: Job, resolution: Resolution, run: Run) -> Iterator[Resolution]:
    """Prune by calibration. Inside the ``with`` block, the new weights can be read from a store.

    The store is removed when the block ends without an error: the weights are in the output then.

    Raises:
        PrunectlError: the model cannot be run, or fails on the samples. Finished blocks are kept
            for a resume.
    """
    with job.checkpoint.open() as reader:
        passes = _Passes(job, reader, run)
        with CalibratedStore(job.target, fingerprint(job), run) as store:
            resolution, targets = _resolve(passes, resolution, store)
            blocks = _blocks(job, targets, passes.block_model)
            # The model that scales are fitted in has its dense embeddings and head.
            may_scale = job.settings.reconstruct and bool(blocks) and "" not in blocks
            store.expect(blocks, twice=may_scale and passes.puts_out_logits())
            if not store.complete:
                _prune_blocks(passes, targets, blocks, store)
            del passes  # frees the model
            yield replaced(resolution, store)
            store.done_with()


def _prune_blocks(
    passes: _Passes,
    targets: dict[str, TensorTarget],
    blocks: Mapping[str, list[TensorSpec]],
    store: CalibratedStore,
) -> None:
    """Compute the new weights that the store lacks."""
    job = passes.job
    # The new weights take disk space next to the output until it is complete.
    store.check_space(job.layout.total_bytes)
    full = needs_full(job.settings.method, job.settings.refine)
    calibrator = Calibrator(job, targets, passes.reader, store, passes.run.on_event, full=full)

    def finished(block: str) -> Values | None:
        values = store.values_of(block)
        calibrator.passed(values or {})
        return values

    wanted = _wanted(
        job,
        blocks,
        full=full,
        with_dense=runs_dense(job.settings),
        reconstruct=job.settings.reconstruct,
    )
    forward = passes.calibrate(wanted, calibrator, finished=finished, done=calibrator.finish)
    if finished("") is None:
        _give_outside(blocks[""], passes, calibrator)
        calibrator.finish("")
    calibrator.notes.end()
    if store.is_twice:
        passes.fit_scales(forward, blocks, store)


def _resolve(
    passes: _Passes, resolution: Resolution, store: CalibratedStore
) -> tuple[Resolution, dict[str, TensorTarget]]:
    """The target of each tensor. An N:M budget is spent on the matrices whose outputs change least.

    Results that need a pass over the samples are stored for a resume.
    """
    job = passes.job
    has_masks = job.masks is not None or not job.settings.method.spec.is_calibrated
    targets = _known_masks(job, resolution.edits, passes.reader) if has_masks else {}
    for index, pool in enumerate(job.plan.pools):
        if pool.is_budget and job.settings.budget is Budget.ROWS:
            taking = {entry.spec.name for entry in job.plan.tensors if entry.pool == index}
            unfit = sum(_count_zeros(passes, set(pool.members) - taking).values())
            targets |= share_targets(job.plan, index, unfit)
        elif pool.is_budget:
            found = pool_targets(job.plan, index)
            taken = set(
                store.once(f"taken by pool {index}", partial(_names_taken, passes, index, found))
            )
            dense = found.keys() - taken
            targets = {k: v for k, v in targets.items() if k not in found}
            targets |= {name: found[name] for name in found if name in taken}
            reason = "kept dense: the budget is spent on matrices whose outputs change less"
            resolution = replace(
                resolution,
                edits={**resolution.edits, **dict.fromkeys(dense, Copy())},
                reasons={**resolution.reasons, **dict.fromkeys(dense, reason)},
                forecasts={k: v for k, v in resolution.forecasts.items() if k not in found},
            )
        elif not has_masks and pool.kind == "unstructured" and pool.scope is Scope.GLOBAL:
            counts = store.once(f"zeros in pool {index}", partial(_allocate, passes, index))
            targets |= {name: ByCounts(tuple(zeros)) for name, zeros in counts.items()}
        elif not has_masks:
            targets |= pool_targets(job.plan, index)
    return resolution, targets


def _count_zeros(passes: _Passes, names: Iterable[str]) -> dict[str, int]:
    """The number of zeros in each tensor; rank 0 reads the tensors."""
    stored = passes.job.checkpoint.by_name
    return passes.run.ranks.broadcast(
        {
            name: int((read_tensor(passes.reader, stored[name]) == 0).sum())
            for name in (names if passes.run.ranks.is_first else ())
        }
    )


def _allocate(passes: _Passes, index: int) -> dict[str, list[int]]:
    """The number of zeros in each matrix of a pool with one threshold."""
    job = passes.job
    pool = job.plan.pools[index]
    targets = pool_targets(job.plan, index)
    axes = {name: job.planned[name].input_axis for name in targets}
    counter = ScoreCounts(job.checkpoint.by_name, axes, passes.reader)
    outside = _measure(passes, targets, counter, "comparing weights", full=False)
    _give_outside(outside, passes, counter)
    counts = {name: counter.counts[name] for name in targets}
    return allocate(counts, pool.target_zeros)


def _names_taken(passes: _Passes, index: int, targets: dict[str, TensorTarget]) -> list[str]:
    """The names of the matrices that take a budget's pattern, by errors with all others dense."""
    job = passes.job
    calibrator = Calibrator(job, targets, passes.reader, None, passes.run.on_event, full=True)
    _measure(passes, targets, calibrator, "measuring errors", full=True)
    members = job.plan.pools[index].members
    # A tensor that no sample reaches has no error and is taken last. The error of a stack is that
    # of its matrices that were reached.
    errors = dict.fromkeys(targets, math.inf)
    for name, facts in calibrator.facts.items():
        if facts.error is not None:
            errors[name] = facts.error
    specs = [job.checkpoint.by_name[name].spec for name in members if name in targets]
    before = _count_zeros(passes, members)
    taken = take_by_error(job.plan.pools[index], specs, errors, before, calibrator.zeros)
    return [spec.name for spec in specs if spec.name in taken]


def _measure(
    passes: _Passes, targets: Mapping[str, TensorTarget], pruner: Pruner, phase: str, *, full: bool
) -> list[TensorSpec]:
    """Make a pass over the dense model, and return the tensors outside blocks: it skips them."""
    blocks = _blocks(passes.job, targets, passes.block_model)
    passes.calibrate(_wanted(passes.job, blocks, full=full), pruner, phase=phase)
    return blocks.get("", [])


def _block_model(
    checkpoint: Checkpoint, settings: Calibration, reader: TensorReader, *, heads: bool
) -> BlockModel:
    from prunectl.checkpoint.block_model import BlockModel

    device, dtype = device_of(settings), dtype_of(settings, checkpoint)
    with memory_errors(device, dtype, "the model's weights outside its blocks"):
        return BlockModel(checkpoint, reader, device=device, dtype=dtype, heads=heads)


def _blocks(
    job: Job, targets: Mapping[str, TensorTarget], block_model: BlockModel
) -> dict[str, list[TensorSpec]]:
    """The tensors to prune by block, in the order of blocks; '' has those outside all blocks."""
    found: dict[str, list[TensorSpec]] = {block: [] for block in (*block_model.blocks, "")}
    for entry in job.plan.tensors:
        if entry.spec.name in targets:
            target = block_model.targets.get(entry.spec.name)
            block = None if target is None else block_model.block_of(target.parameter)
            found[block or ""].append(entry.spec)
    return {block: specs for block, specs in found.items() if specs}


def _wanted(job: Job, blocks: Mapping[str, list[TensorSpec]], **measured: bool) -> Wanted:
    from prunectl.calibration.engine import Wanted

    inside = {spec.name for block, specs in blocks.items() if block for spec in specs}
    names = [entry.spec.name for entry in job.plan.tensors if entry.spec.name in inside]
    return Wanted({name: job.planned[name].input_axis for name in names}, **measured)


def _give_outside(specs: list[TensorSpec], passes: _Passes, pruner: Pruner) -> None:
    """Give tensors outside all blocks to the pruner: included ones, without statistics."""
    from prunectl.calibration.capture import matrices
    from prunectl.calibration.pruner import Captured, pruned

    for spec in specs:
        weight = read_tensor(passes.reader, passes.job.checkpoint.by_name[spec.name])
        parts = matrices(spec.name, weight, passes.job.planned[spec.name].input_axis)
        # One call for each tensor, so that one tensor at a time is in memory.
        todo = {spec.name: [Captured(one, None) for one in parts]}
        for _ in pruned(pruner, todo, passes.run.ranks):
            pass


def _known_masks(
    job: Job, edits: Mapping[str, Edit], reader: TensorReader
) -> dict[str, TensorTarget]:
    """The masks that are decided already, to which survivors are fitted."""
    return {
        name: _ByEdit(job, name, edit, reader)
        for name, edit in edits.items()
        if not isinstance(edit, Copy)
    }


class _ByEdit:
    """The mask of an edit, computed on demand, so that one tensor at a time is in memory."""

    def __init__(self, job: Job, name: str, edit: Edit, reader: TensorReader) -> None:
        self._job, self._name, self._edit, self._reader = job, name, edit, reader

    def mask(self) -> torch.Tensor:
        """The mask: bool, in the tensor's shape; True = kept."""
        stored = self._job.checkpoint.by_name[self._name]
        planned = self._job.planned[self._name]
        out = edited(
            stored, self._edit, planned.input_axis, self._reader, prunable=planned.mask is None
        )
        uint = np.dtype(f"u{stored.spec.dtype.bits // 8}")
        magnitudes = out.view(uint) & uint.type((1 << (8 * uint.itemsize - 1)) - 1)
        return torch.from_numpy(magnitudes != 0).reshape(stored.spec.shape)
