"""Read weight bytes into the caller's buffers, by positional reads from several threads at once."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.direct import DirectFiles
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint

Bytes = npt.NDArray[np.uint8]
Elements = npt.NDArray[np.void]

TILE_BYTES = 8 << 20
"""Bytes of a non-contiguous view that are gathered at once; a multiple of every element size."""

_WINDOW_BYTES = 4 << 20
"""Bytes of a mapped file that are in memory at once."""


class TensorReader(Protocol):
    """Reads a checkpoint's tensors; several threads may read at once."""

    def read(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's row-major bytes from byte ``start`` on."""

    def check(self, tensor: StoredTensor) -> None:
        """Raise BadCheckpoint if the stored bytes cannot be a tensor of this size."""

    def close(self) -> None:
        """Close all files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class WeightReader:
    """Read parts of tensors as raw little-endian bytes, in row-major order.

    Memory: one file descriptor per weights file, and 8 MiB per thread that reads non-contiguous
    views.

    Args:
        once: nothing is read again soon, so the page cache need not keep it.
    """

    def __init__(self, folder: Path, *, once: bool = False) -> None:
        self._folder = folder
        self._direct = DirectFiles() if once else None
        self._descriptors: dict[str, int] = {}
        self._held = threading.local()

    def read(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Args:
            start: position in the tensor's row-major bytes; a multiple of the element size.
            out: contiguous uint8 array, filled completely.

        Raises:
            BadCheckpoint: the file ended early, since it changed after its header was read.
        """
        if tensor.strides is not None:
            self._read_view(tensor, start, out)
            return
        view, position = out.data, tensor.offset + start
        fd, done = self._descriptor(tensor.file), 0
        if self._direct is not None:
            done = self._direct.read(self._folder / tensor.file, fd, position, out)
        while done < len(view):
            got = os.preadv(fd, [view[done:]], position + done)
            if got == 0:
                raise BadCheckpoint(self._folder / tensor.file, "truncated while it was read")
            done += got

    def check(self, tensor: StoredTensor) -> None:
        """Nothing to check: the header was compared with the file's size on opening."""

    def _read_view(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Read from a non-contiguous view (a transposed tensor in a pickle)."""
        done = 0
        while done < len(out):
            number, skip = divmod(start + done, TILE_BYTES)
            part = self._tile(tensor, number)[skip : skip + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def _tile(self, tensor: StoredTensor, number: int) -> Bytes:
        """The tensor's row-major bytes from ``number * TILE_BYTES`` on, at most ``TILE_BYTES``.

        A row of a view may touch every page of its storage, so many rows are gathered at once. Each
        thread keeps its last tile for the next block.
        """
        held: tuple[StoredTensor, int, Bytes] | None = getattr(self._held, "tile", None)
        if held is not None and held[:2] == (tensor, number):
            return held[2]
        itemsize = tensor.spec.dtype.bits // 8
        first = number * TILE_BYTES // itemsize
        last = min(first + TILE_BYTES // itemsize, tensor.spec.numel)
        tile = np.empty(last - first, f"V{itemsize}")
        view, mapped = self._map_view(tensor)
        _gather(view, first, tile, lambda: mapped.madvise(mmap.MADV_DONTNEED))
        found: Bytes = tile.view(np.uint8)
        self._held.tile = (tensor, number, found)
        return found

    def _map_view(self, tensor: StoredTensor) -> tuple[Elements, mmap.mmap]:
        """The whole view, mapped into memory; only the pages that are accessed are read."""
        assert tensor.strides is not None
        itemsize = tensor.spec.dtype.bits // 8
        span = 1 + sum(
            (length - 1) * stride
            for length, stride in zip(tensor.spec.shape, tensor.strides, strict=True)
        )
        end = tensor.offset + span * itemsize
        descriptor = self._descriptor(tensor.file)
        if os.fstat(descriptor).st_size < end:
            raise BadCheckpoint(self._folder / tensor.file, "truncated while it was read")
        mapped = mmap.mmap(descriptor, end, access=mmap.ACCESS_READ)
        view = np.lib.stride_tricks.as_strided(
            np.frombuffer(mapped, f"V{itemsize}", span, tensor.offset),
            tensor.spec.shape,
            [stride * itemsize for stride in tensor.strides],
            writeable=False,
        )
        return view, mapped

    def _descriptor(self, file: str) -> int:
        found = self._descriptors.get(file)
        if found is None:
            try:
                opened = os.open(self._folder / file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise BadCheckpoint(
                    self._folder / file, f"cannot be opened: {error.strerror}"
                ) from None
            # two threads may open the same file; one descriptor wins, the other is closed
            found = self._descriptors.setdefault(file, opened)
            if found != opened:
                os.close(opened)
        return found

    def close(self) -> None:
        """Close the files and free the gathered tiles."""
        self._held = threading.local()
        if self._direct is not None:
            self._direct.close()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _gather(view: Elements, first: int, out: Elements, release: Callable[[], None]) -> None:
    """Copy elements ``first .. first + len(out)`` of a view, in row-major order.

    ``release`` is called after each window of the mapped file.
    """
    if view.ndim < 2:
        _copy(out, view.reshape(-1)[first : first + len(out)], release)
        return
    row = view[0].size
    done = 0
    while done < len(out):
        index, skip = divmod(first + done, row)
        rows = 0 if skip else (len(out) - done) // row
        if rows:
            whole = view[index : index + rows]
            _copy(out[done : done + rows * row].reshape(whole.shape), whole, release)
            done += rows * row
        else:
            length = min(row - skip, len(out) - done)
            _gather(view[index], skip, out[done : done + length], release)
            done += length


def _copy(out: Elements, view: Elements, release: Callable[[], None]) -> None:
    """Copy an array in parts that are each close together in memory."""
    reach = [(n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)]
    axis = reach.index(max(reach))
    if sum(reach) <= _WINDOW_BYTES:
        out[...] = view
        release()
        return
    length = max(_WINDOW_BYTES // view.strides[axis], 1)
    before = (slice(None),) * axis
    for start in range(0, view.shape[axis], length):
        part = (*before, slice(start, start + length))
        _copy(out[part], view[part], release)
