"""Compressed execution next to dense: products of one matrix, and tokens of whole models.

    python benchmarks/runtime.py products [--threads 1] [--size 4096]
    python benchmarks/runtime.py model FOLDER [--threads 1] [--rounds 5]

``products`` times one row of bf16 inputs times matrices that together exceed the cache, each read
once in turn: an own dense kernel of the same style (the yardstick), both forms, and torch's
``linear`` in bf16 and fp32. ``model`` times greedy decoding and a prompt of a folder in fresh
processes, executions in turn, with the memory of each. Both print medians and best times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from prunectl.runtime.forms import FORMS, compress
from prunectl.runtime.matrix import Matrix, Values
from prunectl.runtime.selection import instructions

COLD = 400_000_000
"""Bytes of the matrices that a measurement goes through."""
ROUNDS = 7
PROMPT, NEW = 128, 24


def own_dense(weight: torch.Tensor) -> Matrix:
    """The kernel without mask and code: every weight is loaded as it is."""
    codes = weight.view(torch.int16).numpy().view(np.uint16)
    return Matrix("dense", instructions(), "bf16", *weight.shape, Values(codes), None)


def best(product: Callable[[Any], object], weights: list[Any]) -> tuple[float, float]:
    """The best and the median milliseconds of a product, over all rounds."""
    taken = []
    for _ in range(ROUNDS):
        for weight in weights:
            start = time.perf_counter()
            product(weight)
            taken.append(1000 * (time.perf_counter() - start))
    return min(taken), statistics.median(taken)


def products(threads: int, size: int) -> None:
    """Print a row for each way to multiply."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, size, generator=generator).to(torch.bfloat16)
    table = Table(
        "zeros", "kernel", "bytes", "best ms", "median ms", "to own dense", "to torch bf16"
    )
    for share in (0.0, 0.3, 0.4, 0.5):
        weights = []
        for _ in range(max(2, COLD // (2 * size * size))):
            weight = (torch.randn(size, size, generator=generator) * 0.02).to(torch.bfloat16)
            weight[torch.rand(size, size, generator=generator) < share] = 0
            weights.append(weight)

        def multiply(matrix: Matrix) -> object:
            return matrix.product(inputs, None)

        rows: dict[str, tuple[float, float, float]] = {}
        rows["own dense"] = (1.0, *best(multiply, [own_dense(one) for one in weights]))
        for form in FORMS:
            held = [compress(one, form, instructions()) for one in weights]
            rows[form] = (held[0].nbytes / weights[0].nbytes, *best(multiply, held))
        rows["torch bf16"] = (1.0, *best(lambda one: functional.linear(inputs, one), weights))
        wide = [one.float() for one in weights[: max(1, len(weights) // 2)]]
        rows["torch fp32"] = (2.0, *best(lambda one: functional.linear(inputs.float(), one), wide))
        for name, (nbytes, least, median) in rows.items():
            ratios = (rows[other][1] / least for other in ("own dense", "torch bf16"))
            table.add_row(
                f"{share:.0%}", name, f"{nbytes:.3f}", f"{least:.2f}", f"{median:.2f}",
                *(f"{ratio:.2f}x" for ratio in ratios),
            )  # fmt: skip
    print(f"{instructions()}, {threads} threads, {size} x {size}")
    Console(width=100).print(table)


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(x.split()[1] for x in status.splitlines() if x.startswith("VmRSS")))


def one_run(folder: str, execution: str, dtype: str, threads: int) -> dict[str, float]:
    """Seconds and memory of one model; called in a process of its own."""
    import transformers  # noqa: F401

    from prunectl import load_model

    torch.set_num_threads(threads)
    before = resident()
    started = time.perf_counter()
    model = load_model(folder, execution=execution, dtype=getattr(torch, dtype))
    loading = time.perf_counter() - started
    prompt = torch.arange(1, 1 + PROMPT)[None] % model.config.vocab_size
    with torch.inference_mode():
        model(prompt[:, :2])  # kernels are compiled once
        started = time.perf_counter()
        past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
        prefill = time.perf_counter() - started
        steps = []
        for token in range(NEW):
            started = time.perf_counter()
            model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
            steps.append(time.perf_counter() - started)
    return {
        "token": statistics.median(steps),
        "prefill": prefill,
        "resident": resident() - before,
        "loading": loading,
    }


def model(folder: str, threads: int, rounds: int) -> None:
    """Print a row for each execution."""
    sides = [("dense", "bfloat16"), ("dense", "float32"), ("compressed", "bfloat16")]
    sides += [("auto", "bfloat16")]
    found: dict[tuple[str, str], list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for execution, dtype in sides:
            command = [sys.executable, __file__, "one", folder, execution, dtype, str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[execution, dtype].append(json.loads(done.stdout.splitlines()[-1]))
    table = Table(
        "execution", "dtype", "ms/token", "speed", f"ms, {PROMPT} tokens", "memory", "load s"
    )
    base = statistics.median(run["token"] for run in found[sides[0]])
    for (execution, dtype), runs in found.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        table.add_row(
            execution,
            dtype,
            f"{1000 * median['token']:.1f}",
            f"{base / median['token']:.2f}x",
            f"{1000 * median['prefill']:.0f}",
            f"{median['resident'] / 1e6:.0f} MB",
            f"{median['loading']:.1f}",
        )
    print(f"{instructions()}, {threads} threads, {folder}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("products", "model", "one"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.what == "products":
        products(given.threads, given.size)
    elif given.what == "model":
        model(given.rest[0], given.threads, given.rounds)
    else:
        *words, threads = given.rest
        print(json.dumps(one_run(*words, threads=int(threads))))


if __name__ == "__main__":
    main()
