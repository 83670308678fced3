"""The device that is measured on, and the software around it. No names of hosts or users."""

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

from prunectl import numbers
from prunectl.device import memory_stated
from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch

_DRIVER = Path("/proc/driver/nvidia/version")
BUSY = 0.25
"""Load per processor from which a machine is called busy."""
_PACKAGES = ("prunectl", "torch", "transformers", "accelerate", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a result was measured.

    Attributes:
        device: ``cpu`` or ``cuda:N``. name: of the processor or card.
        threads: of torch on the CPU. memory: bytes of the device.
        driver: versions of the driver and of CUDA, and compute capability; '' on the CPU.
        clock: of the card's processors at the time, in MHz; '' if it is unknown.
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


def machine_of(device: torch.device) -> Machine:
    """Describe a device and the software around it."""
    import torch

    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name, memory = str(facts.name), int(facts.total_memory)
        driver = f"CUDA {torch.version.cuda}, compute capability {facts.major}.{facts.minor}"
        driver = ", ".join(filter(None, (_kernel_module(_DRIVER), driver)))
    else:
        name, memory, driver = processor(), memory_stated("MemTotal"), ""
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


def busy_warning(load: float, processors: int) -> str:
    """A warning if a machine has other work to do; '' if it has little.

    Args:
        load: programs that ran or waited to run, on average over the last minute.
    """
    if load < BUSY * processors:
        return ""
    return (
        f"this machine is busy: a load of {load:.1f} over the last minute, with "
        f"{numbers.plural(processors, 'processor')}. Times will be longer and less certain than "
        "on an idle machine"
    )


def load_now() -> float:
    """The machine's load over the last minute; 0 where the system does not state it."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's threads inside the block; None leaves it as it is.

    Raises:
        InvalidOption: more than there are processors, with which torch may crash.
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
    """Make a CUDA device the current one, which the libraries that torch calls use."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _clock(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    import torch

    try:  # needs NVIDIA's management library, which is no dependency
        return f"{torch.cuda.clock_rate(device)} MHz"
    except (RuntimeError, ImportError, AttributeError):
        return ""


def _kernel_module(path: Path) -> str:
    """``driver 550.54.15``, the version of NVIDIA's kernel module; '' if it is unknown."""
    try:
        found = re.search(r"Module.*?\s(\d+(?:\.\d+)+)\s", path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return f"driver {found[1]}" if found else ""


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
