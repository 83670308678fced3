"""Time and memory of loading a model, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from prunectl.benchmarking.errors import CannotRun


@dataclass(frozen=True, slots=True)
class LoadCost:
    """What loading took; imports and the start of the device are not part of it.

    Attributes:
        seconds: from the call to a model whose every weight has been read.
        peak_bytes: most host memory that the process held. before_bytes: what it held before.
    """

    seconds: float
    peak_bytes: int
    before_bytes: int


def measure_loading(
    folder: Path, device: str, dtype: str, *, trust_remote_code: bool = False
) -> LoadCost:
    """Load a model with ``prunectl.load_model`` in a fresh process.

    Args:
        folder: dense or compressed. device: as ``device_map`` takes it. dtype: ``auto`` or a name.

    Raises:
        CannotRun: the process failed, with the last line of what it said.
    """
    done = subprocess.run(
        [
            sys.executable, "-m", "prunectl.benchmarking.load_probe",
            str(folder.resolve()), device, dtype, "1" if trust_remote_code else "0",
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )  # fmt: skip
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return LoadCost(float(found["seconds"]), int(found["peak"]), int(found["before"]))
    except (ValueError, KeyError, TypeError, IndexError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CannotRun(str(folder), f"loading it failed: {lines[-1][:300]}") from None
