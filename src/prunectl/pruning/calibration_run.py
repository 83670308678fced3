"""The calibrated part of a prune: the budget by output error, and the blocks in turn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.device import free_memory
from prunectl.events import Note, OnEvent
from prunectl.pruning.calibrated import Calibrator, replaced
from prunectl.pruning.calibrated_matrix import needs_full
from prunectl.pruning.calibrated_store import CalibratedStore
from prunectl.pruning.calibration_memory import forecast
from prunectl.pruning.calibration_samples import device_of, dtype_of
from prunectl.pruning.edit_masks import masks_of
from prunectl.pruning.edits import Copy
from prunectl.pruning.job import Job, fingerprint
from prunectl.pruning.resolve import Resolution
from prunectl.pruning.targets import (
    ByCount,
    TensorTarget,
    pool_targets,
    row_block_targets,
    take_by_error,
)
from prunectl.settings import Budget, Calibration, Method, Scope
from prunectl.sink.target import check_space
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    from prunectl.calibration.engine import PruneTensor, Wanted
    from prunectl.checkpoint.reader import TensorReader
    from prunectl.checkpoint.skeleton import Skeleton


@contextmanager
def calibrated(job: Job, resolution: Resolution, on_event: OnEvent) -> Iterator[Resolution]:
    """Prune by calibration; inside of the block the new weights can be read.

    Leaving it without an error removes them: they are in the output by then.

    Raises:
        PrunectlError: the model cannot be run, or fails on the samples; finished blocks are kept.
    """
    import torch

    from prunectl.calibration.engine import calibrate

    assert job.settings.calibration is not None
    assert job.samples is not None
    with job.checkpoint.open() as reader:
        skeleton = _skeleton(job.checkpoint, job.settings.calibration, reader)
        with CalibratedStore(job.target, fingerprint(job), on_event) as store:
            resolution, targets = _resolve(job, resolution, skeleton, reader, store, on_event)
            blocks = _blocks(job, targets, skeleton)
            store.expect(blocks)
            if not store.complete:
                # The new weights lie beside the output until it is whole.
                check_space(job.target, store.missing + job.layout.total_bytes)
                memory = forecast(job, skeleton, targets, free_memory(torch.device("cpu")))
                on_event(Note(str(memory)))
                full = needs_full(job.settings.method, job.settings.refine)
                calibrator = Calibrator(job, targets, reader, store, on_event, full=full)
                calibrate(
                    skeleton, job.samples.inputs, _wanted(job, blocks, full=full), calibrator,
                    finished=store.values_of, done=store.finish,
                    spill=job.target.resolve().parent if memory.spilled else None,
                    on_event=on_event,
                )  # fmt: skip
                _outside(blocks.get("", []), job, calibrator, reader)
                store.finish("")
                calibrator.tell_unreached()
            del skeleton
            yield replaced(resolution, store)
            store.done_with()


def _resolve(
    job: Job,
    resolution: Resolution,
    skeleton: Skeleton,
    reader: TensorReader,
    store: CalibratedStore,
    on_event: OnEvent,
) -> tuple[Resolution, dict[str, TensorTarget]]:
    """What goes of each tensor; a budget's matrices are chosen by what their outputs lose.

    What takes a pass over the samples is kept in the store, and not measured again.
    """
    by_magnitude = job.masks is not None or job.settings.method is Method.MAGNITUDE
    targets = masks_of(job, resolution.edits, reader) if by_magnitude else {}
    for index, pool in enumerate(job.plan.pools):
        if pool.is_budget and job.settings.budget is Budget.ROWS:
            targets |= row_block_targets(job.plan, index)
        elif pool.is_budget:
            found = pool_targets(job.plan, index)
            measure = partial(_take, job, index, found, skeleton, reader, on_event)
            taken = set(store.once(f"taken by pool {index}", measure))
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
        elif not by_magnitude and pool.kind == "unstructured" and pool.scope is Scope.GLOBAL:
            allot = partial(_allocate, job, index, skeleton, reader, on_event)
            counts = store.once(f"zeros in pool {index}", allot)
            targets |= {name: ByCount(zeros) for name, zeros in counts.items()}
        elif not by_magnitude:
            targets |= pool_targets(job.plan, index)
    return resolution, targets


def _allocate(
    job: Job, index: int, skeleton: Skeleton, reader: TensorReader, on_event: OnEvent
) -> dict[str, int]:
    """How many weights of each tensor go, where one threshold is for all of a pool."""
    from prunectl.pruning.allocation import ScoreCounts, allocate

    pool = job.plan.pools[index]
    targets = pool_targets(job.plan, index)
    axes = {name: job.planned[name].input_axis for name in targets}
    counter = ScoreCounts(job.checkpoint.by_name, axes, reader)
    outside = _measure(job, targets, skeleton, counter, "comparing weights", on_event, full=False)
    _outside(outside, job, counter, reader)
    counts = {name: counter.counts[name] for name in targets}
    return allocate(counts, pool.target_zeros)


def _take(
    job: Job,
    index: int,
    targets: dict[str, TensorTarget],
    skeleton: Skeleton,
    reader: TensorReader,
    on_event: OnEvent,
) -> list[str]:
    """The matrices that take a budget's pattern: each is pruned once, with the others dense."""
    calibrator = Calibrator(job, targets, reader, None, on_event, full=True)
    _measure(job, targets, skeleton, calibrator, "measuring errors", on_event, full=True)
    stored = job.checkpoint.by_name
    members = job.plan.pools[index].members
    zeros = {name: int((read_tensor(reader, stored[name]) == 0).sum()) for name in members}
    # Of what no sample reaches nothing is known: it is taken last.
    errors = dict.fromkeys(targets, math.inf)
    for name, facts in calibrator.facts.items():
        if facts.error is not None and not facts.by_magnitude:
            errors[name] = facts.error
    specs = [stored[name].spec for name in members if name in targets]
    taken = take_by_error(job.plan.pools[index], specs, errors, zeros)
    return [spec.name for spec in specs if spec.name in taken]


