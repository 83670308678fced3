"""Magnitude work on a CUDA device, in torch: the same bits as on the CPU.

Codes are signed integers here, since torch supports few operations on unsigned ones; without the
sign bit the two are the same numbers. The functions are those of :mod:`prunectl.magnitude.masks`,
on tensors. All of it is integer arithmetic, whose results do not depend on device or order. Sums of
floats do (coarse histograms of 32 and 64 bits, losses by N:M), and stay with the CPU's kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from prunectl.device import is_out_of_memory
from prunectl.magnitude.codes import CodeFormat, Codes
from prunectl.pattern import pruned_count

Result = TypeVar("Result")


class OnDevice:
    """Takes blocks of codes to a device and back, for any number of threads.

    Each thread has a stream of its own, so that copies of one overlap with the work of others. A
    block for which the device has no memory is processed by the CPU.

    Args:
        device: CUDA; torch's CPU does the same, slowly.

    Attributes:
        was_full: whether the device lacked memory for a block. was_used: whether it got any block.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.was_full, self.was_used = device, False, False
        self._own = threading.local()

    def buffer(self, nbytes: int) -> NDArray[np.uint8]:
        """Pinned host memory if possible, which the device copies from and to by itself."""
        if self.device.type == "cuda":
            try:
                with torch.cuda.device(self.device):  # or the first device would be used too
                    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        return np.empty(nbytes, np.uint8)

    def run(self, codes: Codes, work: Callable[[Any], Result], *, back: bool = False) -> Result:
        """Apply ``work`` to a block.

        Args:
            codes: u8/u16/u32/u64[n], contiguous, writable.
            work: takes the block as a tensor on the device, u8 or signed; or ``codes`` if
                the device lacks memory. It must change nothing but the block.
            back: whether ``work`` edits the block, which is then copied back.
        """
        self.was_used = True
        kind = "u1" if codes.itemsize == 1 else f"i{codes.itemsize}"
        host = torch.from_numpy(codes.view(kind))
        try:
            with self._on_stream():
                there = torch.empty_like(host, device=self.device)
                there.copy_(host, non_blocking=True)
                found = work(there)
                if back:
                    host.copy_(there, non_blocking=True)
            return found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.was_full = True
        return work(codes)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Work inside uses the calling thread's stream, and is finished at the end."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device):
            if not hasattr(self._own, "stream"):
                self._own.stream = torch.cuda.Stream()
            with torch.cuda.stream(self._own.stream):
                yield
            self._own.stream.synchronize()


def _magnitudes(codes: torch.Tensor) -> torch.Tensor:
    """Codes without the sign: at least 0, ordered as the magnitudes."""
    # 8-bit codes are always unsigned, so their largest number includes the sign bit.
    return codes & (0x7F if codes.dtype == torch.uint8 else torch.iinfo(codes.dtype).max)


def tally(codes: torch.Tensor) -> NDArray[np.int64]:
    """How often each signed code occurs in u8[n] or i16[n]: i64[2**bits]."""
    if codes.dtype == torch.uint8:
        counts = torch.bincount(codes, minlength=1 << 8)
    else:
        counts = torch.bincount(codes.int().bitwise_and_(0xFFFF), minlength=1 << 16)
    return counts.cpu().numpy()


def count_zeros(codes: torch.Tensor) -> int:
    """As :func:`masks.count_zeros`, of any shape."""
    return int((_magnitudes(codes) == 0).sum())


def odd_codes(codes: torch.Tensor, format: CodeFormat) -> tuple[int, int]:
    """As :func:`masks.odd_codes`: how many are (NaN, Inf)."""
    magnitudes = _magnitudes(codes)
    odd = int((magnitudes >= format.inf_code).sum())
    nans = int((magnitudes >= format.nan_code).sum()) if odd else 0
    return nans, odd - nans


def cut(codes: torch.Tensor, code: int, quota: int) -> tuple[int, int]:
    """As :func:`masks.cut`: zero what is below ``code`` and the first ``quota`` equal to it."""
    magnitudes = _magnitudes(codes)
    ties = magnitudes == code
    present = int(ties.sum())
    used = min(quota, present)
    if 0 < used < present:  # indices come in order
        codes.index_fill_(0, ties.nonzero().flatten()[:used], 0)
    codes.masked_fill_(magnitudes <= code if used == present else magnitudes < code, 0)
    return count_zeros(codes), used


def cut_rows(codes: torch.Tensor, sparsity: float) -> int:
    """As :func:`masks.cut_rows`: each row of [outer, axis, inner] (along the axis) on its own.

    The k-th smallest of every row comes from bisection on its bits, as in the CPU's kernels.
    """
    magnitudes = _magnitudes(codes)
    k = pruned_count(sparsity, codes.shape[1])
    enough = (magnitudes == 0).sum(1, keepdim=True) >= k
    code = torch.zeros_like(magnitudes[:, :1])
    below = torch.zeros_like(code, dtype=torch.int64)
    for bit in reversed(range(8 * codes.itemsize - 1)):
        trial = code | 1 << bit
        less = (magnitudes < trial).sum(1, keepdim=True)
        reached = less < k
        code, below = torch.where(reached, trial, code), torch.where(reached, less, below)
    ties = magnitudes == code
    ties &= ties.cumsum(1, dtype=torch.int32) <= k - below
    codes.masked_fill_((ties | (magnitudes < code)) & ~enough, 0)
    return count_zeros(codes)


def nm(codes: torch.Tensor, n: int, m: int) -> int:
    """As :func:`masks.nm`: keep the n largest of every m along the axis of [outer, axis, inner].

    A weight goes if at least n others of its group beat it; of equals the lower index wins.

    Raises:
        ValueError: the axis is not a multiple of m.
    """
    if codes.shape[1] % m:
        raise ValueError(f"an axis of {codes.shape[1]} is not a multiple of {m}")
    groups = codes.unflatten(1, (-1, m))
    magnitudes = _magnitudes(groups)
    beaten = torch.zeros_like(magnitudes, dtype=torch.uint8)
    for i in range(m):
        other = magnitudes[:, :, i : i + 1]
        beaten[:, :, :i] += other > magnitudes[:, :, :i]
        beaten[:, :, i + 1 :] += other >= magnitudes[:, :, i + 1 :]
    groups.masked_fill_(beaten >= n, 0)
    return count_zeros(codes)
