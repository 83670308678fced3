"""What a measurement depends on: processor, memory, versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("prunectl", "torch", "transformers", "safetensors", "numpy", "numba", "blake3")


def facts_of(file: str, key: str) -> list[str]:
    """Values of the ``key : value`` lines of a file under /proc; none on other systems."""
    try:
        lines = (Path("/proc") / file).read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def physical_memory() -> int:
    """Bytes of memory in the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int:
    """Bytes that a new process can use without swapping; half of all where it is not known."""
    kib = facts_of("meminfo", "MemAvailable")
    return int(kib[0].split()[0]) * 1024 if kib else physical_memory() // 2


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """A description to keep beside the numbers."""
    names = facts_of("cpuinfo", "model name")
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(physical_memory() / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
