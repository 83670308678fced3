"""Alphabets: how symbols are packed into bytes, with digits for a tensor's common symbols.

zstd codes bytes with a Huffman code, in whole bits per byte. A tensor's exponents carry some 1.5 to
2.6 bits each, for which whole bits are wasteful; several exponents in a byte waste only as much
together as one alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunectl.layouts.kernels import symbols as kernels
from prunectl.layouts.packing.planes import WORTH
from prunectl.layouts.parts import Bytes, fixed

PER_BYTE = (1, 2, 3, 4, 5, 8)
"""Digits per byte that are tried, of base 256, 16, 6, 4, 3, 2 at most."""

FRAME = 12
"""Approximate bytes of a zstd frame and block around their content, without the Huffman table."""

ZSTD_BLOCK = 1 << 17
"""Bytes that share a Huffman table."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """An encoding of symbols (0..255) in bytes.

    Attributes:
        per_byte: digits in a byte. If 1, the digit is the symbol itself.
        symbols: otherwise, the symbols of digits 0, 1, ..; the next digit is the escape.
    """

    per_byte: int
    symbols: tuple[int, ...] = ()

    @property
    def escape(self) -> int:
        return len(self.symbols)

    @property
    def base(self) -> int:
        return len(self.symbols) + 1

    def digit_of(self) -> Bytes:
        """u8 [256]: the digit of each symbol."""
        table = np.full(256, self.escape, np.uint8)
        table[list(self.symbols)] = np.arange(len(self.symbols))
        return fixed(table)

    def symbol_table(self) -> Bytes:
        """u8 [256, per_byte]: the symbols of each byte, lowest digit first; 0 for escapes."""
        symbols = np.zeros(256, np.uint8)
        symbols[: self.escape] = self.symbols
        return fixed(symbols[digit_table(self.base, self.per_byte)])


@functools.lru_cache(64)
def digit_table(base: int, per_byte: int) -> Bytes:
    """u8 [256, per_byte]: the digits of each byte, lowest first."""
    powers = base ** np.arange(per_byte)
    return fixed((np.arange(256)[:, None] // powers % base).astype(np.uint8))


def coded_bytes(weights: NDArray[np.float64], size: int, frames: int) -> float:
    """Approximate stored bytes of a plane of ``size`` bytes in ``frames`` frames.

    Args:
        weights: relative frequencies of the byte values that occur, in any order.
        size: bytes of the plane.
        frames: number of parts of the plane.
    """
    if not size:
        return 0.0
    if weights.size < 2:
        return min(float(size), float(frames * (FRAME + 3)))
    bits = float(kernels.huffman_bits(fixed(np.sort(weights)))) / float(weights.sum())
    tables = max(frames, size / ZSTD_BLOCK) * (5 + weights.size * 0.35)
    coded = size * bits / 8 + tables + frames * FRAME
    return coded if coded < size - size / WORTH else float(size)


def best_alphabet(counts: NDArray[np.int64], frames: int) -> tuple[Alphabet, float]:
    """The alphabet with fewest bytes, and their number, including escapes.

    Args:
        counts: [256], of each symbol.
        frames: number of planes of the symbols.
    """
    total = int(counts.sum())
    order = np.argsort(-counts, kind="stable")
    ranked = counts[order]
    used = int(np.count_nonzero(counts))
    best = Alphabet(1), coded_bytes(ranked[:used].astype(np.float64), total, frames)
    for per_byte in PER_BYTE[1:]:
        common = min(int(256 ** (1 / per_byte) + 1e-9) - 1, used)
        escaped = int(ranked[common:].sum())
        digits = np.append(ranked[:common], escaped).astype(np.float64)
        digits = digits[digits > 0] / max(total, 1)
        packed = functools.reduce(np.multiply.outer, [digits] * per_byte).reshape(-1)
        cost = coded_bytes(packed, -(-total // per_byte), frames) + escaped
        if cost < best[1]:
            best = Alphabet(per_byte, tuple(int(s) for s in order[:common])), cost
    return best
