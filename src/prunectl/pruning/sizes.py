"""What each layout would make of the tensors that were just written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunectl.analysis.sizes import mask_bits, packed_bytes, pattern_bits
from prunectl.errors import InvalidPattern
from prunectl.pattern import NM, parse_pattern
from prunectl.pruning.result import TensorOutcome
from prunectl.pruning.transform import Written
from prunectl.tensorspec import DTYPES


def predict(tensors: Sequence[TensorOutcome], written: Mapping[str, Written]) -> dict[str, int]:
    """Bytes of all tensors in each layout, headers left out; what would grow counts densely.

    Returns:
        ``dense``, ``bitmask`` and, where a tensor follows N:M, ``nm``: exact. ``packed``: about,
        from the exact counts of zeros and the exponents at the beginning of each tensor.
    """
    totals = dict.fromkeys(("dense", "bitmask", "nm", "packed"), 0)
    for tensor in tensors:
        dtype = DTYPES[tensor.dtype]
        dense = tensor.numel * dtype.bits // 8
        sizes = {"dense": dense}
        if dtype.is_float and tensor.numel:
            sizes |= _sizes(tensor, written[tensor.name])
        for layout in totals:
            totals[layout] += min(dense, sizes.get(layout, dense))
    if totals["nm"] == totals["dense"]:
        del totals["nm"]
    return totals


def _sizes(tensor: TensorOutcome, written: Written) -> dict[str, int]:
    dtype = DTYPES[tensor.dtype]
    kept = tensor.numel - tensor.zeros
    sizes = {"bitmask": -(-tensor.numel // 8) + kept * dtype.bits // 8}
    mask = mask_bits(tensor.numel, tensor.zeros)
    pattern = _groups(tensor)
    if pattern is not None:
        mask = min(mask, pattern_bits(tensor.numel, pattern))
        count = tensor.numel // pattern.m * pattern.n
        positions = count * (pattern.m - 1).bit_length()
        sizes["nm"] = count * dtype.bits // 8 + -(-positions // 8)
    sizes["packed"] = packed_bytes(mask, kept, kept * written.exponent_bits, dtype)
    return sizes


def _groups(tensor: TensorOutcome) -> NM | None:
    """The N:M that a whole tensor was pruned to, or None."""
    if tensor.pattern_rows is not None or tensor.action != "prune" or tensor.pattern is None:
        return None
    try:
        pattern = parse_pattern(tensor.pattern)
    except InvalidPattern:  # a mask's own word for what it is
        return None
    return pattern if isinstance(pattern, NM) else None
