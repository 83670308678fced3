"""Resolution: from a plan to edits, by exact thresholds and budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import check_bits
from prunectl.checkpoint.reader import TensorReader
from prunectl.errors import CalibrationFailed
from prunectl.geometry import Ranges
from prunectl.measure.cache import measured_of
from prunectl.measure.measured import Measured, measure_missing, refuse_nans
from prunectl.measure.thresholds import ExactThreshold, find_own_thresholds, find_thresholds, shares
from prunectl.parallel.run import Run
from prunectl.pattern import NM, Unstructured, nearest_prefix, pruned_count
from prunectl.plan.job import Job
from prunectl.plan.masking import check_twins
from prunectl.plan.plan import Plan, Pool
from prunectl.plan.settings import ROW_BLOCK, Scope
from prunectl.pruning.row_budget import TakenRows, take_rows
from prunectl.transform.edits import (
    Copy,
    Cut,
    CutRows,
    Edit,
    Forecast,
    Groups,
    Keep,
    Resolution,
    RowGroups,
)


def resolve_plan(
    checkpoint: Checkpoint,
    plan: Plan,
    measured: Measured,
    run: Run,
) -> Resolution:
    """Find the numbers of a plan that depend on weights; reads only what ``measured`` lacks.

    Raises:
        NaNWeights: a tensor whose magnitudes are compared holds NaN.
    """
    _measure(checkpoint, plan, measured, run)
    edits: dict[str, Edit] = {}
    reasons: dict[str, str] = {}
    thresholds: list[float | None] = []
    forecasts: dict[str, Forecast] = {}
    rows: dict[str, TakenRows] = {}
    for index, pool in enumerate(plan.pools):
        fitting = [entry.spec.name for entry in plan.tensors if entry.pool == index]
        threshold = None
        if pool.by_rows and plan.settings.needs_calibration:
            pass  # the calibration chooses them
        elif pool.by_rows:
            present = {name: measured.facts[name].zeros for name in pool.members}
            rows |= take_rows(checkpoint, plan, index, present, run)
        elif pool.is_budget:
            taken = take_budget(pool, fitting, measured)
            for name in fitting:
                if name in taken:
                    edits[name] = Groups(_nm(pool))
                else:
                    edits[name] = Copy()
                    reasons[name] = "kept dense: the budget is spent on matrices that lose less"
        elif isinstance(pool.pattern, NM):
            edits.update((name, Groups(pool.pattern)) for name in fitting)
        elif pool.scope is Scope.ROW:
            assert pool.sparsity is not None
            edits.update((name, CutRows(pool.sparsity)) for name in fitting)
        else:
            cuts, found = _cut(checkpoint, pool, measured, run)
            edits.update(cuts)
            forecasts.update(found)
            threshold = _one_threshold(pool, cuts)
        thresholds.append(threshold)
    forecasts.update(_group_forecasts(plan, edits, measured))
    resolution = Resolution(edits, reasons, tuple(thresholds), forecasts)
    return _with_rows(resolution, plan, rows, measured) if rows else resolution


def mask_resolution(plan: Plan, reader: TensorReader) -> Resolution:
    """The edits of a plan by masks, whose bits ``reader`` reads."""
    masked = {entry.spec.name: entry.mask for entry in plan.tensors if entry.mask is not None}
    edits: dict[str, Edit] = {name: Keep(mask, reader) for name, mask in masked.items()}
    return Resolution(edits, {}, (None,), {})


def _measure(
    checkpoint: Checkpoint,
    plan: Plan,
    measured: Measured,
    run: Run,
) -> None:
    """Measure in one pass what the pools' thresholds and budgets depend on."""
    compared = [
        name
        for pool in plan.pools
        if isinstance(pool.pattern, Unstructured) and pool.scope is not Scope.ROW
        for name in pool.members
    ]
    budgeted = [name for pool in plan.pools if pool.is_budget for name in pool.members]
    whole = [pool for pool in plan.pools if pool.is_budget and not pool.by_rows]
    patterns = list(dict.fromkeys(_nm(pool) for pool in whole))
    measure_missing(
        checkpoint,
        measured,
        run,
        names=[*compared, *budgeted],
        patterns=patterns,
        pattern_names=[name for pool in whole for name in pool.members],
    )
    refuse_nans(measured, [*compared, *budgeted])


