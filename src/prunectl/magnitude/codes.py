"""Codes: a float's raw bits as an unsigned integer.

A *magnitude code* is a code without its sign bit. Magnitudes are ordered as these integers (in
IEEE 754 binary formats and their 8-bit relatives), so comparing codes compares magnitudes exactly.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunectl.tensorspec import DTYPES, DType

Codes = NDArray[Any]
"""An array of u8, u16, u32 or u64."""


@dataclass(frozen=True)
class CodeFormat:
    """The meaning of the codes of one dtype.

    Attributes:
        dtype: the element type.
        uint: numpy dtype of a code.
        bits: bits of a code.
        mask: all bits but the sign.
        inf_code: first magnitude code that is not finite. Codes from here up to, not including,
            ``nan_code`` are Inf: one code; none in e4m3fn, which has no Inf (there both are equal).
        nan_code: smallest magnitude code that is NaN; all above are NaN too.
    """

    dtype: DType
    uint: np.dtype[Any]
    bits: int
    mask: int
    inf_code: int
    nan_code: int

    def values(self, codes: Codes) -> NDArray[np.float64]:
        """The exact signed values of ``codes``, same shape; NaN stays NaN."""
        with np.errstate(invalid="ignore"):
            match self.dtype.name:
                case "F64":
                    floats: NDArray[Any] = codes.astype(np.uint64).view(np.float64)
                case "F32":
                    floats = codes.astype(np.uint32).view(np.float32)
                case "F16":
                    floats = codes.astype(np.uint16).view(np.float16)
                case "BF16":
                    floats = (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
                case "F8_E5M2":
                    floats = (codes.astype(np.uint16) << np.uint16(8)).view(np.float16)
                case _:
                    floats = _e4m3_values()[codes.astype(np.uint8)]
            return floats.astype(np.float64)

    def value(self, code: int) -> float:
        """The exact value of one code."""
        return float(self.values(np.array([code], self.uint))[0])

    def floor_code(self, value: float) -> int:
        """The largest magnitude code whose value is <= ``value``.

        Raises:
            ValueError: a negative value or NaN.
        """
        if math.isnan(value) or value < 0:
            raise ValueError(f"a magnitude is at least 0, not {value}")
        if self.dtype.name == "F8_E4M3":
            numbers = _e4m3_values()[: self.nan_code]
            return int(np.searchsorted(numbers, value, side="right")) - 1
        # A narrower type is the top bits of a wider one, so cutting them off rounds down.
        kind, cut = _CONTAINERS[self.dtype.name]
        with np.errstate(over="ignore", under="ignore"):
            near: np.floating[Any] = kind(value)
        code = int(near.view(f"u{near.itemsize}")) & (1 << (8 * near.itemsize - 1)) - 1
        return (code - int(float(near) > value)) >> cut


_CONTAINERS: dict[str, tuple[type[np.floating], int]] = {
    "F64": (np.float64, 0),
    "F32": (np.float32, 0),
    "F16": (np.float16, 0),
    "BF16": (np.float32, 16),
    "F8_E5M2": (np.float16, 8),
}
"""numpy's type that holds a format, and the number of its additional mantissa bits."""


@functools.cache
def _e4m3_values() -> NDArray[np.float64]:
    """All 256 values of e4m3fn (bias 7, no Inf, NaN 0x7f), arXiv 2209.05433."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp((8 + mantissa) / 8.0, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), normal)
    values[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes >= 128, -values, values)


@functools.cache
def code_format(dtype: DType) -> CodeFormat:
    """The code format of a float dtype.

    Raises:
        ValueError: not one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2.
    """
    if not dtype.is_float:
        raise ValueError(f"{dtype.label} has no magnitude codes")
    mask = (1 << (dtype.bits - 1)) - 1
    exponents = mask >> dtype.mantissa_bits << dtype.mantissa_bits
    inf_code, nan_code = (mask, mask) if dtype.name == "F8_E4M3" else (exponents, exponents + 1)
    return CodeFormat(dtype, np.dtype(f"u{dtype.bits // 8}"), dtype.bits, mask, inf_code, nan_code)


def common_format(formats: set[CodeFormat]) -> CodeFormat:
    """A format that holds all of ``formats`` exactly: a single one itself, else fp32 or fp64.

    Raises:
        ValueError: no formats.
    """
    if not formats:
        raise ValueError("no formats")
    if len(formats) == 1:
        return next(iter(formats))
    wide = any(f.bits == 64 for f in formats)
    return code_format(DTYPES["F64" if wide else "F32"])


def widen(codes: Codes, source: CodeFormat, target: CodeFormat) -> Codes:
    """Magnitude codes (no NaN) of ``source`` as those of ``target`` with exactly the same values.

    Raises:
        ValueError: ``target`` is neither ``source``, nor fp32 for a narrower one, nor fp64.
    """
    if target == source:
        return codes.astype(target.uint)
    if target.dtype.name not in ("F32", "F64") or target.bits <= source.bits:
        raise ValueError(f"{source.dtype.label} codes are not widened to {target.dtype.label}")
    floats = source.values(codes).astype(f"f{target.bits // 8}")
    return floats.view(target.uint)
