"""Weight bytes into the caller's buffers: positional reads that several threads may do at once."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint

Bytes = npt.NDArray[np.uint8]


class WeightReader:
    """Reads parts of tensors as raw little-endian bytes, in row-major order.

    No memory is kept per tensor or file besides one file descriptor per weights file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: dict[str, int] = {}

    def read(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Args:
            tensor: which tensor.
            start: position in the tensor's row-major bytes; a multiple of the element size.
            out: contiguous uint8 array, written whole.

        Raises:
            BadCheckpoint: the file ended early: it changed since its header was read.
        """
        if tensor.strides is not None:
            self._gather(tensor, start, out)
            return
        view = out.data
        done = 0
        while done < len(view):
            got = os.preadv(
                self._descriptor(tensor.file), [view[done:]], tensor.offset + start + done
            )
            if got == 0:
                raise BadCheckpoint(self._folder / tensor.file, "truncated while it was read")
            done += got

    def _gather(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Read from a view that is not contiguous (a transposed tensor in a pickle)."""
        assert tensor.strides is not None
        itemsize = tensor.spec.dtype.bits // 8
        kind: Any = np.dtype(f"V{itemsize}")
        span = 1 + sum(
            (length - 1) * stride
            for length, stride in zip(tensor.spec.shape, tensor.strides, strict=True)
        )
        end = tensor.offset + span * itemsize
        if os.fstat(self._descriptor(tensor.file)).st_size < end:
            raise BadCheckpoint(self._folder / tensor.file, "truncated while it was read")
        mapped = np.memmap(self._folder / tensor.file, dtype=np.uint8, mode="r")
        flat = mapped[tensor.offset : end].view(kind)
        whole = np.lib.stride_tricks.as_strided(
            flat,
            tensor.spec.shape,
            [stride * itemsize for stride in tensor.strides],
            writeable=False,
        )
        first = start // itemsize
        out[:] = whole.flat[first : first + len(out) // itemsize].view(np.uint8)

    def _descriptor(self, file: str) -> int:
        found = self._descriptors.get(file)
        if found is None:
            try:
                opened = os.open(self._folder / file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise BadCheckpoint(
                    self._folder / file, f"cannot be opened: {error.strerror}"
                ) from None
            # Two threads may open the same file; one descriptor wins, the other is closed.
            found = self._descriptors.setdefault(file, opened)
            if found != opened:
                os.close(opened)
        return found

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
