"""A bigram model with interpolated Kneser-Ney smoothing: what the demo model must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DISCOUNTS = [step / 20 for step in range(2, 20)]


@dataclass(frozen=True)
class Bigram:
    """P(w | v) = max(c(v, w) - D, 0) / c(v) + D * n(v) / c(v) * P(w), with discount D.

    c counts pairs, n(v) is how many different tokens follow v, and P(w) is in proportion to one
    more than the number of different tokens that w follows (Kneser and Ney 1995, interpolated).
    ``counts`` is float64 of shape (vocab, vocab), rows by the first token of the pair.
    """

    counts: Tensor
    discount: float

    @classmethod
    def tuned(cls, stream: Tensor, vocab: int, calibration: list[Tensor]) -> Bigram:
        """Count the pairs of the training stream; take the discount best on ``calibration``."""
        pairs = stream[:-1] * vocab + stream[1:]
        counts = torch.bincount(pairs, minlength=vocab * vocab).view(vocab, vocab).double()
        candidates = [cls(counts, discount) for discount in DISCOUNTS]
        return min(candidates, key=lambda bigram: bigram.mean_loss(calibration))

    def mean_loss(self, windows: list[Tensor]) -> float:
        """Mean negative log-likelihood in nats of all tokens of the windows but the first ones."""
        first = torch.cat([window[:-1] for window in windows])
        second = torch.cat([window[1:] for window in windows])
        return float(-self.probability(first, second).log().mean())

    def probability(self, first: Tensor, second: Tensor) -> Tensor:
        """P(second | first), float64, for int64 tokens of one shape."""
        seen = self.counts > 0
        continuation = seen.sum(0).double() + 1
        continuation /= continuation.sum()
        total = self.counts.sum(1)[first]
        direct = (self.counts[first, second] - self.discount).clamp(min=0)
        left_over = self.discount * seen.sum(1).double()[first]
        # After a token that never stood before another, only the continuation is known.
        mixed = (direct + left_over * continuation[second]) / total.clamp(min=1)
        return torch.where(total > 0, mixed, continuation[second])
