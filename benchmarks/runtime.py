"""Compressed execution next to dense: products of one matrix, and tokens of whole models.

    python benchmarks/runtime.py products [--threads 1] [--size 4096]
    python benchmarks/runtime.py model FOLDER [SIDE ...] [--threads 1] [--rounds 5] [--long]

``products`` times one row of bf16 inputs times matrices that together exceed the cache, each read
once in turn: an own dense kernel of the same style (the yardstick), each form, and torch's
``linear`` in bf16 and fp32. ``model`` times a folder in fresh processes, one side after the other:
tokens of 1, 8 and 32 sequences, a prompt of 128 tokens (of 1,024 too with ``--long``), and the
memory and time of loading. Its sides are dense execution by torch in bf16 and fp32, every weight in
the own dense kernel or in one form, and the executions ``compressed`` and ``auto``. Both print
medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from prunectl.runtime.executions import EXECUTIONS
from prunectl.runtime.forms import FORMS, compress
from prunectl.runtime.matrix import Matrix, Values
from prunectl.runtime.models import is_compressible
from prunectl.runtime.selection import instructions
from prunectl.runtime.weight import CompressedWeight

COLD = 400_000_000
"""Bytes of the matrices that a measurement goes through."""
ROUNDS = 7
TWO_OF_FOUR = -1.0
"""A share of zeros that stands for the pattern 2:4."""
BATCHES = (1, 8, 32)
NEW = 16
OWN = "own dense"
SIDES = ("dense bf16", "dense fp32", OWN, *FORMS, "compressed", "auto")


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
    for share in (0.0, 0.3, 0.4, 0.5, TWO_OF_FOUR):
        weights = []
        for _ in range(max(2, COLD // (2 * size * size))):
            weight = (torch.randn(size, size, generator=generator) * 0.02).to(torch.bfloat16)
            if share == TWO_OF_FOUR:
                order = torch.rand(size, size // 4, 4, generator=generator).argsort(dim=2)
                weight[order.reshape(size, size) < 2] = 0
            else:
                weight[torch.rand(size, size, generator=generator) < share] = 0
            weights.append(weight)

        def multiply(matrix: Matrix) -> object:
            return matrix.product(inputs, None)

        rows: dict[str, tuple[float, float, float]] = {}
        rows["own dense"] = (1.0, *best(multiply, [own_dense(one) for one in weights]))
        for form in FORMS:
            held = [compress(one, form, instructions()) for one in weights]
            if held[0].form != form:
                continue
            rows[form] = (held[0].nbytes / weights[0].nbytes, *best(multiply, held))
        rows["torch bf16"] = (1.0, *best(lambda one: functional.linear(inputs, one), weights))
        wide = [one.float() for one in weights[: max(1, len(weights) // 2)]]
        rows["torch fp32"] = (2.0, *best(lambda one: functional.linear(inputs.float(), one), wide))
        zeros = "2:4" if share == TWO_OF_FOUR else f"{share:.0%}"
        for name, (nbytes, least, median) in rows.items():
            ratios = (rows[other][1] / least for other in ("own dense", "torch bf16"))
            table.add_row(
                zeros, name, f"{nbytes:.3f}", f"{least:.2f}", f"{median:.2f}",
                *(f"{ratio:.2f}x" for ratio in ratios),
            )  # fmt: skip
    print(f"{instructions()}, {threads} threads, {size} x {size}")
    Console(width=100).print(table)


def memory(name: str) -> int:
    """Bytes of this process: ``VmRSS``, or ``RssAnon`` without mapped files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(x.split()[1] for x in status.splitlines() if x.startswith(name)))


@contextmanager
def peak(found: dict[str, float]) -> Iterator[None]:
    """Note the most memory that is not of mapped files, sampled every 2 ms."""
    before, done = memory("RssAnon"), threading.Event()
    found["peak"] = 0

    def sample() -> None:
        while not done.wait(0.002):
            found["peak"] = max(found["peak"], memory("RssAnon") - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()


def held_as(form: str, model: torch.nn.Module) -> None:
    """Hold every linear layer and embedding of a model in one form, or in the own dense kernel."""
    known: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if is_compressible(module, "weight") and isinstance(weight, torch.nn.Parameter):
            if id(weight) not in known:
                data = weight.data
                matrix = own_dense(data) if form == OWN else compress(data, form, instructions())
                known[id(weight)] = torch.nn.Parameter(CompressedWeight(matrix), False)
            module.weight = known[id(weight)]


def one_run(folder: str, side: str, threads: int, prompts: list[int]) -> dict[str, float]:
    """Seconds and memory of one side; called in a process of its own."""
    import transformers  # noqa: F401

    from prunectl import load_model

    torch.set_num_threads(threads)
    before = memory("VmRSS")
    execution = side if side in EXECUTIONS else "dense"
    dtype = torch.float32 if side == "dense fp32" else torch.bfloat16
    found: dict[str, float] = {}
    started = time.perf_counter()
    with peak(found):
        model = load_model(folder, execution=execution, dtype=dtype)
    found["loading"] = time.perf_counter() - started
    if side in (OWN, *FORMS):
        held_as(side, model)
    with torch.inference_mode():
        model(torch.tensor([[1, 2]]))  # kernels are compiled once, and every weight is read
        found["resident"] = memory("VmRSS") - before
        for batch in BATCHES:
            start = torch.arange(batch * 4).reshape(batch, 4)
            past = model(start, use_cache=True, logits_to_keep=1).past_key_values
            steps = []
            for token in range(NEW if batch == 1 else 4):
                started = time.perf_counter()
                model(torch.full((batch, 1), token), past_key_values=past, use_cache=True)
                steps.append(time.perf_counter() - started)
            found[f"batch {batch}"] = statistics.median(steps)
        for length in prompts:
            prompt = torch.arange(length)[None] % model.config.vocab_size
            started = time.perf_counter()
            model(prompt, use_cache=True, logits_to_keep=1)
            found[f"prompt {length:,}"] = time.perf_counter() - started
    return found


def model(folder: str, sides: list[str], threads: int, rounds: int, prompts: list[int]) -> None:
    """Print a row for each side."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, runs in found.items():
            command = [sys.executable, __file__, "one", folder, side, str(threads)]
            command += [str(length) for length in prompts]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    timed = [f"batch {batch}" for batch in BATCHES] + [f"prompt {one:,}" for one in prompts]
    table = Table("side", *timed, "memory", "peak", "load s")
    for side, runs in found.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        is_loaded = side in EXECUTIONS or side.startswith("dense")
        table.add_row(
            side,
            *(f"{1000 * median[key]:.1f}" for key in timed),
            *(f"{median[key] / 1e6:.0f}" if is_loaded else "" for key in ("resident", "peak")),
            f"{median['loading']:.1f}" if is_loaded else "",
        )
    print(f"{instructions()}, {threads} threads, {folder}: milliseconds of a step, MB")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("products", "model", "one"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true")
    given = parser.parse_args()
    if given.what == "products":
        products(given.threads, given.size)
    elif given.what == "model":
        folder, *sides = given.rest
        prompts = [128, 1024] if given.long else [128]
        model(folder, sides or list(SIDES), given.threads, given.rounds, prompts)
    else:
        folder, side, threads, *lengths = given.rest
        print(json.dumps(one_run(folder, side, int(threads), [int(one) for one in lengths])))


if __name__ == "__main__":
    main()
