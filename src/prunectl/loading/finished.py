"""What an earlier run finished, compared with the digests of what it wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import SourceError
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted
from prunectl.loading.compressed import open_model
from prunectl.output.resumable import ResumableFolder
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.streaming import Scratch, run_tensors


def check_finished(
    sink: ResumableFolder,
    on_event: OnEvent,
    *,
    ranks: Ranks = ALONE,
    jobs: int | None = None,
    once: bool = True,
) -> None:
    """Drop finished files whose tensors are not as they were written, and say what is left.

    The headers were compared when the folder was entered. Compressed files are decoded.

    Args:
        sink: its records state ``name`` and ``blake3`` (of the dense bytes) of each tensor.
        ranks: each of them checks its share of the files.
        once: whether the files are not read again soon: then memory need not keep them.
    """
    entries = list(sink.finished.values())
    own = ranks.share(entries, lambda entry: int(entry["size"]))
    opened = [(entry, _opened(sink.work / entry["shard"])) for entry in own]
    damaged = []
    phase = f"checking earlier {sink.part}s"
    if entries:
        total = sum(checkpoint.nbytes for _, checkpoint in opened if checkpoint)
        on_event(PhaseStarted(phase, total))
    for entry, checkpoint in opened:
        if checkpoint is None or _digests(checkpoint, phase, jobs, on_event, once=once) != {
            record["name"]: record["blake3"] for record in entry["records"]
        }:
            sink.spoil(entry["shard"])
            damaged.append(entry["shard"])
    if entries:
        on_event(PhaseDone(phase))
    for name in ranks.all_gather(damaged):
        if name in sink.finished:  # another rank has checked, and removed, the file
            sink.spoil(name)
    sink.tell_resumed()


def _opened(path: Path) -> Checkpoint | None:
    try:
        return open_model(path)
    except SourceError:
        return None


def _digests(
    checkpoint: Checkpoint, phase: str, jobs: int | None, on_event: OnEvent, *, once: bool
) -> dict[str, Any]:
    """BLAKE3 of each tensor's dense bytes; None of one that cannot be read."""
    found = {}
    with checkpoint.open(once=once) as reader:
        for tensor, digest in run_tensors(checkpoint.tensors, partial(_digest, reader), jobs):
            found[tensor.name] = digest
            on_event(Advanced(phase, tensor.spec.nbytes, tensor.file))
    return found


def _digest(reader: TensorReader, tensor: StoredTensor, scratch: Scratch) -> str | None:
    digest = blake3()
    try:
        for _, block in scratch.blocks(reader, tensor):
            digest.update(block.data)
    except (SourceError, OSError):
        return None
    return digest.hexdigest()
