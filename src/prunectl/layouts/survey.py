"""What is counted of a tensor before it is stored: zeros, and symbols of the other codes.

The *symbol* of a code is the top 8 bits of its magnitude: the exponent of bf16 and fp32, the
exponent and three more bits of fp16. (Of 8-bit types it is the whole code.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunectl.layouts.kernels import symbols as kernels
from prunectl.layouts.parts import Codes, Run, blocks, fixed


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

    @property
    def entropy_bits(self) -> float:
        """Bits of the mask and of the symbols at least, if each weight is coded for itself."""
        kept = self.symbols[self.symbols > 0].tolist()
        total = self.zeros + self.kept
        return _entropy([self.zeros, self.kept], total) + _entropy(kept, self.kept)


def _entropy(counts: Iterable[int], total: int) -> float:
    return sum(-n * math.log2(n / total) for n in counts if n)


def survey(codes: Codes, run: Run = map) -> Survey:
    """Count a tensor's codes, any shape; u8, u16, u32 or u64."""
    flat = fixed(codes).reshape(-1)

    def count(block: tuple[int, int]) -> tuple[int, NDArray[np.int64]]:
        tables = np.zeros((4, 256), np.int64)
        return int(kernels.tally(flat[slice(*block)], tables)), tables.sum(0)

    zeros, symbols = 0, np.zeros(256, np.int64)
    for some, table in run(count, blocks(flat.size)):
        zeros, symbols = zeros + some, symbols + table
    symbols[0] -= zeros
    return Survey(zeros, symbols)
