"""What a comparison found: how alike two masks are, in numbers and in sentences.

Two random masks that keep the shares c and d of the weights already have the cosine sqrt(c*d): 0.9
where both prune 10%. Only what exceeds chance is agreement between two models. Where some tensors
are pruned more than others in both models, masks are alike for that reason alone; *chance by
tensor* therefore places the zeros of each tensor at random, and asks only which of its weights go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prunectl import numbers
from prunectl._version import __version__
from prunectl.measure.model_stats import ModelStats
from prunectl.to_json import to_json

_MEASURES = (
    "cosine", "cosine_chance", "cosine_chance_by_tensor",
    "jaccard", "jaccard_chance", "jaccard_chance_by_tensor", "kappa",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two masks over the same weights. Overlaps of several tensors add up with ``+``.

    Attributes:
        weights: their number. first, second: weights pruned in each mask. both: in both.
        expected: weights that would be pruned in both if each tensor's zeros lay at random.
    """

    weights: int = 0
    first: int = 0
    second: int = 0
    both: int = 0
    expected: float = 0.0

    @classmethod
    def of_tensor(cls, weights: int, first: int, second: int, both: int) -> Overlap:
        """The overlap of one tensor; chance follows from its counts."""
        return cls(weights, first, second, both, first * second / weights if weights else 0.0)

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.weights + other.weights,
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.expected + other.expected,
        )

    @property
    def cosine(self) -> float | None:
        """Cosine of the masks, 1 = kept; None where one keeps nothing."""
        return self._cosine(self.both)

    @property
    def cosine_chance(self) -> float | None:
        """The cosine if all zeros lay at random: sqrt of the product of the kept shares."""
        return self._cosine(self._uniform)

    @property
    def cosine_chance_by_tensor(self) -> float | None:
        """The cosine if each tensor's zeros lay at random."""
        return self._cosine(self.expected)

    @property
    def jaccard(self) -> float | None:
        """Pruned in both over pruned in either (Jaccard, 1912); None where nothing is pruned."""
        return self._jaccard(self.both)

    @property
    def jaccard_chance(self) -> float | None:
        """The Jaccard index if all zeros lay at random."""
        return self._jaccard(self._uniform)

    @property
    def jaccard_chance_by_tensor(self) -> float | None:
        """The Jaccard index if each tensor's zeros lay at random."""
        return self._jaccard(self.expected)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (1960) against chance by tensor: 0 is chance, 1 is the same mask.

        None where chance alone makes the masks equal.
        """
        agreed = self.weights - self.first - self.second + 2 * self.both
        by_chance = self.weights - self.first - self.second + 2 * self.expected
        room = self.weights - by_chance
        return (agreed - by_chance) / room if room > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Counts and measures, as documents hold them."""
        return {
            "weights": self.weights,
            "pruned": [self.first, self.second],
            "pruned_in_both": self.both,
            **{name: getattr(self, name) for name in _MEASURES},
        }

    @property
    def _uniform(self) -> float:
        return self.first * self.second / self.weights if self.weights else 0.0

    def _cosine(self, both: float) -> float | None:
        kept = (self.weights - self.first) * (self.weights - self.second)
        shared = self.weights - self.first - self.second + both
        return shared / math.sqrt(kept) if kept else None

    def _jaccard(self, both: float) -> float | None:
        either = self.first + self.second - both
        return both / either if either else None


