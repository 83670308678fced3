"""The weights of an output: tensors streamed into shards by a few threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from prunectl.checkpoint.reader import TensorReader
from prunectl.loading.finished import check_finished
from prunectl.output.resumable import ResumableFolder
from prunectl.output.shards import Shard, ShardWriter
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import BATCH_BYTES, Scratch
from prunectl.plan.job import Job
from prunectl.transform.edits import Copy, Resolution
from prunectl.transform.writing import Written, write_tensor


@dataclass(frozen=True)
class _Batch:
    """Tensors of one shard that one thread writes; ``last`` if the shard is complete after it."""

    shard: Shard
    writer: ShardWriter
    names: tuple[str, ...]
    last: bool


def write_weights(
    job: Job,
    resolution: Resolution,
    sink: ResumableFolder,
    run: Run,
) -> tuple[dict[str, Written], int]:
    """Write all shards that an earlier run has not finished, each rank its own.

    Returns:
        Facts by tensor, and how many shards were finished before: on every rank those of all.
    """
    check_finished(sink, run)
    written: dict[str, Written] = {}
    todo: list[Shard] = []
    for shard in job.layout.shards:
        records = sink.records_of(shard)
        if records is None:
            todo.append(shard)
        else:
            written.update((record["name"], Written(**record)) for record in records)
    own = run.ranks.share(todo, lambda shard: shard.size)
    ours: dict[str, Written] = {}
    with run.phase("writing weights", sum(shard.size for shard in own)) as advance:
        with job.checkpoint.open() as reader:

            def work(batch: _Batch, scratch: Scratch) -> tuple[_Batch, list[Written]]:
                one = partial(_one, job, resolution, reader, batch.writer, scratch)
                return batch, [one(name) for name in batch.names]

            for batch, results in run.ordered(_batches(own, sink), work):
                ours.update((result.name, result) for result in results)
                size = sum(job.outputs[name].spec.nbytes for name in batch.names)
                advance(size, batch.shard.name)
                if batch.last:
                    names = [spec.name for spec in batch.shard.specs]
                    sink.finish(batch.writer, [asdict(ours[name]) for name in names])
        if run.ranks.count > 1:
            sink.wait()  # only durable shards are reported to other ranks
        written.update((result.name, result) for result in run.ranks.all_gather(ours.values()))
    return written, len(job.layout.shards) - len(todo)


def _batches(shards: Sequence[Shard], sink: ResumableFolder) -> Iterator[_Batch]:
    """Open shards one after another, and cut them into batches of small tensors."""
    for shard in shards:
        writer = sink.open_shard(shard)
        names: list[str] = []
        size = 0
        for index, spec in enumerate(shard.specs):
            names.append(spec.name)
            size += spec.nbytes
            last = index == len(shard.specs) - 1
            if last or size + shard.specs[index + 1].nbytes > BATCH_BYTES:
                yield _Batch(shard, writer, tuple(names), last)
                names, size = [], 0


def _one(
    job: Job,
    resolution: Resolution,
    reader: TensorReader,
    writer: ShardWriter,
    scratch: Scratch,
    name: str,
) -> Written:
    tensor = job.outputs[name]
    planned = job.planned[tensor.source.name]
    return write_tensor(
        tensor,
        resolution.edits.get(tensor.source.name, Copy()),
        planned.input_axis,
        reader,
        lambda offset, block: writer.write(name, offset, block),
        scratch,
        # A mask compares no magnitudes, so NaN matters only in tensors that have one.
        prunable=planned.prunable and (job.masks is None or planned.mask is not None),
    )
