"""Work over a checkpoint's tensors in bounded memory: a few threads, one small buffer each.

Kernels, hashing and positional reads and writes release the interpreter lock, so threads use all
cores. Results come back in file order whichever thread finished first, which keeps sums of floats,
journals and progress deterministic.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.device import usable_cores
from prunectl.magnitude.codes import Codes

if TYPE_CHECKING:
    from prunectl.magnitude.on_device import OnDevice

Bytes = npt.NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_BYTES = 1 << 20
"""Bytes that are read, processed, hashed and written at a time: they stay in a core's L2 cache."""

LARGE_BYTES = 32 << 20
"""The same for a device: small blocks would leave the bus idle."""

BATCH_BYTES = 4 << 20
"""Small tensors are passed to threads in batches: 100,000 single hand-overs would be slow."""


class Scratch:
    """A thread's reused buffers, the device for large tensors, and the flag to stop."""

    def __init__(self, stop: threading.Event, device: OnDevice | None = None) -> None:
        self._stop, self._device = stop, device
        self._buffers: dict[str, Bytes] = {}
        self._large: Bytes | None = None

    def buffer(self, nbytes: int, name: str = "main") -> Bytes:
        """A uint8 array of ``nbytes``, in the same memory for the same name."""
        held = self._buffers.get(name)
        if held is None or len(held) < nbytes:
            held = self._buffers[name] = np.empty(max(nbytes, BLOCK_BYTES), np.uint8)
        return held[:nbytes]

    def _large_buffer(self, nbytes: int) -> Bytes:
        """The buffer that a device copies from, made once because pinning memory is slow."""
        if self._large is None or len(self._large) < nbytes:
            size = max(nbytes, LARGE_BYTES)
            self._large = self._device.buffer(size) if self._device else np.empty(size, np.uint8)
        return self._large[:nbytes]

    def device_for(self, tensor: StoredTensor) -> OnDevice | None:
        """The device, if there is one and the tensor is worth the transfer; None is the CPU."""
        return self._device if tensor.spec.nbytes > BLOCK_BYTES else None

    def blocks(
        self,
        reader: TensorReader,
        tensor: StoredTensor,
        unit: int = 1,
        name: str = "main",
        part: tuple[int, int] | None = None,
        *,
        large: bool = False,
    ) -> Iterator[tuple[int, Bytes]]:
        """Read a tensor block by block.

        Args:
            reader: of the checkpoint.
            tensor: the tensor to read.
            unit: elements that stay in one block, for example a whole N:M group.
            name: of the buffer to read into, unless ``large``; the array is valid until the next
                block.
            part: first element and number of elements, in whole units; None is all of it.
            large: use blocks for a device, which :func:`pieces` cuts into those for the CPU.

        Yields:
            (byte offset in the tensor, the block's bytes), in order.
        """
        first, count = part or (0, tensor.spec.numel)
        begin, end = (at * tensor.spec.dtype.bits // 8 for at in (first, first + count))
        size = _block_size(max(1, unit * tensor.spec.dtype.bits // 8))
        if large:
            size *= max(1, LARGE_BYTES // size)
        for start in range(begin, end, size):
            if self._stop.is_set():
                raise InterruptedError("stopped")
            count = min(size, end - start)
            block = self._large_buffer(count) if large else self.buffer(count, name)
            reader.read(tensor, start, block)
            yield start, block


def _block_size(unit_bytes: int) -> int:
    """Bytes of a block of whole units."""
    return max(BLOCK_BYTES // unit_bytes, 1) * unit_bytes


def pieces(codes: Codes, unit: int) -> Iterator[Codes]:
    """Cut a large block [n] of whole units into the blocks of a read without a device.

    Sums of floats depend on where blocks begin.
    """
    size = _block_size(unit * codes.itemsize) // codes.itemsize
    return (codes[start : start + size] for start in range(0, codes.size, size))


def default_jobs() -> int:
    """One thread per core this process may use, eight at most."""
    return min(usable_cores(), 8)


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
    items: Iterable[Item],
    work: Callable[[Item, Scratch], Result],
    jobs: int,
    device: OnDevice | None = None,
) -> Iterator[Result]:
    """Apply ``work`` to every item in threads; yield the results in the order of the items.

    Only a few items are in flight at a time. If ``work`` or the consumer raises, the others stop at
    their next block, and the caller gets the error.
    """
    stop = threading.Event()
    local = threading.local()

    def call(item: Item) -> Result:
        scratch = getattr(local, "scratch", None)
        if scratch is None:
            scratch = local.scratch = Scratch(stop, device)
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
