"""What loss counts as free; nothing is computed when this is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class EpsilonMode(StrEnum):
    """What a tolerance is a share of."""

    RELATIVE = "relative"
    """The dense model's score."""
    ABSOLUTE = "absolute"
    """1: of an accuracy, 0.01 is one point."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse than dense is still free."""

    epsilon: float = 0.01
    mode: EpsilonMode = EpsilonMode.RELATIVE

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise InvalidOption(f"--epsilon {self.epsilon} is not valid: it is above 0")
        if self.mode not in list(EpsilonMode):
            raise InvalidOption(
                f"--epsilon-mode '{self.mode}' is not known",
                hint=f"one of {', '.join(EpsilonMode)}",
            )
        object.__setattr__(self, "mode", EpsilonMode(self.mode))

    def losses(self, scores: Floats, dense: Floats | float, *, higher_is_better: bool) -> Floats:
        """How much worse scores are, in units of the mode; negative is better than dense.

        NaN where that has no meaning: of two infinite scores, or as a share of 0.
        """
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            worse = np.asarray(dense - scores if higher_is_better else scores - dense, np.float64)
            if self.mode is EpsilonMode.ABSOLUTE:
                return worse
            return np.where(np.abs(dense) > 0, worse / np.abs(dense), np.nan)

    def bound(self, dense: float, *, higher_is_better: bool) -> float:
        """The worst score that is within."""
        room = self.epsilon * (abs(dense) if self.mode is EpsilonMode.RELATIVE else 1.0)
        return dense - room if higher_is_better else dense + room

    def __str__(self) -> str:
        """``1% of the dense score``, ``0.01``."""
        if self.mode is EpsilonMode.RELATIVE:
            return f"{100 * self.epsilon:.3g}% of the dense score"
        return f"{self.epsilon:.3g}"
