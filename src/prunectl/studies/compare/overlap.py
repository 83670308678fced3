"""How alike two masks are, and how alike chance would make them.

Masks that keep the shares c and d of the weights at random already have the cosine sqrt(c*d), 0.9
where both prune 10%: what is above chance is what two models agree on. Where some tensors are
pruned more than others in both, masks are alike for that alone; *chance by tensor* lays each
tensor's zeros at random, and asks only which of its weights go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two masks over the same weights. Those of several tensors add up with ``+``.

    Attributes:
        weights: how many. first, second: how many are pruned in each mask; both: in both.
        expected: how many would be pruned in both if each tensor's zeros lay at random.
    """

    weights: int = 0
    first: int = 0
    second: int = 0
    both: int = 0
    expected: float = 0.0

    @classmethod
    def of_tensor(cls, weights: int, first: int, second: int, both: int) -> Overlap:
        """Of one tensor, whose counts say what chance would give."""
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
        """The cosine if all zeros lay at random: sqrt of the product of the densities."""
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

        None where chance alone makes them equal.
        """
        agreed = self.weights - self.first - self.second + 2 * self.both
        by_chance = self.weights - self.first - self.second + 2 * self.expected
        room = self.weights - by_chance
        return (agreed - by_chance) / room if room > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Counts and measures."""
        return {
            "weights": self.weights,
            "pruned": [self.first, self.second],
            "pruned_in_both": self.both,
            "cosine": self.cosine,
            "cosine_chance": self.cosine_chance,
            "cosine_chance_by_tensor": self.cosine_chance_by_tensor,
            "jaccard": self.jaccard,
            "jaccard_chance": self.jaccard_chance,
            "jaccard_chance_by_tensor": self.jaccard_chance_by_tensor,
            "kappa": self.kappa,
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
