"""Code in a process of its own, where what is imported, or by whom, is the point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def child(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with ``args`` in ``sys.argv``; a RuntimeWarning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
