"""Loads one model and says what that took, as JSON on stdout: run as a process of its own.

    python -m prunectl.benchmarking.load_probe FOLDER DEVICE DTYPE TRUST

A process of its own, since the peak of memory is one of a whole process, and since a second load
in the same one finds everything imported and warm.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

_STATUS = Path("/proc/self/status")
_PAGE = 4096


def main(folder: str, device: str, dtype: str, trust: str) -> None:
    """Load a model once; print seconds, and bytes of host memory before and at the peak."""
    import torch
    import transformers  # noqa: F401  (its import is no part of the time)

    from prunectl.loading.model import load_model

    if device.startswith("cuda"):
        torch.zeros(1, device=device)  # the context is no part of it either
    _forget_peak()
    before = _resident("VmRSS")
    begin = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        model = load_model(
            folder,
            device_map=None if device == "cpu" else device,
            dtype=dtype,
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
    """Read every weight: one that is only mapped from its file has not been loaded yet."""
    import torch

    assert isinstance(model, torch.nn.Module)
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        flat[:: max(1, _PAGE // flat.element_size())].sum()


def _forget_peak() -> None:
    """Linux only: let the peak begin here."""
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
    # Elsewhere only the peak is known: kilobytes, or bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(*sys.argv[1:])
