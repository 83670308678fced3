"""Where tensors are computed: which device is meant, what it has left, and whether it is full."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str) -> torch.device:
    """The device that is meant: ``auto`` is CUDA where there is one.

    Of several processes that ``accelerate launch`` or ``torchrun`` has started, each has its own,
    unless a number is named.

    Raises:
        InvalidOption: no such device, or not one that is known.
    """
    import torch

    if wanted == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
            return torch.device("cpu")
        return torch.device("cuda", _own_index(count))
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InvalidOption(f"--device '{wanted}' is not known", hint="auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidOption(
            f"--device {wanted}: torch {torch.__version__} sees no CUDA device",
            hint="--device cpu takes the CPU",
        )
    count = torch.cuda.device_count()
    index = _own_index(count) if device.index is None else device.index
    if index >= count:
        raise InvalidOption(f"--device {wanted}: there are {count} CUDA devices")
    return torch.device("cuda", index)


def check_device(wanted: str) -> None:
    """Refuse a device that is not there, before anything is read for it.

    Raises:
        InvalidOption: as :func:`choose_device`.
    """
    if wanted not in ("auto", "cpu"):  # these are there, and torch takes a second to load
        choose_device(wanted)


def _own_index(count: int) -> int:
    """Which of a host's devices is this process's."""
    own = os.environ.get("LOCAL_RANK", "")
    return int(own) % count if own.isdecimal() else 0


def other_devices(device: torch.device) -> list[torch.device]:
    """All CUDA devices but this one; none beside the CPU."""
    import torch

    count = torch.cuda.device_count() if device.type == "cuda" else 0
    return [torch.device("cuda", index) for index in range(count) if index != device.index]


def names_of(devices: Iterable[torch.device]) -> str:
    """Devices in one word: ``cpu``, ``cuda:1``, ``cuda:0-3``, ``cuda:0,2``."""
    found = set(devices)
    indices = sorted(device.index for device in found if device.type == "cuda")
    if len(found) == 1 or len(indices) < len(found):
        return ", ".join(sorted(map(str, found)))
    first, last = indices[0], indices[-1]
    whole = len(indices) == last - first + 1
    return f"cuda:{first}-{last}" if whole else f"cuda:{','.join(map(str, indices))}"


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be used; None where it is not known."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [memory_stated("MemAvailable") or None, _left_in_container(Path("/sys/fs/cgroup"))]
    return min((one for one in known if one is not None), default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the host, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def memory_stated(key: str) -> int:
    """Bytes that Linux states of its memory, such as ``MemTotal``; 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def _left_in_container(folder: Path) -> int | None:
    """What a container's limit leaves; caches of files count as used until they are dropped."""
    try:
        most = (folder / "memory.max").read_text(encoding="ascii")
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").split()
        cached = int(stat[stat.index("inactive_file") + 1])
        return max(0, int(most) - used + cached)
    except (OSError, ValueError, IndexError):  # no such limit, which is also written as "max"
        return None
