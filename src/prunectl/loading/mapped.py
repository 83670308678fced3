"""Weights that stay in the files of a bitmask folder: mapped into memory, and never decoded.

The layout ``bitmask`` on disk and the form ``bitmask`` in memory are the same bytes where the
columns of a matrix are a multiple of the kernels' step. Processes that map one file share one copy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from prunectl.errors import BadCheckpoint
from prunectl.layouts.table import LAYOUTS
from prunectl.loading.weights import Weights
from prunectl.runtime.forms import mapped_bitmask, reason_against_kind
from prunectl.runtime.instructions import OVERREAD
from prunectl.runtime.kernels import STEP
from prunectl.runtime.matrix import TORCH_TYPES
from prunectl.runtime.selection import instructions
from prunectl.runtime.weight import CompressedWeight


class MappedFile:
    """A compressed weights file.

    Args:
        path: of the file.
        dtype: of the model; weights of other dtypes are not mapped.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self._path, self._dtype = path, dtype
        self._bytes: npt.NDArray[np.uint8] = np.memmap(path, mode="c")

    def weight(self, weights: Weights, name: str) -> CompressedWeight | None:
        """A tensor of the file as a compressed weight; None if it must be decoded.

        Only its mask is read, so damaged kept weights are not found.

        Raises:
            BadCheckpoint: the sizes of the parts do not fit the tensor.
        """
        packed = weights.packed(name)
        if packed is None or not LAYOUTS[packed.layout].is_mapped:
            return None
        shape, dtype = packed.spec.shape, packed.spec.dtype.label
        if TORCH_TYPES.get(dtype) != self._dtype or reason_against_kind(shape, self._dtype):
            return None
        if shape[1] % STEP:
            return None
        weights.check(name)
        width = packed.spec.dtype.bits // 8
        offset, count = packed.parts["values"].offset, packed.parts["values"].spec.numel
        if offset % width:
            return None
        values = self._bytes[offset : offset + count * width + OVERREAD]
        if missing := count * width + OVERREAD - values.size:  # at the end of the file
            values = np.concatenate([values, np.zeros(missing, np.uint8)])
        place = packed.parts["mask"].offset
        mask = self._bytes[place : place + shape[0] * shape[1] // 8]
        matrix = mapped_bitmask(values, mask, dtype, shape, instructions())
        if int(matrix.values.starts[-1]) != count:  # type: ignore[index]
            raise BadCheckpoint(self._path, f"tensor '{name}' changed while it was loaded")
        return CompressedWeight(matrix)
