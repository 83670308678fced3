"""Measurements cached between runs, so that ``prune`` after ``analyze`` does not read twice.

The key is the exact source. Deleting or damaging the cache costs only time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

import blake3

from prunectl._version import __version__
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.magnitude.measure import PatternStats, TensorFacts
from prunectl.magnitude.store import HistogramStore
from prunectl.measure.measured import Measured
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.userdirs import cache_dir, write_cache_file

_MAGIC = b"prunectl measurements 1\n"
_LIMIT = 2**31


@contextmanager
def measured_of(
    checkpoint: Checkpoint,
    *,
    use_cache: bool,
    ranks: Ranks = ALONE,
    given: Measured | None = None,
) -> Iterator[Measured]:
    """A checkpoint's cached measurements, for a ``with`` block that adds to them.

    Args:
        use_cache: start from what earlier runs measured, and store what the block adds unless it
            fails.
        ranks: the processes that run the same block; all use rank 0's cache.
        given: start from this instead; the caller closes it.

    Raises:
        FileChanged: the files changed meanwhile; nothing is stored.
    """
    cached = load_measured(checkpoint, ranks) if use_cache and given is None else None
    measured = given or cached or Measured()
    try:
        yield measured
        checkpoint.check_unchanged()
        if use_cache and measured.dirty and ranks.is_first:
            store_measured(checkpoint, measured)
    finally:
        if measured is not given:
            measured.close()


def load_measured(checkpoint: Checkpoint, ranks: Ranks = ALONE) -> Measured | None:
    """What earlier runs measured of this checkpoint; None if nothing usable.

    All ranks use rank 0's cache. If one rank cannot copy it, for example because its disk is full,
    none uses it: they must agree on what is still to be measured.
    """
    name = _name(checkpoint)
    file = ranks.file_of_first(_opened(name) if ranks.is_first else None)
    if file is None:
        return None
    with file:
        try:
            found = _read(file, checkpoint, name)
        except (OSError, ValueError, MemoryError):  # a damaged size may be 2 GiB
            found = None
    by_rank = list(ranks.all_gather([found is not None]))
    if found is not None and not all(by_rank):
        found.close()
        return None
    return found


def _opened(name: str) -> BinaryIO | None:
    try:
        return (cache_dir() / name).open("rb")
    except OSError:
        return None


def store_measured(checkpoint: Checkpoint, measured: Measured) -> None:
    """Store measurements and clear ``dirty``. Does nothing where the cache folder cannot be
    written.
    """
    name = _name(checkpoint)
    if write_cache_file(name, lambda file: _write(file, measured, name)):
        measured.dirty = False


def _name(checkpoint: Checkpoint) -> str:
    roles = checkpoint.roles.roles  # the input axis of N:M losses depends on these
    facts = {
        "version": __version__,
        "source": checkpoint.identity(),
        "tensors": [
            [t.name, t.spec.dtype.name, t.spec.shape, t.offset, roles[t.name].input_axis]
            for t in checkpoint.tensors
        ],
    }
    return f"measured-{blake3.blake3(json.dumps(facts).encode()).hexdigest(length=16)}.bin"


def _write(file: BinaryIO, measured: Measured, name: str) -> None:
    facts = {
        name: (
            one.numel, one.zeros, one.nans, one.infs,
            one.minimum, one.maximum, one.sum, one.norm_squared,
        )
        for name, one in measured.facts.items()
    }  # fmt: skip
    patterns = [
        (name, pattern, stats.lost_energy, stats.zeros_after, stats.groups)
        for (name, pattern), stats in measured.patterns.items()
    ]
    record = {"name": name, "facts": facts, "patterns": patterns}
    body = json.dumps(record).encode()
    file.write(_MAGIC + len(body).to_bytes(8, "little") + blake3.blake3(body).digest() + body)
    measured.histograms.dump(file)


def _read(file: IO[bytes], checkpoint: Checkpoint, name: str) -> Measured:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not a measurement file")
    size = int.from_bytes(file.read(8), "little")
    digest = file.read(32)
    body = file.read(min(size, _LIMIT))
    if blake3.blake3(body).digest() != digest:
        raise ValueError("damaged measurement file")
    record: Any = json.loads(body)  # whole, as the digest shows
    if record["name"] != name:
        raise ValueError("a measurement file under another name")
    facts = {str(name): TensorFacts(*values) for name, values in record["facts"].items()}
    patterns = {
        (str(name), str(pattern)): PatternStats(*stats)
        for name, pattern, *stats in record["patterns"]
    }
    histograms = HistogramStore.load(file)
    numel = {tensor.name: tensor.spec.numel for tensor in checkpoint.tensors}
    fits = facts.keys() == set(histograms.names) and all(
        numel.get(name) == one.numel for name, one in facts.items()
    )
    if not fits:
        histograms.close()
        raise ValueError("measurements of another checkpoint")
    return Measured(facts, histograms, patterns)
