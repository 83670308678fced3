"""All numbers of a prune, whichever way it chooses its weights: nothing is written but, hidden
beside the output, what a calibration has made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from prunectl.analysis.cache import measured_of
from prunectl.analysis.measured import Measured
from prunectl.checkpoint.mask_file import check_bits
from prunectl.events import OnEvent
from prunectl.pruning.job import Job
from prunectl.pruning.masking import check_twins
from prunectl.pruning.resolve import Resolution, mask_resolution, resolve_plan
from prunectl.ranks.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from prunectl.magnitude.on_device import OnDevice

_SAMPLES = "all need the same files or datasets, and the same tokenizer"


@contextmanager
def resolved(
    job: Job,
    *,
    use_cache: bool,
    jobs: int | None,
    on_event: OnEvent,
    ranks: Ranks = ALONE,
    measured: Measured | None = None,
    device: OnDevice | None = None,
) -> Iterator[tuple[Job, Resolution]]:
    """What happens to every tensor, known in full; inside of the block it can be carried out.

    Masks and new weights are read until the block ends. The job that comes back also says what was
    found on the way: the masks' digest, the calibration's samples.

    Args:
        measured: what is known of the weights from jobs before, and receives more; the caller
            closes it. None is what the cache has.

    Raises:
        PrunectlError: as :func:`prunectl.prune`.
    """
    if job.settings.needs_calibration and job.settings.calibration is not None:
        from prunectl.pruning.calibration_samples import gather_samples

        samples = gather_samples(job.checkpoint, job.settings.calibration, on_event)
        ranks.check_same("calibration samples", samples.record, hint=_SAMPLES)
        job = replace(job, samples=samples)
    with ExitStack() as stack:  # masks are read until the last weight is written
        if (masks := job.masks) is not None:
            reader = stack.enter_context(masks.open())
            check_twins(job.checkpoint, masks, job.plan, reader)
            job = replace(job, mask_digest=check_bits(masks, reader, on_event))
            resolution = mask_resolution(job.plan, reader)
        elif not job.settings.method.spec.is_calibrated:
            with measured_of(
                job.checkpoint, use_cache=use_cache, ranks=ranks, given=measured
            ) as known:
                found = resolve_plan(
                    job.checkpoint, job.plan, known, jobs=jobs, on_event=on_event, ranks=ranks,
                    device=device,
                )  # fmt: skip
                # Hosts with other processors may add up floats otherwise: one of them decides.
                resolution = ranks.told(found)
        else:
            resolution = Resolution({}, {}, (None,) * len(job.plan.pools), {})
        if job.samples is not None:
            from prunectl.pruning.calibration_run import calibrated

            resolution = stack.enter_context(calibrated(job, resolution, ranks, on_event))
        yield job, resolution
