"""Masks that magnitudes or a file of masks leave, for survivors to be fitted to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from prunectl.checkpoint.reader import TensorReader
from prunectl.pruning.edited import edited
from prunectl.pruning.edits import Copy, Edit
from prunectl.pruning.job import Job
from prunectl.pruning.targets import TensorTarget


def masks_of(job: Job, edits: Mapping[str, Edit], reader: TensorReader) -> dict[str, TensorTarget]:
    """What magnitudes, or a file of masks, leave of each tensor: a mask to fit the survivors to."""
    return {
        name: _ByEdit(job, name, edit, reader)
        for name, edit in edits.items()
        if not isinstance(edit, Copy)
    }


class _ByEdit:
    """The mask that an edit gives, found when it is asked for: one tensor is in memory."""

    def __init__(self, job: Job, name: str, edit: Edit, reader: TensorReader) -> None:
        self._job, self._name, self._edit, self._reader = job, name, edit, reader

    def mask(self) -> torch.Tensor:
        """bool, of the tensor's shape."""
        stored = self._job.checkpoint.by_name[self._name]
        planned = self._job.planned[self._name]
        out = edited(
            stored, self._edit, planned.input_axis, self._reader, prunable=planned.mask is None
        )
        uint = np.dtype(f"u{stored.spec.dtype.bits // 8}")
        magnitudes = out.view(uint) & uint.type((1 << (8 * uint.itemsize - 1)) - 1)
        return torch.from_numpy(magnitudes != 0).reshape(stored.spec.shape)
