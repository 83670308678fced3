"""The device that is measured on, and what else a number depends on. No names of hosts or users."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch

_PACKAGES = ("prunectl", "torch", "transformers", "accelerate", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured.

    Attributes:
        device: ``cpu`` or ``cuda:N``. name: of the processor or card.
        threads: of torch on the CPU. memory: bytes of the device.
        driver: CUDA version and compute capability; '' on the CPU.
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
    return _meminfo("MemAvailable") or None


def _clock(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    import torch

    try:  # needs NVIDIA's management library, which is no dependency
        return f"{torch.cuda.clock_rate(device)} MHz"
    except (RuntimeError, ImportError, AttributeError):
        return ""


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
