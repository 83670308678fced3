"""The device that is measured on, and what else a number depends on. No names of hosts or users."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch

_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = ("prunectl", "torch", "transformers", "accelerate", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured.

    Attributes:
        device: ``cpu`` or ``cuda:N``. name: of the processor or card.
        threads: of torch on the CPU. memory: bytes of the device.
        driver: version of the driver, of CUDA, and compute capability; '' on the CPU.
        clock: of the card's processors when it was asked, in MHz; '' where it does not say.
        system, python, versions: of the software.
    """

    device: str
    name: str
    threads: int
    memory: int
    driver: str
    clock: str
    system: str
    python: str
    versions: dict[str, str]


def choose_device(wanted: str) -> torch.device:
    """The device that is meant: ``auto`` is CUDA where there is one.

    Raises:
        InvalidOption: no such device, or not one that bench knows.
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
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
            hint="--device cpu measures on the CPU",
        )
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise InvalidOption(
            f"--device {wanted}: there are {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", index)


def machine_of(device: torch.device) -> Machine:
    """Describe a device and the software around it."""
    import torch

    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name, memory = str(facts.name), int(facts.total_memory)
        driver = f"CUDA {torch.version.cuda}, compute capability {facts.major}.{facts.minor}"
        driver = ", ".join(filter(None, (_kernel_module(_DRIVER), driver)))
    else:
        name, memory, driver = _processor(), _meminfo("MemTotal"), ""
    return Machine(
        device=str(device),
        name=name,
        threads=torch.get_num_threads(),
        memory=memory,
        driver=driver,
        clock=_clock(device),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={package: _version(package) for package in _PACKAGES},
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be used; None where it is not known."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [_meminfo("MemAvailable") or None, _left_in_container(Path("/sys/fs/cgroup"))]
    return min((one for one in known if one is not None), default=None)


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


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads inside the block; None leaves it as it is.

    Raises:
        InvalidOption: more than there are processors: torch may crash, and measures nothing.
    """
    import torch

    most = os.cpu_count() or 1
    if count is not None and count > most:
        raise InvalidOption(f"--threads {count}: this machine has {most} processors")
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one: libraries behind torch take that for their handles."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the host, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def _clock(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    import torch

    try:  # needs NVIDIA's management library, which is no dependency
        return f"{torch.cuda.clock_rate(device)} MHz"
    except (RuntimeError, ImportError, AttributeError):
        return ""


def _kernel_module(path: Path) -> str:
    """``driver 550.54.15``: NVIDIA's kernel module, which is what drivers are known by; or ''."""
    try:
        found = re.search(r"Module.*?\s(\d+(?:\.\d+)+)\s", path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return f"driver {found[1]}" if found else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _meminfo(key: str) -> int:
    """Bytes that Linux states; 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