def _measure(
    job: Job,
    targets: Mapping[str, TensorTarget],
    skeleton: Skeleton,
    seen: PruneTensor,
    phase: str,
    on_event: OnEvent,
    *,
    full: bool,
) -> list[TensorSpec]:
    """Show ``seen`` the inputs of the dense model's matrices; returns tensors outside of blocks."""
    from prunectl.calibration.engine import calibrate

    assert job.samples is not None
    blocks = _blocks(job, targets, skeleton)
    wanted = replace(_wanted(job, blocks, full=full), true_sequential=False)
    calibrate(skeleton, job.samples.inputs, wanted, seen, phase=phase, on_event=on_event)
    return blocks.get("", [])


def _skeleton(checkpoint: Checkpoint, settings: Calibration, reader: TensorReader) -> Skeleton:
    from prunectl.checkpoint.skeleton import Skeleton

    device = device_of(settings)
    return Skeleton(checkpoint, reader, device=device, dtype=dtype_of(settings, checkpoint))


def _blocks(
    job: Job, targets: Mapping[str, TensorTarget], skeleton: Skeleton
) -> dict[str, list[TensorSpec]]:
    """The tensors to prune by block, in the order of blocks; '' is outside of all."""
    found: dict[str, list[TensorSpec]] = {block: [] for block in (*skeleton.blocks, "")}
    for entry in job.plan.tensors:
        if entry.spec.name in targets:
            target = skeleton.targets.get(entry.spec.name)
            block = None if target is None else skeleton.block_of(target.parameter)
            found[block or ""].append(entry.spec)
    return {block: specs for block, specs in found.items() if specs}


def _wanted(job: Job, blocks: Mapping[str, list[TensorSpec]], *, full: bool) -> Wanted:
    from prunectl.calibration.engine import Wanted

    assert job.settings.calibration is not None
    inside = {spec.name for block, specs in blocks.items() if block for spec in specs}
    names = [entry.spec.name for entry in job.plan.tensors if entry.spec.name in inside]
    return Wanted(
        {name: job.planned[name].input_axis for name in names},
        full=full,
        true_sequential=job.settings.calibration.true_sequential,
    )


def _outside(
    specs: list[TensorSpec], job: Job, calibrator: PruneTensor, reader: TensorReader
) -> None:
    """Tensors that were included and are in no block: there are no statistics of their inputs."""
    from prunectl.calibration.capture import matrices
    from prunectl.calibration.engine import Measured

    for spec in specs:
        weight = read_tensor(reader, job.checkpoint.by_name[spec.name])
        parts = matrices(spec.name, weight, job.planned[spec.name].input_axis)
        calibrator(spec.name, [Measured(one, None) for one in parts])
