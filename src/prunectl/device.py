"""Devices for tensors: the choice of a device, its free memory, and detection of full memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch

_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""In cgroups 2 and 1: the limit, the usage, and the key of the page cache's part of it."""
_NO_LIMIT = 1 << 60
"""cgroup 1 writes the largest possible number, minus less than a page, for no limit."""
_MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S* (\S+)$", re.MULTILINE)
"""A line of mountinfo: the cgroup at the mount's root, the mount point, kind, options."""


def choose_device(wanted: str) -> torch.device:
    """The requested device; ``auto`` is CUDA if available.

    Each of several processes of ``accelerate launch`` or ``torchrun`` has its own device, unless a
    number is given.

    Raises:
        InvalidOption: no such device, or an unknown kind of device.
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
            hint="use --device cpu",
        )
    count = torch.cuda.device_count()
    index = _own_index(count) if device.index is None else device.index
    if index >= count:
        raise InvalidOption(f"--device {wanted}: there are {count} CUDA devices")
    return torch.device("cuda", index)


def check_device(wanted: str) -> None:
    """Refuse a device that does not exist, before anything is read."""
    if wanted not in ("auto", "cpu"):  # always available, and torch takes a second to load
        choose_device(wanted)


def _own_index(count: int) -> int:
    """The index of this process's device on the host."""
    own = os.environ.get("LOCAL_RANK", "")
    return int(own) % count if own.isdecimal() else 0


def other_devices(device: torch.device) -> list[torch.device]:
    """All CUDA devices but this one; none if this is the CPU."""
    import torch

    count = torch.cuda.device_count() if device.type == "cuda" else 0
    return [torch.device("cuda", index) for index in range(count) if index != device.index]


def names_of(devices: Iterable[torch.device]) -> str:
    """Short names of devices: ``cpu``, ``cuda:1``, ``cuda:0-3``, ``cuda:0,2``."""
    found = set(devices)
    indices = sorted(device.index for device in found if device.type == "cuda")
    if len(found) == 1 or len(indices) < len(found):
        return ", ".join(sorted(map(str, found)))
    first, last = indices[0], indices[-1]
    whole = len(indices) == last - first + 1
    return f"cuda:{first}-{last}" if whole else f"cuda:{','.join(map(str, indices))}"


def free_memory(device: torch.device) -> int | None:
    """Free bytes; None if unknown."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    stated = memory_stated("MemAvailable")
    return min([*([stated] if stated else []), *left_in_groups(Path("/proc/self"))], default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device, or the host, is out of memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # the last is from cuBLAS, cuSOLVER or cuDNN, which lacked memory for workspaces
    words = ("not enough memory", "can't allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def memory_stated(key: str) -> int:
    """A value of /proc/meminfo in bytes, such as ``MemTotal``; 0 without it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def left_in_groups(process: Path) -> list[int]:
    """Bytes left under each memory limit of a process's control group and the groups above it.

    Containers, batch systems and systemd limit memory in this way; both versions of cgroups are
    read.

    Args:
        process: its folder, such as ``/proc/self``.
    """
    try:
        groups = (process / "cgroup").read_text(encoding="utf-8", errors="surrogateescape")
        mounts = (process / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    paths: dict[str, str] = {}  # by the kind of file system
    for line in groups.splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    found: list[int | None] = []
    for root, place, kind, options in _MOUNT.findall(mounts):
        if kind == "cgroup2" or "memory" in options.split(","):
            found += map(_left_in_group, _upwards(Path(place), root, paths.get(kind, root)))
    return [one for one in found if one is not None]


def _upwards(mounted: Path, root: str, path: str) -> list[Path]:
    """The folders of a group and of the groups above it, as far as they are visible."""
    inside = PurePosixPath(path)
    if ".." in inside.parts or not inside.is_relative_to(root):
        return [mounted]  # a container sees only itself there, and does not know its name outside
    parts = inside.relative_to(root).parts
    return [mounted.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _left_in_group(folder: Path) -> int | None:
    """Bytes left under a group's own limit; cached files count as free."""
    for limit, usage, cache in _GROUP_FILES:
        try:
            most = int((folder / limit).read_text(encoding="ascii"))
            used = int((folder / usage).read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii").split()
            cached = int(stat[stat.index(cache) + 1])
        except (OSError, ValueError, IndexError):  # no such limit; "max" means no limit too
            continue
        return max(0, most - used + cached) if most < _NO_LIMIT else None
    return None


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
