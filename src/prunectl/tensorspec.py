"""Facts about a tensor from a file's header: name, dtype, shape, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, with its safetensors name.

    Attributes:
        name: the safetensors name, for example ``BF16``.
        label: the usual spelling, for example ``bf16``.
        bits: bits per element.
        is_float: whether it is one of the sign/exponent/mantissa types that have magnitudes.
        mantissa_bits: explicit mantissa bits (0 for other types).
    """

    name: str
    label: str
    bits: int
    is_float: bool = False
    mantissa_bits: int = 0

    @property
    def is_prunable(self) -> bool:
        """Whether weights of this type can be pruned (fp8 can be analyzed only)."""
        return self.is_float and self.bits >= 16


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("F64", "fp64", 64, True, 52),
        DType("F32", "fp32", 32, True, 23),
        DType("F16", "fp16", 16, True, 10),
        DType("BF16", "bf16", 16, True, 7),
        DType("F8_E4M3", "fp8-e4m3", 8, True, 3),
        DType("F8_E5M2", "fp8-e5m2", 8, True, 2),
        DType("F8_E4M3FNUZ", "fp8-e4m3fnuz", 8),
        DType("F8_E5M2FNUZ", "fp8-e5m2fnuz", 8),
        DType("F8_E8M0", "fp8-e8m0", 8),
        DType("F6_E2M3", "fp6-e2m3", 6),
        DType("F6_E3M2", "fp6-e3m2", 6),
        DType("F4", "fp4", 4),
        DType("C64", "complex64", 64),
        DType("I64", "int64", 64),
        DType("I32", "int32", 32),
        DType("I16", "int16", 16),
        DType("I8", "int8", 8),
        DType("U64", "uint64", 64),
        DType("U32", "uint32", 32),
        DType("U16", "uint16", 16),
        DType("U8", "uint8", 8),
        DType("BOOL", "bool", 8),
    )
}


MAX_NAME_BYTES = 1024
MAX_NAME_PARTS = 64
"""Far above any real model's names; without a limit, the prefixes of one name could fill memory."""


def name_fault(name: str) -> str:
    """Why a tensor cannot have this name in a safetensors file, or here; '' if it can."""
    try:
        # do not encode a name of megabytes
        is_long = len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if is_long:
        return f"is over {MAX_NAME_BYTES:,} bytes"
    if name.count(".") >= MAX_NAME_PARTS:
        return f"has over {MAX_NAME_PARTS} dotted parts"
    return "is reserved by safetensors" if name == "__metadata__" else ""


BY_LABEL = {dtype.label: dtype for dtype in DTYPES.values()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as declared in a file's header, without its weights."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.bits // 8
