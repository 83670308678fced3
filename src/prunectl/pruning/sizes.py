"""What each layout would make of the tensors that were just written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunectl.errors import InvalidPattern
from prunectl.layouts.layout import Statistics
from prunectl.layouts.table import DENSE, LAYOUTS
from prunectl.pattern import NM, parse_pattern
from prunectl.pruning.result import TensorOutcome
from prunectl.tensorspec import DTYPES
from prunectl.transform.writing import Written


def predict(tensors: Sequence[TensorOutcome], written: Mapping[str, Written]) -> dict[str, int]:
    """Bytes of all tensors in each layout, headers left out; what would grow counts densely.

    Exact where the layout's prediction is: zeros are counted, exponents looked at in the beginning
    of each tensor. Layouts that need an N:M pattern are left out where no tensor gains by one.
    """
    totals = dict.fromkeys(LAYOUTS, 0)
    for tensor in tensors:
        dtype = DTYPES[tensor.dtype]
        dense = tensor.numel * dtype.bits // 8
        kept = tensor.numel - tensor.zeros
        for name, layout in LAYOUTS.items():
            size = dense
            if dtype.is_float and tensor.numel:
                exponents = kept * written[tensor.name].exponent_bits
                facts = Statistics(dtype, tensor.numel, kept, exponents, _groups(tensor))
                size = min(dense, layout.predicted(facts))
            totals[name] += size
    return {
        name: total
        for name, total in totals.items()
        if total < totals[DENSE] or not LAYOUTS[name].needs_groups
    }


def _groups(tensor: TensorOutcome) -> NM | None:
    """The N:M that a whole tensor was pruned to, or None."""
    if tensor.pattern_rows is not None or tensor.action != "prune" or tensor.pattern is None:
        return None
    try:
        pattern = parse_pattern(tensor.pattern)
    except InvalidPattern:  # a mask's own word for what it is
        return None
    return pattern if isinstance(pattern, NM) else None
