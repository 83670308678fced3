"""Where tensors are computed: which device is meant, what it has left, and whether it is full."""

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
"""Of cgroups 2 and 1: the limit, what is used of it, and the key of the part that is a cache."""
_NO_LIMIT = 1 << 60
"""cgroup 1 writes as much as a number can hold, less than a page."""
_MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S* (\S+)$", re.MULTILINE)
"""A line of mountinfo: the group that is the mount's root, where it is seen, kind, options."""


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
    stated = memory_stated("MemAvailable")
    return min([*([stated] if stated else []), *left_in_groups(Path("/proc/self"))], default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the host, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # The last is cuBLAS, cuSOLVER or cuDNN, which have had no room for their own.
    words = ("not enough memory", "can't allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def memory_stated(key: str) -> int:
    """Bytes that Linux states of its memory, such as ``MemTotal``; 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def left_in_groups(process: Path) -> list[int]:
    """Bytes that each limit leaves that is set on a process's control group or on one above it.

    That is how containers, batch systems and systemd limit memory; cgroups of both versions.

    Args:
        process: what Linux says of the process, such as ``/proc/self``.
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
    """The folders of a group and of those above it, as far as they can be seen here.

    Args:
        mounted: where the group ``root`` and all in it are seen. path: of the group.
    """
    inside = PurePosixPath(path)
    if ".." in inside.parts or not inside.is_relative_to(root):
        return [mounted]  # a container sees itself there, and does not know its name outside
    parts = inside.relative_to(root).parts
    return [mounted.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _left_in_group(folder: Path) -> int | None:
    """What a group's own limit leaves; caches of files count as used until they are dropped."""
    for limit, usage, cache in _GROUP_FILES:
        try:
            most = int((folder / limit).read_text(encoding="ascii"))
            used = int((folder / usage).read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii").split()
            cached = int(stat[stat.index(cache) + 1])
        except (OSError, ValueError, IndexError):  # no such limit, which is also written as "max"
            continue
        return max(0, most - used + cached) if most < _NO_LIMIT else None
    return None
