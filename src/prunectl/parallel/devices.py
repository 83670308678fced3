"""CUDA devices of the ranks. NCCL can join them only if each rank has its own.

Two ranks that share a device would wait for each other forever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import gethostname
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BACKEND = "nccl"
_SETTINGS = {"TORCH_NCCL_BLOCKING_WAIT": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
"""Without these settings, a thread of torch ends the process when NCCL fails, with no usable
message. With them, waiting raises an error, which is handled here.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """The device that a rank computes on.

    Attributes:
        device: in torch's notation, such as ``cuda:0``.
        name: from :func:`name_of`.
    """

    device: str
    name: str


def name_of(device: torch.device) -> str:
    """A name that no other CUDA device has; '' for one that NCCL cannot use."""
    if device.type != "cuda":  # do not initialize CUDA
        return ""
    import torch
    import torch.distributed as dist

    if not dist.is_nccl_available():
        return ""
    try:
        torch.empty(1, device=device)  # fails here if CUDA cannot be initialized
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", "")
    except RuntimeError:
        return ""
    return str(uuid) or f"{gethostname()} {device.index}"


def why_by_host(places: Sequence[Place]) -> str:
    """Why NCCL cannot join the ranks; '' if every rank has a device of its own."""
    seen: dict[str, int] = {}
    for rank, place in enumerate(places):
        if not place.device.startswith("cuda"):
            return f"rank {rank} computes on {place.device}"
        if not place.name:
            return f"rank {rank} cannot use {place.device} by NCCL"
        if place.name in seen:
            return f"ranks {seen[place.name]} and {rank} share {place.device}"
        seen[place.name] = rank
    return ""


@contextmanager
def errors_are_raised() -> Iterator[None]:
    """Make NCCL groups created in the ``with`` block raise their errors in the waiting thread."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