SCHEMA = "prunectl.comparison/1"
AS_THEY_ARE = "as they are"
"""The target where both operands have masks of their own."""


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One of the two operands.

    Attributes:
        model: as given. label: its name in tables.
        kind: ``weights`` (masks are made of its magnitudes), ``zeros`` (it is already pruned: its
            zeros are the mask) or ``masks`` (a file of masks).
        revision: commit, if it came from the Hub.
        stats: of the compared weights; None for a file of masks.
        unmatched: prunable tensors without a twin in the other model, and the reason for each.
    """

    model: str
    label: str
    kind: str
    revision: str | None
    stats: ModelStats | None
    unmatched: dict[str, str]


@dataclass(frozen=True, slots=True)
class MaskPair:
    """The masks of both operands at one target.

    Attributes:
        target: ``40%``, ``2:4``, or ``as they are`` where both operands have their own.
        sparsity: asked for; None where a pattern or the operands decide.
        overlap: over all compared weights.
        components, layers: by component (``self_attn.q_proj``) and by 'stack.layer'.
    """

    target: str
    sparsity: float | None
    overlap: Overlap
    components: dict[str, Overlap]
    layers: dict[str, Overlap]

    @property
    def at(self) -> str:
        """``at 40%``, or ``as they are``."""
        return self.target if self.target == AS_THEY_ARE else f"at {self.target}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole result of ``prunectl compare``.

    Attributes:
        first, second: the operands. tensors, weights: how many are compared.
        renamed: twins whose names differ.
        masks: one pair for each target. findings: what they mean, in sentences.
        command: as given. seconds: of the whole comparison.
    """

    first: ComparedModel
    second: ComparedModel
    tensors: int
    weights: int
    renamed: tuple[tuple[str, str], ...]
    masks: tuple[MaskPair, ...]
    findings: tuple[str, ...]
    command: str
    seconds: float

    @property
    def models(self) -> tuple[ComparedModel, ComparedModel]:
        return self.first, self.second

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json`` and of ``-o``."""
        return {
            "schema": SCHEMA,
            "prunectl": __version__,
            "command": self.command,
            "seconds": self.seconds,
            "models": [to_json(model) for model in self.models],
            "compared": {"tensors": self.tensors, "weights": self.weights},
            "renamed": to_json(self.renamed),
            "masks": [_pair(pair) for pair in self.masks],
            "findings": list(self.findings),
        }


def _pair(pair: MaskPair) -> dict[str, Any]:
    return {
        "target": pair.target,
        "sparsity": pair.sparsity,
        **pair.overlap.to_json(),
        "components": {name: one.to_json() for name, one in pair.components.items()},
        "layers": {name: one.to_json() for name, one in pair.layers.items()},
    }


_SURE = 4.0
"""Standard errors by which masks must exceed chance to count as alike."""
_APART = 1.05
"""Ratio of the losses from which one model is called more prunable than the other."""
_TOLERANCE = "0.01*std"


def findings(result: Comparison) -> Iterator[str]:
    """Sentences on the masks, then on which model is more prunable."""
    pairs = [pair for pair in result.masks if pair.sparsity is not None] or list(result.masks)
    if pairs:
        yield f"Masks {pairs[-1].at}: {_alike(pairs[-1].overlap)}"
    first, second = result.models
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

    With random zeros this count is hypergeometric; its variance is at most that of the binomial.
    """
    spread = math.sqrt(overlap.expected) if overlap.expected > 0 else 0.0
    return overlap.both > overlap.expected + _SURE * spread


def _prunable(first: ComparedModel, second: ComparedModel) -> Iterator[str]:
    """Which model loses less, and has more weights near zero for its scale."""
    one, other = first.stats, second.stats
    if one is None or other is None:
        return
    for sparsity in list(one.norm_kept)[-1:]:
        lost = 1 - one.norm_kept[sparsity], 1 - other.norm_kept[sparsity]
        if not all(map(math.isfinite, lost)):  # the squares overflow
            continue
        losses = ", ".join(
            f"{model.label} {numbers.share(part, 2)}"
            for model, part in zip((first, second), lost, strict=True)
        )
        apart = max(lost) > _APART * min(lost)
        best = first if lost[0] < lost[1] else second
        which = f"{best.label} is the more prunable one" if apart else "Both are about as prunable"
        yield f"{which}: of the squared norm, {100 * float(sparsity):.4g}% sparsity takes {losses}."
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