def _nm(pool: Pool) -> NM:
    assert isinstance(pool.pattern, NM)
    return pool.pattern


def _cut(
    checkpoint: Checkpoint,
    pool: Pool,
    measured: Measured,
    run: Run,
) -> tuple[dict[str, Cut], dict[str, Forecast]]:
    """Cuts for scopes global and tensor, and their forecasts."""
    assert pool.sparsity is not None
    facts = measured.facts
    if pool.scope is Scope.TENSOR:
        counts = {name: pruned_count(pool.sparsity, facts[name].numel) for name in pool.members}
        own = find_own_thresholds(checkpoint, measured, counts, run)
        cuts: dict[str, Cut] = {}
        forecasts: dict[str, Forecast] = {}
        for name, one in own.items():
            cut, forecast = _cuts(measured, [name], one)
            cuts |= cut
            forecasts |= forecast
        return cuts, forecasts
    (threshold,) = find_thresholds(
        checkpoint,
        measured,
        pool.members,
        [pool.target_zeros],
        run,
        with_statistics=False,
    )
    return _cuts(measured, pool.members, threshold)


def _one_threshold(pool: Pool, cuts: dict[str, Cut]) -> float | None:
    return cuts[pool.members[0]].threshold if pool.scope is Scope.GLOBAL else None


def _cuts(
    measured: Measured, names: Sequence[str], threshold: ExactThreshold
) -> tuple[dict[str, Cut], dict[str, Forecast]]:
    """A cut for each tensor; an empty one where enough weights are zero already."""
    present = sum(measured.facts[name].zeros for name in names)
    if threshold.selected is None or present >= threshold.zeros:
        stay = {name: Forecast(measured.facts[name].zeros, 0.0) for name in names}
        return {name: Cut(0, 0, None) for name in names}, stay
    cuts, forecasts = {}, {}
    for name, (share,) in shares(measured, names, [threshold]):
        cuts[name] = Cut(share.code, share.quota, threshold.selected.value)
        forecasts[name] = _forecast(measured, name, share.zeros, share.lost)
    return cuts, forecasts


def _group_forecasts(
    plan: Plan, edits: Mapping[str, Edit], measured: Measured
) -> dict[str, Forecast]:
    """Forecasts for N:M and for tensors that stay dense, as far as they were measured."""
    found = {}
    for entry in plan.tensors:
        name = entry.spec.name
        if not entry.prunable or name not in measured.facts:
            continue
        edit = edits.get(name, Copy())
        if isinstance(edit, Copy):
            found[name] = Forecast(measured.facts[name].zeros, 0.0)
        elif isinstance(edit, Groups):
            stats = measured.patterns.get((name, str(edit.pattern)))
            if stats is not None:
                found[name] = _forecast(measured, name, stats.zeros_after, stats.lost_energy)
    return found


def _forecast(measured: Measured, name: str, zeros: int, lost: float) -> Forecast:
    norm = measured.facts[name].norm_squared
    return Forecast(zeros, lost / norm if norm else 0.0)


def _with_rows(
    resolution: Resolution, plan: Plan, rows: Mapping[str, TakenRows], measured: Measured
) -> Resolution:
    """Add the edits of tensors whose blocks of rows take a pattern."""
    edits, reasons, forecasts = resolution.edits, resolution.reasons, resolution.forecasts
    found: dict[str, Ranges] = {}
    for entry in plan.tensors:
        name, pattern = entry.spec.name, entry.pattern
        if name not in rows:
            continue
        taken = rows[name]
        assert isinstance(pattern, NM)
        forecasts[name] = _forecast(measured, name, taken.zeros, taken.lost)
        if not taken.rows:
            edits[name] = Copy()
            reasons[name] = f"kept dense: no block of {ROW_BLOCK} rows comes nearer to the sparsity"
        elif taken.everything:
            edits[name] = Groups(pattern)
        else:
            edits[name] = RowGroups(pattern, taken.rows)
            found[name] = taken.rows
    return replace(resolution, pattern_rows=found)


