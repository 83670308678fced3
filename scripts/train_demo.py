"""Train the small models that prunectl is shown and tested on.

    python scripts/train_demo.py --output build/demo
    python scripts/train_demo.py --output build/other --text a.txt b.txt --steps 500
    python scripts/train_demo.py --output build/digits --objective supervised

The default objective, ``lm``, makes what ``src/prunectl/demo`` ships: ``model/``, a Llama of 2.8 M
parameters in bf16 with its tokenizer and card, ``heldout.txt`` and ``calibration.txt``. Without
``--text`` it trains on the King James Bible, which it gets with ``apt-get`` and ``dpkg-deb``
(Debian and its relatives). ``supervised`` and ``self-supervised`` train classifiers of the same
transformer shape on scikit-learn's digits: with labels, or on rotations and then briefly with them.

Progress goes to stderr; one line of JSON with all numbers goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from demo_card import write_card
from demo_digits import train_self_supervised, train_supervised
from demo_lm import train_language_model
from demo_text import PACKAGE, fetch_bible, split_books, split_files
from demo_training import Run, Shape

DEFAULTS = {
    "lm": {"steps": 1700, "batch": 8, "learning_rate": 3e-3},
    "supervised": {"steps": 600, "batch": 64, "learning_rate": 1e-3},
    "self-supervised": {"steps": 600, "batch": 64, "learning_rate": 1e-3},
}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description="Train the small models that prunectl is shown and tested on."
    )
    options.add_argument("--output", type=Path, required=True, metavar="DIR")
    options.add_argument("--objective", choices=DEFAULTS, default="lm")
    options.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="UTF-8, for lm")
    options.add_argument("--steps", type=int, help="default: 1700, digits 600")
    options.add_argument("--batch", type=int, help="default: 8, digits 64")
    options.add_argument("--learning-rate", type=float, help="default: 3e-3, digits 1e-3")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument(
        "--save-every", type=int, default=0, metavar="N", help="write checkpoint-N, checkpoint-2N"
    )
    for size, value in vars(Shape()).items():
        flag = f"--{size.replace('_', '-')}"
        options.add_argument(flag, type=int, default=value, help=f"default: {value}")
    return options


def run_of(args: argparse.Namespace) -> Run:
    chosen = {
        name: default if getattr(args, name) is None else getattr(args, name)
        for name, default in DEFAULTS[args.objective].items()
    }
    shape = Shape(**{size: getattr(args, size) for size in vars(Shape())})
    return Run(
        output=args.output, seed=args.seed, save_every=args.save_every, shape=shape, **chosen
    )


def train_objective(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    if args.objective == "supervised":
        return train_supervised(run)
    if args.objective == "self-supervised":
        return train_self_supervised(run)
    splits = split_files(args.text) if args.text else split_books(fetch_bible())
    sources = [path.name for path in args.text] if args.text else [PACKAGE]
    return {"text": sources} | train_language_model(splits, run)


def main() -> None:
    options = parser()
    args = options.parse_args()
    if args.text and args.objective != "lm":
        options.error("--text is for --objective lm")
    run = run_of(args)
    transformers.utils.logging.disable_progress_bar()
    # Sums are cut up by thread, so their number decides the last bits of the weights.
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    run.output.mkdir(parents=True, exist_ok=True)
    numbers = {
        "objective": args.objective,
        "steps": run.steps,
        "batch": run.batch,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "threads": args.threads,
        "shape": vars(run.shape),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    numbers |= train_objective(args, run)
    numbers["seconds"] = time.perf_counter() - start
    if args.objective == "lm":
        write_card(run.output / "model" / "README.md", numbers)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
