"""A few exact numbers about all weights of a model, for comparing models.

Models differ in scale, and a near-zero count at one tolerance depends more on the scale than on the
shape of the distribution. Tolerances are therefore also taken relative to each tensor's standard
deviation, and to that of all weights together, as if the model were normalised ("The Emergence of
Essential Sparsity in Large Pre-trained Models", arXiv 2306.03805, compares normalised models; it
does not say how).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import NaNWeights
from prunectl.magnitude.select import quantile_rank
from prunectl.measure.measured import (
    Measured,
    measure_missing,
    refine,
    refuse_nans,
    unresolved_bins,
)
from prunectl.measure.thresholds import NEAR_ZERO, QUANTILES, find_thresholds, shares, tolerances
from prunectl.parallel.run import Run
from prunectl.pattern import NM, pruned_count

OF_STD = (0.001, 0.01, 0.1)
"""Tolerances relative to the standard deviation of all weights together."""


class NaNInModel(NaNWeights):
    """A prunable tensor of a model holds NaN; the message names the model."""

    def __init__(self, model: str, tensor: str, count: int) -> None:
        super().__init__(tensor, count)
        self.args = (f"{model}: {self.message}",)
        self.model, self.message = model, self.args[0]


@dataclass(frozen=True, slots=True)
class ModelStats:
    """Statistics of several tensors taken together. Counts are exact.

    Attributes:
        weights, zeros: counts.
        infs: among the weights; not part of std and norms.
        std, largest: population standard deviation of all weights together; the largest |w|.
        near_zero: tolerance -> weights with |w| <= tolerance, zeros included. ``0.001`` is
            absolute, ``0.01*own std`` relative to each tensor's, ``0.01*std`` to all weights'.
        quantiles: q -> the ceil(q*n)-th smallest |w| of all.
        norm_kept: sparsity -> share of the squared norm that global magnitude pruning leaves.
        patterns: N:M -> that share if every tensor that fits takes the pattern.
    """

    weights: int
    zeros: int
    infs: int
    std: float
    largest: float
    near_zero: dict[str, int]
    quantiles: dict[str, float]
    norm_kept: dict[str, float]
    patterns: dict[str, float]


def model_stats(
    checkpoint: Checkpoint,
    measured: Measured,
    names: Sequence[str],
    run: Run,
    *,
    sparsities: Sequence[float] = (),
    patterns: Sequence[NM] = (),
) -> ModelStats:
    """Statistics of these tensors; measures what ``measured`` lacks.

    Args:
        names: prunable tensors, in file order; at least one weight.
        sparsities: for ``norm_kept``. patterns: for ``patterns``.

    Raises:
        NaNInModel: a tensor holds NaN.
    """
    measure_missing(checkpoint, measured, run, names=names, patterns=patterns, pattern_names=names)
    try:
        refuse_nans(measured, names)
    except NaNWeights as error:
        raise NaNInModel(checkpoint.model, error.tensor, error.count) from None
    facts = [measured.facts[name] for name in names]
    weights = sum(one.numel for one in facts)
    finite = sum(one.finite for one in facts)
    norm = sum(one.norm_squared for one in facts)  # may overflow to inf, where math.fsum raises
    mean = sum(one.sum for one in facts) / finite if finite else 0.0
    std = math.sqrt(max(0.0, norm / finite - mean * mean)) if finite else 0.0
    ranks = [quantile_rank(q, weights) for q in QUANTILES]
    thresholds = find_thresholds(
        checkpoint,
        measured,
        names,
        [*ranks, *(pruned_count(sparsity, weights) for sparsity in sparsities)],
        run,
        with_statistics=False,
    )
    values = [
        threshold.selected.value for threshold in thresholds if threshold.selected is not None
    ]
    lost = [0.0] * len(thresholds)
    for _, found in shares(measured, names, thresholds):
        for at, share in enumerate(found):
            lost[at] += share.lost
    return ModelStats(
        weights=weights,
        zeros=sum(one.zeros for one in facts),
        infs=sum(one.infs for one in facts),
        std=std,
        largest=max((max(abs(one.minimum), abs(one.maximum)) for one in facts), default=0.0),
        near_zero=_near_zero(checkpoint, measured, names, std, run),
        quantiles={f"{q:g}": value for q, value in zip(QUANTILES, values, strict=False)},
        norm_kept={
            f"{sparsity:g}": 1 - part / norm if norm else 1.0
            for sparsity, part in zip(sparsities, lost[len(ranks) :], strict=True)
        },
        patterns={str(one): _pattern_kept(measured, names, one, norm) for one in patterns},
    )


def _near_zero(
    checkpoint: Checkpoint,
    measured: Measured,
    names: Sequence[str],
    std: float,
    run: Run,
) -> dict[str, int]:
    """How many weights lie within each tolerance, over all tensors."""
    same = {f"{value:g}": value for value in NEAR_ZERO}
    same |= {f"{part:g}*std": part * std for part in OF_STD}
    limits = {
        name: same | {"0.01*own std": tolerances(measured, name)["0.01*std"]} for name in names
    }
    _refine(checkpoint, measured, limits, run)
    counts = dict.fromkeys([*same, "0.01*own std"], 0)
    for name, own in limits.items():
        histogram = measured.histograms.get(name)
        for label, value in own.items():
            counts[label] += histogram.count_below(histogram.format.floor_code(value) + 1)
    return counts


def _refine(
    checkpoint: Checkpoint,
    measured: Measured,
    limits: Mapping[str, Mapping[str, float]],
    run: Run,
) -> None:
    """Subdivide the bins that limits fall into, until they are single magnitudes."""
    left = list(limits)
    while True:
        needs = {}
        for name in left:
            histogram = measured.histograms.get(name)
            if spans := unresolved_bins(histogram, (), limits[name].values()):
                needs[name] = spans
        if not needs:
            return
        for _ in refine(checkpoint, needs, measured, run):
            pass
        left = list(needs)


def _pattern_kept(measured: Measured, names: Sequence[str], pattern: NM, norm: float) -> float:
    """Share of the squared norm that stays; tensors that do not fit lose nothing."""
    lost = 0.0
    for name in names:
        if (found := measured.patterns.get((name, str(pattern)))) is not None:
            lost += found.lost_energy
    return 1 - lost / norm if norm else 1.0
