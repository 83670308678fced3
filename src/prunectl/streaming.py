"""Work over a checkpoint's tensors in bounded memory: a few threads, one small buffer each.

Kernels, hashing and positional reads and writes release the interpreter lock, so threads use all
cores. Results come back in file order whatever thread finished first, which keeps sums of floats,
journals and progress deterministic.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import InvalidOption

Bytes = npt.NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_BYTES = 1 << 20
"""Bytes that are read, worked on, hashed and written at a time: they stay in a core's L2 cache."""

MAX_JOBS = 256

BATCH_BYTES = 4 << 20
"""Small tensors are handed to a thread together: 100,000 of them cost no 100,000 hand-overs."""


class Scratch:
    """A thread's reused buffers, and the word to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._buffers: dict[str, Bytes] = {}

    def buffer(self, nbytes: int, name: str = "main") -> Bytes:
        """A uint8 array of ``nbytes``, the same memory at each call with the same name."""
        held = self._buffers.get(name)
        if held is None or len(held) < nbytes:
            held = self._buffers[name] = np.empty(max(nbytes, BLOCK_BYTES), np.uint8)
        return held[:nbytes]

    def blocks(
        self,
        reader: TensorReader,
        tensor: StoredTensor,
        unit: int = 1,
        name: str = "main",
        part: tuple[int, int] | None = None,
    ) -> Iterator[tuple[int, Bytes]]:
        """Read a tensor block by block.

        Args:
            reader: of the checkpoint.
            tensor: which one.
            unit: elements that must not be torn apart, for example whole N:M groups.
            name: of the buffer to read into; the array is valid until the next block.
            part: first element and number of elements, in whole units; None is all of it.

        Yields:
            (byte offset in the tensor, the block's bytes), in order.
        """
        first, count = part or (0, tensor.spec.numel)
        begin, end = (at * tensor.spec.dtype.bits // 8 for at in (first, first + count))
        unit_bytes = max(1, unit * tensor.spec.dtype.bits // 8)
        size = max(BLOCK_BYTES // unit_bytes, 1) * unit_bytes
        for start in range(begin, end, size):
            if self._stop.is_set():
                raise InterruptedError("stopped")
            block = self.buffer(min(size, end - start), name)
            reader.read(tensor, start, block)
            yield start, block


def default_jobs() -> int:
    """One thread per core this process may use, eight at most."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(len(os.sched_getaffinity(0)), 8))
    return max(1, min(os.cpu_count() or 1, 8))


def batches(tensors: Iterable[StoredTensor]) -> Iterator[list[StoredTensor]]:
    """Group tensors, in order, into batches of about ``BATCH_BYTES``; large ones are alone."""
    batch: list[StoredTensor] = []
    size = 0
    for tensor in tensors:
        if batch and size + tensor.spec.nbytes > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(tensor)
        size += tensor.spec.nbytes
    if batch:
        yield batch


def run_ordered(
    items: Iterable[Item], work: Callable[[Item, Scratch], Result], jobs: int | None = None
) -> Iterator[Result]:
    """Apply ``work`` to every item in threads; yield the results in the order of the items.

    Only a few items are in flight at a time. If ``work`` or the consumer raises, the others stop at
    their next block and the error goes on to the caller.
    """
    if jobs is None:
        jobs = default_jobs()
    if not 1 <= jobs <= MAX_JOBS:
        raise InvalidOption(f"jobs: {jobs} is not 1 to {MAX_JOBS}", hint="leave it out")
    stop = threading.Event()
    local = threading.local()

    def call(item: Item) -> Result:
        scratch = getattr(local, "scratch", None)
        if scratch is None:
            scratch = local.scratch = Scratch(stop)
        return work(item, scratch)

    executor = ThreadPoolExecutor(jobs, thread_name_prefix="prunectl")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(call, item))
            if len(waiting) >= 2 * jobs + 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def run_tensors(
    tensors: Sequence[StoredTensor],
    work: Callable[[StoredTensor, Scratch], Result],
    jobs: int | None = None,
) -> Iterator[tuple[StoredTensor, Result]]:
    """``run_ordered`` over tensors, small ones in batches; yields each tensor with its result."""

    def work_batch(
        batch: list[StoredTensor], scratch: Scratch
    ) -> list[tuple[StoredTensor, Result]]:
        return [(tensor, work(tensor, scratch)) for tensor in batch]

    for done in run_ordered(batches(tensors), work_batch, jobs):
        yield from done