def take_budget(pool: Pool, fitting: Sequence[str], measured: Measured) -> set[str]:
    """The matrices that take a budget's pattern: those that lose least, until the zeros are nearest
    to k.

    The loss is the squared norm lost per pruned weight, relative to the matrix's squared norm per
    weight. It is rounded to nine digits, because the last bits of float sums differ between
    machines; of equal losses the first in file order is taken first.

    Args:
        pool: an N:M pool with a sparsity below the pattern's own.
        fitting: its tensors that can take the pattern, in file order.
        measured: with facts of all members, and the pattern's losses of ``fitting``.
    """
    text = str(pool.pattern)
    ranked = sorted(
        range(len(fitting)), key=lambda i: (_relative_loss(measured, fitting[i], text), i)
    )
    present = {name: measured.facts[name].zeros for name in pool.members}
    gains = (measured.patterns[fitting[i], text].zeros_after - present[fitting[i]] for i in ranked)
    taken = nearest_prefix(gains, pool.target_zeros - sum(present.values()))
    return {fitting[i] for i in ranked[:taken]}


def _relative_loss(measured: Measured, name: str, pattern: str) -> float:
    facts, stats = measured.facts[name], measured.patterns[name, pattern]
    pruned = stats.zeros_after - facts.zeros
    if not pruned or not facts.norm_squared:
        return 0.0
    return float(f"{stats.lost_energy / pruned / (facts.norm_squared / facts.numel):.9g}")


_SAMPLES = "all need the same files or datasets, and the same tokenizer"


@contextmanager
def resolved(
    job: Job,
    run: Run,
    *,
    use_cache: bool,
    measured: Measured | None = None,
) -> Iterator[tuple[Job, Resolution]]:
    """Resolve a job; inside the ``with`` block the resolution can be carried out.

    Masks and new weights can be read until the block ends. The yielded job also has the masks'
    digest and the calibration's samples.

    Args:
        measured: measurements from earlier jobs, which receives more; the caller closes it. None
            takes the cache.
    """
    if job.settings.needs_calibration and job.settings.calibration is not None:
        from prunectl.calibration.samples import gather_samples

        samples = gather_samples(job.checkpoint, job.settings.calibration, run.on_event)
        if job.settings.reconstruct and len(samples.inputs) < 2:
            raise CalibrationFailed(
                "--reconstruct holds out a part of the samples, so one sample is not enough",
                hint="give --samples 2 or more, and enough text; 32 or more are usual",
            )
        run.ranks.check_same("calibration samples", samples.record, hint=_SAMPLES)
        job = replace(job, samples=samples)
    with ExitStack() as stack:  # masks are read until the last weight is written
        if (masks := job.masks) is not None:
            reader = stack.enter_context(masks.open())
            check_twins(job.checkpoint, masks, job.plan, reader)
            job = replace(job, mask_digest=check_bits(masks, reader, run.on_event))
            resolution = mask_resolution(job.plan, reader)
        elif not job.settings.method.spec.is_calibrated:
            with measured_of(
                job.checkpoint, use_cache=use_cache, ranks=run.ranks, given=measured
            ) as known:
                found = resolve_plan(job.checkpoint, job.plan, known, run)
                # Float sums differ between processors: one rank decides.
                resolution = run.ranks.broadcast(found)
        else:
            resolution = Resolution({}, {}, (None,) * len(job.plan.pools), {})
        if job.samples is not None:
            from prunectl.calibration.run import calibrated

            resolution = stack.enter_context(calibrated(job, resolution, run))
        yield job, resolution
