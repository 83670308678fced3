"""Where a calibration is run, and in which type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.device import choose_device
from prunectl.errors import InvalidOption
from prunectl.plan.settings import Calibration

if TYPE_CHECKING:
    import torch


def device_of(settings: Calibration) -> torch.device:
    """Where the samples are run.

    Raises:
        InvalidOption: it is not known, or not there.
    """
    return choose_device(settings.device)


def dtype_of(settings: Calibration, checkpoint: Checkpoint) -> torch.dtype:
    """What the samples are run in: fp32 on the CPU, whose bf16 is slow, else the largest tensor's.

    Raises:
        InvalidOption: it is not known.
    """
    import torch

    from prunectl.checkpoint.torch_tensors import torch_dtype

    wanted = settings.dtype
    if wanted != "auto":
        names = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        name = names.get(wanted, wanted)
        if name not in names.values():  # torch has more, which no model runs in
            raise InvalidOption(
                f"dtype '{wanted}' is not known", hint="auto, float32, bfloat16 or float16"
            )
        found: torch.dtype = getattr(torch, name)
        return found
    if device_of(settings).type == "cpu":
        return torch.float32
    largest = max(checkpoint.tensors, key=lambda tensor: tensor.spec.nbytes)
    return torch_dtype(largest.spec)
