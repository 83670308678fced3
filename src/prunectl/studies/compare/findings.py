"""What a comparison means, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prunectl import numbers
from prunectl.studies.compare.overlap import Overlap
from prunectl.studies.compare.result import ComparedSide, Comparison

_SURE = 4.0
"""Standard errors that masks must be above chance to be told from it."""
_APART = 1.05
"""What one must lose for each that the other loses, for the other to be called more prunable."""
_TOLERANCE = "0.01*std"


def findings(result: Comparison) -> Iterator[str]:
    """Sentences on the masks, then on which model is the more prunable one."""
    pairs = [pair for pair in result.masks if pair.sparsity is not None] or list(result.masks)
    if pairs:
        yield f"Masks {pairs[-1].at}: {_alike(pairs[-1].overlap)}"
    first, second = result.sides
    if "weights" == first.kind == second.kind:
        yield from _prunable(first, second)


def _alike(overlap: Overlap) -> str:
    jaccard, chance = overlap.jaccard, overlap.jaccard_chance_by_tensor
    if jaccard is None or chance is None:
        return "nothing is pruned in either."
    if overlap.first == overlap.second == overlap.both:
        return "they are the same."
    shared = f"of the weights that either prunes, both prune {numbers.share(jaccard)}"
    by_chance = f"chance gives {numbers.share(chance)}"
    if not above_chance(overlap):
        return f"no more alike than chance: {shared}, {by_chance}."
    return f"{shared}; {by_chance}."


def above_chance(overlap: Overlap) -> bool:
    """Whether more is pruned in both than if each tensor's zeros lay at random.

    The count in both is hypergeometric then, its variance at most that of the binomial.
    """
    spread = math.sqrt(overlap.expected) if overlap.expected > 0 else 0.0
    return overlap.both > overlap.expected + _SURE * spread


def _prunable(first: ComparedSide, second: ComparedSide) -> Iterator[str]:
    """Which model loses less, and has more weights near zero for its scale."""
    one, other = first.stats, second.stats
    if one is None or other is None:
        return
    for sparsity in list(one.norm_kept)[-1:]:
        lost = 1 - one.norm_kept[sparsity], 1 - other.norm_kept[sparsity]
        if not all(map(math.isfinite, lost)):  # squares that overflow
            continue
        told = ", ".join(
            f"{side.label} {numbers.share(part, 2)}"
            for side, part in zip((first, second), lost, strict=True)
        )
        apart = max(lost) > _APART * min(lost)
        best = first if lost[0] < lost[1] else second
        which = f"{best.label} is the more prunable one" if apart else "Both are about as prunable"
        yield f"{which}: of the squared norm, {100 * float(sparsity):.4g}% sparsity takes {told}."
    near = one.near_zero[_TOLERANCE], other.near_zero[_TOLERANCE]
    if near[0] == near[1]:
        yield f"Weights within 1% of the model's standard deviation: {near[0]:,} in both."
    elif min(near):
        more, less = (first, second) if near[0] > near[1] else (second, first)
        part = numbers.share(max(near) / min(near) - 1, 2)
        yield (
            f"Weights within 1% of the model's standard deviation: {more.label} {max(near):,}, "
            f"which is {part} more than {less.label} ({min(near):,})."
        )
