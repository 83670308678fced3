"""Measure what sparsity costs MiniLM when it is fine-tuned to tell spam from other mails.

    python benchmarks/essential.py                            1,500 mails to train on
    python benchmarks/essential.py --train-samples 4728       all of them
    python benchmarks/essential.py -s 0.1,0.2 --seeds 0,1,2   any option of `prunectl sweep`
    python benchmarks/essential.py --sequence-length 128      as in the paper, at twice the time

The model is the one that scripts/fetch_models.py fetches, the mails are those of spam.py, the
recipe is the paper's for GLUE: 3 epochs of batches of 32, 2e-5 decaying linearly to 0; texts have
64 tokens. All 1,180 mails of the held-out fifth are scored. What is given behind the script's name
is put behind that, and counts. Points are kept as they are measured: the same command goes on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import spam
from packages import fetch_models

PATTERNS = "unstructured,2:4"
GRID = "0.1,0.2,0.3,0.4,0.6,0.8"
TRAINED_ON = 1_500


def command(model: Path, data: Path, *more: str) -> list[str]:
    """The command line of the sweep."""
    options = {
        "--metric": "classification",
        "--data": str(data),
        "--train-samples": str(TRAINED_ON),
        "--sequence-length": "64",
        "--sparsity": GRID,
        "--pattern": PATTERNS,
    }
    given = [part for name, value in options.items() for part in (name, value)]
    return [sys.executable, "-m", "prunectl", "sweep", str(model), *given, *more]


def main() -> None:
    """Fetch, and sweep."""
    if not fetch_models.is_complete("minilm", fetch_models.cache_dir()):
        raise SystemExit("run scripts/fetch_models.py minilm first")
    model = fetch_models.cache_dir() / "minilm"
    done = subprocess.run(command(model, spam.fetch(), *sys.argv[1:]), check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
