"""Pruning in place on codes: thresholds, rows, N:M. And checking what was pruned.

A pruned weight becomes code 0, which is +0.0. Every other weight keeps its bits, also -0.0,
subnormals and Inf. Zeros are recognized by their magnitude, so -0.0 is a zero. The caller must rule
out NaN. Functions that prune take u16, u32 or u64 arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import numpy as np

from prunectl.magnitude.codes import CodeFormat, Codes
from prunectl.magnitude.columns import ColumnCutter
from prunectl.magnitude.kernels import counting, cutting, grouping
from prunectl.pattern import pruned_count

if TYPE_CHECKING:
    import torch

AnyCodes = TypeVar("AnyCodes", Codes, "torch.Tensor")
"""Codes: an array of unsigned integers, or a tensor of signed integers on a device."""

_Taken = TypeVar("_Taken", contravariant=True)


class Kernels(Protocol[_Taken]):
    """The functions of this module and of its counterpart in torch."""

    def count_zeros(self, codes: _Taken, /) -> int: ...
    def odd_codes(self, codes: _Taken, format: CodeFormat, /) -> tuple[int, int]: ...
    def cut(self, codes: _Taken, code: int, quota: int, /) -> tuple[int, int]: ...
    def cut_rows(self, codes: _Taken, sparsity: float, /) -> int: ...
    def nm(self, codes: _Taken, n: int, m: int, /) -> int: ...


@overload
def kernels_for(codes: Codes) -> Kernels[Codes]: ...
@overload
def kernels_for(codes: torch.Tensor) -> Kernels[torch.Tensor]: ...
def kernels_for(codes: Codes | torch.Tensor) -> Kernels[Codes] | Kernels[torch.Tensor]:
    """The module whose functions work on ``codes``: this one, or its counterpart in torch."""
    if isinstance(codes, np.ndarray):
        from prunectl.magnitude import masks

        return masks
    from prunectl.magnitude import on_device

    return on_device


def _mask(codes: Codes) -> Any:
    """All bits but the sign, as a scalar of the codes' type."""
    bits = 8 * codes.dtype.itemsize
    if codes.dtype.kind != "u" or bits < 16:
        raise ValueError(f"codes are u16, u32 or u64, not {codes.dtype}")
    return codes.dtype.type((1 << (bits - 1)) - 1)


def count_zeros(codes: Codes) -> int:
    """Count the zeros of either sign in ``codes`` [n], contiguous; also u8."""
    if codes.dtype == np.uint8:
        return int(codes.size - np.count_nonzero(codes & np.uint8(0x7F)))
    return int(cutting.count_less(codes, _mask(codes), codes.dtype.type(1)))


def odd_codes(codes: Codes, format: CodeFormat) -> tuple[int, int]:
    """Count (NaN, Inf) in ``codes`` [n], contiguous; u16, u32 or u64."""
    mask, kind = _mask(codes), format.uint.type
    odd = codes.size - int(cutting.count_less(codes, mask, kind(format.inf_code)))
    if not odd:  # nearly always, and known after one pass
        return 0, 0
    nans = codes.size - int(cutting.count_less(codes, mask, kind(format.nan_code)))
    return nans, odd - nans


def cut(codes: Codes, code: int, quota: int) -> tuple[int, int]:
    """Zero all magnitudes below ``code``, and the first ``quota`` of those equal to it.

    Args:
        codes: [n], contiguous, changed in place.
        code: magnitude code of the threshold.
        quota: ties that may go; ``quota - ties_used`` remain after this block.

    Returns:
        (zeros_after, ties_used).
    """
    mask = _mask(codes)
    zeros, used = cutting.cut(codes, mask, codes.dtype.type(code), np.int64(quota))
    return int(zeros), int(used)


def cut_rows(codes: Codes, sparsity: float) -> int:
    """Prune each row of [outer, axis, inner] (along the axis) on its own, in place.

    Each row gets exactly :func:`pruned_count` zeros; zeros that it already has count first, and a
    row with more stays unchanged. Of equal magnitudes the lower index goes first.

    Returns:
        zeros after.
    """
    mask, bits = _mask(codes), 8 * codes.dtype.itemsize
    outer, axis, inner = codes.shape
    k = pruned_count(sparsity, axis)
    if inner == 1 and codes.flags.c_contiguous:
        return int(cutting.cut_rows(codes.reshape(outer, axis), mask, k, bits))
    zeros = 0
    for matrix in codes:
        cutter = ColumnCutter(partial(iter, [matrix]), inner, codes.dtype, k)
        cutter.apply(matrix)
        zeros += cutter.zeros
    return zeros


