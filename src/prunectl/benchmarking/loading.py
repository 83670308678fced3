"""Time and memory of loading a model, measured in a process of its own.

    python -m prunectl.benchmarking.loading FOLDER DEVICE DTYPE TRUST EXECUTION

loads one model and prints the measurement as JSON. It needs its own process because the peak of
memory belongs to a whole process, and because a second load in one process is already warm.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prunectl.benchmarking.errors import CannotRun
from prunectl.benchmarking.result import LoadCost
from prunectl.runtime.executions import DENSE


def measure_loading(
    folder: Path,
    device: str,
    dtype: str,
    *,
    execution: str = DENSE,
    trust_remote_code: bool = False,
) -> LoadCost:
    """Load a model with ``prunectl.load_model`` in a fresh process.

    Args:
        folder: dense or compressed. device: as ``device_map`` takes it. dtype: ``auto`` or a name.

    Raises:
        CannotRun: the process failed; with the last line of its output.
    """
    done = subprocess.run(
        [
            sys.executable, "-m", "prunectl.benchmarking.loading",
            str(folder.resolve()), device, dtype, "1" if trust_remote_code else "0", execution,
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


_STATUS = Path("/proc/self/status")
_PAGE = 4096


def main(folder: str, device: str, dtype: str, trust: str, execution: str) -> None:
    """Load a model once; print seconds, and bytes of host memory before and at the peak."""
    import torch
    import transformers  # noqa: F401  (not part of the time)

    from prunectl.loading.model import load_model

    if device.startswith("cuda"):
        torch.zeros(1, device=device)  # nor is the context
    _forget_peak()
    before = _resident("VmRSS")
    begin = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        model = load_model(
            folder,
            device_map=None if device == "cpu" else device,
            dtype=dtype,
            execution=execution,
            trust_remote_code=trust == "1",
        )
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        elif device == "cpu":
            _touch(model)
    seconds = time.perf_counter() - begin
    peak = _resident("VmHWM")
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak}))  # noqa: T201


def _touch(model: object) -> None:
    """Read every weight: weights that are only mapped from a file are not loaded yet."""
    import torch

    from prunectl.runtime.weight import CompressedStack, CompressedWeight

    assert isinstance(model, torch.nn.Module)
    for parameter in model.parameters():
        if isinstance(parameter, CompressedStack):  # made from a weight that was read
            continue
        flat: Any = parameter
        if isinstance(parameter, CompressedWeight):
            flat = torch.from_numpy(parameter.matrix.values.data.view("u1"))
        flat = flat.detach().reshape(-1)
        flat[:: max(1, _PAGE // flat.element_size())].sum()


def _forget_peak() -> None:
    """Reset the peak of memory; Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident(key: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Other systems know only the peak: in kilobytes, or in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(*sys.argv[1:])
