"""Check finished files of an earlier run against the recorded hashes of their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import SourceError
from prunectl.loading.compressed import open_model
from prunectl.output.resumable import ResumableFolder
from prunectl.parallel.run import Advance, Run
from prunectl.parallel.streaming import Scratch


def check_finished(sink: ResumableFolder, run: Run, *, once: bool = True) -> None:
    """Drop finished files whose tensors changed since, and report what is left.

    The headers were compared when the folder was entered. Compressed files are decoded.

    Args:
        sink: its records state ``name`` and ``blake3`` (of the dense bytes) of each tensor.
        run: each of its ranks checks its share of the files.
        once: the files are not read again soon, so the page cache need not keep them.
    """
    entries = list(sink.finished.values())
    if entries:
        own = run.ranks.share(entries, lambda entry: int(entry["size"]))
        damaged = list(_damaged(own, sink, run, once=once))
        for name in damaged:
            sink.spoil(name)
        for name in run.ranks.all_gather(damaged):
            if name in sink.finished:  # another rank has checked, and removed, the file
                sink.spoil(name)
    sink.tell_resumed()


def _damaged(
    entries: list[dict[str, Any]], sink: ResumableFolder, run: Run, *, once: bool
) -> Iterator[str]:
    """Finished files with tensors that changed since."""
    opened = [(entry, _opened(sink.work / entry["shard"])) for entry in entries]
    total = sum(checkpoint.nbytes for _, checkpoint in opened if checkpoint)
    with run.phase(f"checking earlier {sink.part}s", total) as advance:
        for entry, checkpoint in opened:
            recorded = {record["name"]: record["blake3"] for record in entry["records"]}
            if checkpoint is None or _digests(checkpoint, run, advance, once=once) != recorded:
                yield entry["shard"]


def _opened(path: Path) -> Checkpoint | None:
    try:
        return open_model(path)
    except SourceError:
        return None


def _digests(checkpoint: Checkpoint, run: Run, advance: Advance, *, once: bool) -> dict[str, Any]:
    """BLAKE3 of each tensor's dense bytes; None of one that cannot be read."""
    found = {}
    with checkpoint.open(once=once) as reader:
        for tensor, digest in run.tensors(checkpoint.tensors, partial(_digest, reader)):
            found[tensor.name] = digest
            advance(tensor.spec.nbytes, tensor.file)
    return found


def _digest(reader: TensorReader, tensor: StoredTensor, scratch: Scratch) -> str | None:
    digest = blake3()
    try:
        for _, block in scratch.blocks(reader, tensor):
            digest.update(block.data)
    except (SourceError, OSError):
        return None
    return digest.hexdigest()
