"""Bytes: what tensors take, and what each layout would make of them. Estimates, not promises."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence

from prunectl.analysis.result import SPARSITIES, PatternSummary, SourceFacts, TensorStats
from prunectl.pattern import NM, parse_nm
from prunectl.tensorspec import DTYPES, DType

PREDICTED = (0.3, 0.4, 0.5)
"""Sparsities whose sizes are told."""

_BY_LABEL: dict[str, DType] = {dtype.label: dtype for dtype in DTYPES.values()}

CODING = 1.005
"""Bytes of a packed tensor / its order-0 entropy, about (benchmarks/export.py --sizes)."""

_STORED = {"nm": "{}, as values and positions", "bitmask": "{}, as a bitmask and values",
           "packed": "{}, packed"}  # fmt: skip


def bits_of(tensor: TensorStats) -> int:
    return {"fp64": 64, "fp32": 32, "fp16": 16, "bf16": 16}.get(tensor.dtype, 8)


def bytes_saved(tensor: TensorStats, pattern: NM) -> int:
    """Bytes saved by storing N values and N positions of ceil(log2 M) bits for each group.

    0 where that would take more: such a tensor stays dense.
    """
    groups = tensor.numel // pattern.m
    bits = bits_of(tensor)
    position_bits = (pattern.m - 1).bit_length()
    return max(0, groups * (pattern.m * bits - pattern.n * (bits + position_bits)) // 8)


def predicted_bytes(
    source: SourceFacts, tensors: Sequence[TensorStats], patterns: Iterable[PatternSummary]
) -> dict[str, int]:
    """Bytes of all tensors: dense, and what each layout would make of them after pruning.

    By how they are stored: ``dense`` (zeros like any weight), ``packed`` (nothing pruned),
    ``bitmask@SPARSITY`` (a bit for each weight, and the values that are left), ``nm@N:M`` (values
    and positions), ``packed@SPARSITY`` and ``packed@N:M`` (entropy coded; the others are exact).
    """
    prunable = [t for t in tensors if t.prunable]
    result = {"dense": source.tensor_bytes, "packed": _packed(source, tensors, None)}
    for sparsity in PREDICTED:
        row = min(range(len(SPARSITIES)), key=lambda i: abs(SPARSITIES[i] - sparsity))
        if not prunable:
            break
        saved = 0
        for tensor in prunable:
            zeros = round(tensor.sparsity[row] * tensor.numel)
            saved += max(0, (zeros * bits_of(tensor) - tensor.numel) // 8)
        result[f"bitmask@{sparsity}"] = source.tensor_bytes - saved
        result[f"packed@{sparsity}"] = _packed(source, tensors, row)
    for pattern in patterns:
        result[f"nm@{pattern.pattern}"] = pattern.bytes_packed
        result[f"packed@{pattern.pattern}"] = _packed(source, tensors, parse_nm(pattern.pattern))
    return result


def stored_as(id_: str) -> str:
    """Words for a key of ``predicted_bytes``: ``dense``, ``packed``, ``bitmask@0.4``, ``nm@2:4``.

    A key that is not known is given back as it is.
    """
    if id_ == "dense":
        return "dense (zeros stored like any weight)"
    if id_ == "packed":
        return "packed, nothing pruned"
    layout, _, detail = id_.partition("@")
    with contextlib.suppress(ValueError, KeyError):
        words = _STORED[layout]
        return words.format(detail if ":" in detail else f"{float(detail):.0%} unstructured")
    return id_


def _packed(source: SourceFacts, tensors: Sequence[TensorStats], change: int | NM | None) -> int:
    """Bytes of all tensors packed: as they are, at a row of the threshold table, or in N:M."""
    saved = 0
    for tensor in tensors:
        dtype = _BY_LABEL.get(tensor.dtype)
        if not tensor.measured or not tensor.numel or dtype is None:
            continue
        saved += max(0, tensor.numel * dtype.bits // 8 - _packed_tensor(tensor, dtype, change))
    return source.tensor_bytes - saved


def _packed_tensor(tensor: TensorStats, dtype: DType, change: int | NM | None) -> int:
    octaves = sorted(tensor.octaves.items())
    zeros, mask = tensor.zeros, mask_bits(tensor.numel, tensor.zeros)
    kept = [float(count) for _, count in octaves]
    if tensor.prunable and isinstance(change, NM):
        fit = tensor.patterns.get(str(change))
        if fit is not None and not fit.reason:
            kept = in_groups(kept, zeros, change)
            mask = pattern_bits(tensor.numel, change)
    elif tensor.prunable and isinstance(change, int):
        zeros = round(tensor.sparsity[change] * tensor.numel)
        kept = largest(kept, tensor.numel - zeros)
        mask = mask_bits(tensor.numel, zeros)
    return packed_bytes(mask, sum(kept), entropy(kept), dtype)


def packed_bytes(mask_bits: float, kept: float, exponent_bits: float, dtype: DType) -> int:
    """About the bytes of a packed tensor: its order-0 entropy, and what coding adds.

    Args:
        mask_bits: that say which weights are kept.
        kept: how many are.
        exponent_bits: the entropy of all their exponents together.
        dtype: whose mantissas and signs are stored as they are.
    """
    return round((mask_bits + exponent_bits + kept * (1 + dtype.mantissa_bits)) / 8 * CODING)


def entropy(counts: Sequence[float]) -> float:
    """Bits that as many symbols take, coded one by one."""
    total = sum(counts)
    return -sum(n * math.log2(n / total) for n in counts if n > 0)


def pattern_bits(numel: int, pattern: NM) -> float:
    """Bits that say which N of every M weights are kept."""
    return numel / pattern.m * math.log2(math.comb(pattern.m, pattern.n))


def mask_bits(numel: int, zeros: int) -> float:
    """Entropy of a mask whose bits are independent."""
    return -sum(n * math.log2(n / numel) for n in (zeros, numel - zeros) if 0 < n < numel)


def largest(counts: Sequence[float], kept: float) -> list[float]:
    """What is left of counts by magnitude, smallest first, if only the largest ``kept`` stay."""
    left = []
    for count in reversed(counts):
        stays = min(count, max(0.0, kept))
        left.append(stays)
        kept -= stays
    return left[::-1]


def in_groups(counts: Sequence[float], zeros: int, pattern: NM) -> list[float]:
    """What N:M leaves of counts by magnitude, smallest first, if weights lie in no order.

    A weight of quantile u stays if fewer than N of the other M - 1 are larger:
    sum over j < N of binom(M-1, j) (1-u)^j u^(M-1-j).
    """
    total = sum(counts) + zeros
    left, below = [], float(zeros)
    for count in counts:
        points = [(below + count * part / 8) / total for part in (1, 3, 5, 7)] if total else []
        left.append(count * sum(_stays(u, pattern) for u in points) / 4 if points else 0.0)
        below += count
    return left


def _stays(u: float, pattern: NM) -> float:
    others = pattern.m - 1
    return sum(math.comb(others, j) * (1 - u) ** j * u ** (others - j) for j in range(pattern.n))
