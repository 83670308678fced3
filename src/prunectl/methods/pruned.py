"""What a method makes of one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned matrix.

    Attributes:
        weight: fp32 [out, in], +0.0 where pruned.
        mask: bool [out, in], True = kept. Its zeros are exactly as many as the target says; the
            weight has more only where more were zero before: a weight that was zero stays so.
        damping: the share of the mean diagonal that was added to the second moments; 0.0 if none.
        raised: how often the damping was raised tenfold before the second moments could be used.
        dead: inputs that never fired in calibration.
    """

    weight: Tensor
    mask: Tensor
    damping: float = 0.0
    raised: int = 0
    dead: int = 0