def nm(codes: Codes, n: int, m: int) -> int:
    """Keep the n largest of every m consecutive along the axis of [outer, axis, inner], in place.

    Of equal magnitudes the lower index is kept.

    Returns:
        zeros after.

    Raises:
        ValueError: the axis is not a multiple of m.
    """
    mask = _grouped(codes, m)
    if codes.shape[2] == 1 and codes.flags.c_contiguous:
        return int(grouping.nm_flat(m)(codes.reshape(-1), mask, codes.dtype.type(n)))
    return int(grouping.nm_strided(m)(codes, mask, codes.dtype.type(n)))


def kept_bits(codes: Codes) -> Codes:
    """One bit a weight: 0 where it is +0.0, 1 elsewhere (-0.0 too).

    Args:
        codes: [n], contiguous.

    Returns:
        u8 [ceil(n / 8)]; weight i is bit i % 8 of byte i // 8, and bits beyond n are 0.
    """
    return np.packbits(codes != 0, bitorder="little")


def keep(codes: Codes, bits: Codes) -> int:
    """Zero every weight whose bit is 0, in place; the others keep their bits.

    Args:
        codes: [n], contiguous.
        bits: u8 [ceil(n / 8)], as of :func:`kept_bits`.

    Returns:
        zeros after.
    """
    # Integers: 1 * code is the code, whatever float it stands for.
    np.multiply(codes, np.unpackbits(bits, count=codes.size, bitorder="little"), out=codes)
    return count_zeros(codes)


def nm_violations(codes: Codes, n: int, m: int) -> int:
    """Count the groups of m along the axis of [outer, axis, inner] with more than n nonzeros.

    Raises:
        ValueError: the axis is not a multiple of m.
    """
    mask = _grouped(codes, m)
    if codes.shape[2] == 1 and codes.flags.c_contiguous:
        return int(grouping.violations_flat(m)(codes.reshape(-1), mask, codes.dtype.type(n)))
    return int(grouping.violations_strided(codes, mask, n, m))


def _grouped(codes: Codes, m: int) -> Any:
    if codes.shape[1] % m:
        raise ValueError(f"an axis of {codes.shape[1]} is not a multiple of {m}")
    return _mask(codes)


@dataclass(frozen=True)
class Comparison:
    """A pruned block compared with its source; blocks of one tensor add up with ``+``.

    Attributes:
        zeros: zeros of the output, of both signs.
        changed: positions where the output is neither the source's bits nor +0.0.
        pruned: positions where the output is +0.0 and the source is not.
        largest_pruned: the largest source magnitude code among the pruned; None if none.
        smallest_kept: the smallest nonzero magnitude code that kept its bits; None if none.
    """

    zeros: int = 0
    changed: int = 0
    pruned: int = 0
    largest_pruned: int | None = None
    smallest_kept: int | None = None

    def __add__(self, other: Comparison) -> Comparison:
        large = [c for c in (self.largest_pruned, other.largest_pruned) if c is not None]
        small = [c for c in (self.smallest_kept, other.smallest_kept) if c is not None]
        return Comparison(
            self.zeros + other.zeros,
            self.changed + other.changed,
            self.pruned + other.pruned,
            max(large, default=None),
            min(small, default=None),
        )


def compare(source: Codes, output: Codes) -> Comparison:
    """Compare two blocks of codes, [n] each, contiguous.

    Raises:
        ValueError: they differ in type or length.
    """
    if source.dtype != output.dtype or source.shape != output.shape:
        raise ValueError("source and output differ in type or length")
    mask = _mask(source)
    zeros, changed, pruned, largest, smallest = counting.compare(source, output, mask)
    return Comparison(
        int(zeros),
        int(changed),
        int(pruned),
        int(largest) - 1 if largest else None,
        int(smallest) + 1 if smallest <= mask else None,
    )
