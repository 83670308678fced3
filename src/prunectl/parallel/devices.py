"""Whether every rank has a CUDA device of its own, so that nccl can join them: two that share one
would wait for each other for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import gethostname
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BACKEND = "nccl"
_SETTINGS = {"TORCH_NCCL_BLOCKING_WAIT": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
"""Without these a thread of torch's ends the process when nccl fails, and says nothing that a user
can make use of. With them, waiting raises an error, and what to do then is decided here."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank computes.

    Attributes:
        device: as torch writes it, such as ``cuda:0``. name: by :func:`name_of`.
    """

    device: str
    name: str


def name_of(device: torch.device) -> str:
    """What a CUDA device is called that no other is; '' for one that nccl cannot use."""
    if device.type != "cuda":  # and CUDA is left alone
        return ""
    import torch
    import torch.distributed as dist

    if not dist.is_nccl_available():
        return ""
    try:
        torch.empty(1, device=device)  # what cannot be begun is known before it is counted on
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", "")
    except RuntimeError:
        return ""
    return str(uuid) or f"{gethostname()} {device.index}"


def why_by_host(places: Sequence[Place]) -> str:
    """Why nccl cannot join the ranks' places; '' if every one has a device of its own."""
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
    """A group of nccl that is made inside has its errors raised where one waits for it."""
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


def abort(group: Any) -> None:
    """End what waits in a group, on the device too; nothing can be sent by it afterwards."""
    try:
        group.abort()
    except RuntimeError:  # it is no group of nccl, or is gone already
        return
