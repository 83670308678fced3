"""The embedded model ``demo``: a small trained language model, and text that it has never seen."""

from __future__ import annotations

from pathlib import Path

NAME = "demo"
_HERE = Path(__file__).parent


def model_folder() -> Path:
    """The checkpoint's folder, as transformers saves it; its card (README.md) says what it is."""
    return _HERE / "model"


def heldout_text() -> Path:
    """About 100 kB of UTF-8 text to measure on."""
    return _HERE / "heldout.txt"


def calibration_text() -> Path:
    """About 100 kB of UTF-8 text to calibrate on, apart from the held-out text."""
    return _HERE / "calibration.txt"
