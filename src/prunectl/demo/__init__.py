"""The embedded demo model: a small, really trained Llama, and text that it was not trained on.

``scripts/train_demo.py`` made it from the King James Bible; the card, ``model/README.md``, says how
and what was measured. It is there to try commands on without a download, and not for use.
"""

from __future__ import annotations

import filecmp
from pathlib import Path

NAME = "demo"
"""What a user types in the place of a model."""

_HERE = Path(__file__).parent


def model_folder() -> Path:
    """The folder that transformers loads: bf16 weights, tokenizer, configuration and card."""
    return _HERE / "model"


def heldout_text() -> Path:
    """UTF-8 text to measure quality on; neither the model nor the tokenizer was trained on it."""
    return _HERE / "heldout.txt"


def calibration_text() -> Path:
    """UTF-8 text to calibrate on: not trained on either, and no line of it is held-out."""
    return _HERE / "calibration.txt"


def has_its_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the demo model's tokenizer: that model, or one made from it.

    Every output of prunectl holds the tokenizer of its source byte for byte.
    """
    try:
        name = "tokenizer.json"
        return filecmp.cmp(folder / name, model_folder() / name, shallow=False)
    except OSError:
        return False
