"""What is counted of a tensor before it is stored: zeros, and symbols of the other codes.

The *symbol* of a code is the top 8 bits of its magnitude: the exponent of bf16 and fp32, the
exponent and three more bits of fp16. (Of 8-bit types it is the whole code.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Counts of one tensor.

    Attributes:
        zeros: codes that are all zero bits.
        symbols: i64 [256], how often each symbol occurs among the others.
    """

    zeros: int
    symbols: NDArray[np.int64]

    @property
    def kept(self) -> int:
        return int(self.symbols.sum())
