"""An export to dense files: the way back from a compressed folder, or a copy in new shards."""

from __future__ import annotations

from functools import partial

import blake3

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.exporting.survey import check_digest
from prunectl.exporting.writing import Stored
from prunectl.layouts.table import DENSE
from prunectl.magnitude.codes import code_format
from prunectl.magnitude.masks import count_zeros
from prunectl.output.shards import Shard, ShardWriter
from prunectl.parallel.run import Advance, Run
from prunectl.parallel.streaming import Scratch
from prunectl.plan.outputs import OutputTensor


def write_dense(
    shard: Shard,
    outputs: dict[str, OutputTensor],
    checkpoint: Checkpoint,
    reader: TensorReader,
    writer: ShardWriter,
    run: Run,
    advance: Advance,
) -> list[Stored]:
    """Write all tensors of one dense file; returns what was written, in the shard's order.

    Raises:
        BadCheckpoint: a tensor's bytes are not those that its stored hash is of.
    """
    # Two outputs may be one tensor of the source, so that work is told apart by output.
    tensors = [
        StoredTensor(spec, outputs[spec.name].source.file, outputs[spec.name].source.offset)
        for spec in shard.specs
    ]

    def work(tensor: StoredTensor, scratch: Scratch) -> Stored:
        put = partial(writer.write, tensor.name)
        source = outputs[tensor.name].source
        digest, zeros = blake3.blake3(), 0
        format = code_format(tensor.spec.dtype) if tensor.spec.dtype.is_float else None
        for start, block in scratch.blocks(reader, source):
            digest.update(block.data)
            zeros += count_zeros(block.view(format.uint)) if format else 0
            put(start, block.data)
        found = digest.hexdigest()
        check_digest(checkpoint, source, found)
        spec = tensor.spec
        return Stored(spec.name, DENSE, None, zeros, found, spec.nbytes, (spec.name,))

    written = []
    for tensor, stored in run.tensors(tensors, work):
        written.append(stored)
        advance(tensor.spec.nbytes, shard.name)
    return written
