"""One tensor as an edit leaves it, in memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.pruning.edits import Edit
from prunectl.pruning.outputs import OutputTensor
from prunectl.pruning.transform import write_tensor
from prunectl.streaming import Scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray


def edited(
    stored: StoredTensor, edit: Edit, axis: int | None, reader: TensorReader, *, prunable: bool
) -> NDArray[np.uint8]:
    """The bytes that a prune would write.

    Args:
        stored: the tensor in the source, which ``reader`` reads.
        axis: its input axis. prunable: whether NaN stops.

    Raises:
        NaNWeights, BadMaskFile: as :func:`prunectl.pruning.transform.write_tensor`.
    """
    out = np.empty(stored.spec.nbytes, np.uint8)

    def write(offset: int, data: memoryview) -> None:
        out[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    scratch = Scratch(threading.Event())
    output = OutputTensor(stored.spec, stored)
    write_tensor(output, edit, axis, reader, write, scratch, prunable=prunable)
    return out
