"""The scheme of a packed tensor: its chunks, its kind of mask, its symbols."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunectl.layouts.errors import Damaged, Misfit
from prunectl.layouts.groups import MAX_SETS, Grid, sets
from prunectl.layouts.layout import (
    BLOCK,
    Extra,
    Survey,
    code_bytes,
    code_count,
    integer,
)
from prunectl.layouts.packing.alphabet import Alphabet, best_alphabet, coded_bytes
from prunectl.pattern import MAX_GROUP, NM
from prunectl.tensorspec import DType

MAX_CHUNK = 1 << 24
"""Most weights in a chunk that is read."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The parameters of a packed tensor.

    Attributes:
        width: bytes of a code.
        mask: ``none``, ``bits`` or ``nm``.
        grid: the N:M groups; without them, each weight is a group of its own.
        axis: of the groups (0 without them).
        chunk: groups in a chunk.
        alphabet: the encoding of symbols.
    """

    width: int
    mask: str
    grid: Grid
    axis: int
    chunk: int
    alphabet: Alphabet

    @property
    def chunks(self) -> int:
        return -(-self.grid.groups // self.chunk)

    @property
    def set_digits(self) -> int:
        """Set numbers in a byte; 0 if a number takes two bytes."""
        digits, count = 0, sets(self.grid)
        while count > 1 and count ** (digits + 1) <= 256:
            digits += 1
        return digits

    @property
    def mask_planes(self) -> int:
        """Number of planes of the mask: none, one, or one per byte of set numbers."""
        return {"none": 0, "bits": 1, "nm": 1 if self.set_digits else 2}[self.mask]

    @property
    def planes(self) -> int:
        """Number of planes of a chunk: mask, digits, escapes, low bytes."""
        return self.mask_planes + 2 + self.width - 1

    def extra(self) -> dict[str, Any]:
        """The parameters as JSON values."""
        result: dict[str, Any] = {"mask": self.mask, "chunk": self.chunk}
        if self.mask == "nm":
            result |= {"n": self.grid.n, "m": self.grid.m, "axis": self.axis}
        per_byte = self.alphabet.per_byte
        return result | {"per_byte": per_byte, "symbols": list(self.alphabet.symbols)}


def read_scheme(dtype: DType, shape: tuple[int, ...], extra: Extra) -> Scheme:
    """The scheme in the parameters ``extra``.

    Raises:
        Damaged: the parameters are not valid for a tensor of this dtype and shape.
    """
    mask = extra.get("mask")
    if mask not in ("none", "bits", "nm"):
        raise Damaged(f"the parameter 'mask' is {reprlib.repr(mask)}")
    try:
        width = code_bytes(dtype, "packed")
        axis, grid = 0, Grid(1, 1, 1, code_count(dtype, shape))
        if mask == "nm":
            m = integer(extra, "m", 2, MAX_GROUP)
            axis = integer(extra, "axis", 0, max(0, len(shape) - 1))
            grid = Grid.of(shape, NM(integer(extra, "n", 1, m - 1), m), axis)
            if sets(grid) > MAX_SETS:
                raise Misfit(f"{grid.n}:{grid.m} has more than {MAX_SETS} sets")
    except Misfit as error:
        raise Damaged(str(error)) from None
    chunk = integer(extra, "chunk", 8, MAX_CHUNK // grid.m)
    if chunk % 8:
        raise Damaged(f"the parameter 'chunk' is {chunk}, no multiple of 8")
    return Scheme(width, mask, grid, axis, chunk, _read_alphabet(extra))


def _read_alphabet(extra: Extra) -> Alphabet:
    per_byte = integer(extra, "per_byte", 1, 8)
    symbols = extra.get("symbols")
    if not isinstance(symbols, list) or not all(type(s) is int and 0 <= s < 256 for s in symbols):
        raise Damaged("the parameter 'symbols' is not a list of bytes")
    alphabet = Alphabet(per_byte, tuple(symbols))
    # Without symbols, every digit is the escape, including those that fill the last byte.
    if (per_byte == 1) != (not symbols) or alphabet.base**per_byte > 256:
        raise Damaged(f"{len(symbols)} symbols do not fit {per_byte} digits in a byte")
    return alphabet


def best_scheme(survey: Survey) -> tuple[Scheme, int]:
    """The scheme with fewest bytes, and their approximate number.

    Raises:
        Misfit: elements of less than a byte.
    """
    width = code_bytes(survey.dtype, "packed")
    total = survey.zeros + survey.kept
    each = Grid(1, 1, 1, total)
    tries = [("none", each)]
    if survey.zeros:
        tries.append(("bits", each))
    if survey.pattern is not None:
        try:
            grid = Grid.of(survey.shape, survey.pattern, survey.axis)
        except Misfit:
            pass
        else:
            if survey.kept <= grid.groups * grid.n and sets(grid) <= MAX_SETS:
                tries.append(("nm", grid))
    axis = survey.axis % max(1, len(survey.shape))
    found = [_scheme(width, survey, mask, grid, axis) for mask, grid in tries]
    return min(found, key=lambda pair: pair[1])


def _scheme(width: int, survey: Survey, mask: str, grid: Grid, axis: int) -> tuple[Scheme, int]:
    """The best scheme with this kind of mask, and its approximate bytes."""
    chunk = max(8, BLOCK // grid.m // 8 * 8)
    frames = -(-grid.groups // chunk)
    symbols = survey.symbols
    if mask != "bits":  # zeros stored among the values
        zeros = survey.zeros if mask == "none" else grid.groups * grid.n - survey.kept
        symbols = symbols.copy()
        symbols[0] += zeros
    alphabet, coded = best_alphabet(symbols, frames)
    scheme = Scheme(width, mask, grid, axis if mask == "nm" else 0, chunk, alphabet)
    rest = int(symbols.sum()) * (width - 1) + 4 * scheme.chunks * scheme.planes
    return scheme, round(coded + _mask_bytes(scheme, survey) + rest)


def _mask_bytes(scheme: Scheme, survey: Survey) -> float:
    """Approximate bytes of a mask with equally likely weights, or sets."""
    groups = scheme.grid.groups
    if scheme.mask == "none" or not groups:
        return 0.0
    if scheme.mask == "bits":
        zeros, kept = survey.zeros / groups, survey.kept / groups
        ones = np.bitwise_count(np.arange(256)).astype(np.float64)
        weights = zeros ** (8 - ones) * kept**ones
        return coded_bytes(weights[weights > 0], -(-groups // 8), scheme.chunks)
    count = sets(scheme.grid)
    if digits := scheme.set_digits:
        weights = np.ones(count**digits)
        return coded_bytes(weights, -(-groups // digits), scheme.chunks)
    high = np.bincount(np.arange(count) >> 8).astype(np.float64)
    return groups + coded_bytes(high, groups, scheme.chunks)
