"""Bytes: what tensors take, and what storing only the survivors would take."""

from __future__ import annotations

from collections.abc import Iterable

from prunectl.analysis.result import SPARSITIES, PatternSummary, SourceFacts, TensorStats
from prunectl.pattern import NM


def bits_of(tensor: TensorStats) -> int:
    return {"fp64": 64, "fp32": 32, "fp16": 16, "bf16": 16}.get(tensor.dtype, 8)


def bytes_saved(tensor: TensorStats, pattern: NM) -> int:
    """Bytes saved by storing N values and N positions of ceil(log2 M) bits for each group."""
    groups = tensor.numel // pattern.m
    bits = bits_of(tensor)
    position_bits = (pattern.m - 1).bit_length()
    return groups * (pattern.m * bits - pattern.n * (bits + position_bits)) // 8


def predicted_bytes(
    source: SourceFacts, tensors: Iterable[TensorStats], patterns: Iterable[PatternSummary]
) -> dict[str, int]:
    """Bytes of all tensors: dense, and what storing only the survivors would take.

    By how they are stored: ``dense`` (zeros like any weight), ``bitmask@SPARSITY`` (a bit for each
    weight, and the values that are left), ``nm@N:M`` (values and positions).
    """
    prunable = [t for t in tensors if t.prunable]
    result = {"dense": source.tensor_bytes}
    for sparsity in (0.3, 0.4, 0.5):
        row = min(range(len(SPARSITIES)), key=lambda i: abs(SPARSITIES[i] - sparsity))
        if not prunable:
            break
        saved = 0
        for tensor in prunable:
            zeros = round(tensor.sparsity[row] * tensor.numel)
            saved += max(0, (zeros * bits_of(tensor) - tensor.numel) // 8)
        result[f"bitmask@{sparsity}"] = source.tensor_bytes - saved
    for pattern in patterns:
        result[f"nm@{pattern.pattern}"] = pattern.bytes_packed
    return result
