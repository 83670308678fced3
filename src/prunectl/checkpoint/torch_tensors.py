"""A stored tensor as a torch tensor on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    import torch

_BLOCK = 4 << 20
"""Bytes read at a time."""

TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""torch's names of types, by those of safetensors."""


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """The torch dtype of a stored tensor.

    Raises:
        BadCheckpoint: torch has no such dtype.
    """
    import torch

    name = TORCH_NAMES.get(spec.dtype.name)
    dtype = getattr(torch, name, None) if name else None
    if not isinstance(dtype, torch.dtype):
        raise BadCheckpoint(
            spec.name, f"torch has no type for {spec.dtype.label}", hint="read it with safetensors"
        )
    return dtype


def read_tensor(reader: TensorReader, tensor: StoredTensor) -> torch.Tensor:
    """The whole tensor on the CPU, bit for bit.

    Raises:
        BadCheckpoint: the file ends early, or torch has no such type or no memory for it.
    """
    flat = read_elements(reader, tensor, 0, tensor.spec.numel, Path(tensor.file))
    return flat.reshape(tensor.spec.shape)


class Unread:
    """A tensor that is read when transformers accesses it."""

    def __init__(self, reader: TensorReader, tensor: StoredTensor) -> None:
        self._reader, self._tensor = reader, tensor

    def __getitem__(self, index: object) -> torch.Tensor:
        return read_tensor(self._reader, self._tensor)


def read_elements(
    reader: TensorReader,
    tensor: StoredTensor,
    first: int,
    last: int,
    path: Path,
    seen: Callable[[memoryview], object] | None = None,
) -> torch.Tensor:
    """Elements ``first`` to ``last`` of a tensor in row-major order, [last - first], on the CPU.

    Args:
        seen: receives the bytes, block by block.

    Raises:
        BadCheckpoint: the file ends early, or torch has no such type or no memory for it.
    """
    import torch

    reader.check(tensor)  # before memory is allocated for the size in a header
    bits = tensor.spec.dtype.bits
    begin, end = first * bits // 8, last * bits // 8
    try:
        data = torch.empty(end - begin, dtype=torch.uint8)
    except RuntimeError:  # torch raises RuntimeError if memory runs out
        raise BadCheckpoint(
            path, f"tensor '{tensor.name}' of {end - begin:,} bytes does not fit in memory"
        ) from None
    out = data.numpy()
    for start in range(0, end - begin, _BLOCK):
        block = out[start : start + _BLOCK]
        reader.read(tensor, begin + start, block)
        if seen is not None:
            seen(block.data)
    return data.view(torch_dtype(tensor.spec))
