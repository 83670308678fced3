"""Tables for a CUDA device: inference, and magnitude work.

    python benchmarks/gpu.py                                      # about five minutes, 60 GB
    python benchmarks/gpu.py --random-weights llama-1b            # for a card of 16 GB
    python benchmarks/gpu.py --kernels sparse --dtype float16
    python benchmarks/gpu.py --magnitude DIR --size-gb 8          # takes three times that in DIR

The first is a 7B LLaMA shape, dense, pruned and sparse. The weights are random and pruned to 2:4 in
memory: no download, and time does not depend on their values. Prints Markdown; ``-o`` saves the
whole result as JSON too. ``prunectl bench`` does the same with a real model.

``--magnitude`` is another table: analyze and prune with magnitudes compared on the CPU and on the
device, in turn, each once before it counts; and whether both wrote the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_checkpoint
import prunectl
from prunectl.benchmarking.result import BenchResult, KernelRow, MeasuredRun
from prunectl.events import Event, Note


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time dense, pruned and 2:4 sparse inference.")
    parser.add_argument("--random-weights", default="llama-7b", help="preset or config.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kernels", default="auto", choices=("auto", "sparse", "dense"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=180.0, help="for timing, about")
    parser.add_argument("--magnitude", type=Path, metavar="DIR", help="time magnitude work there")
    parser.add_argument("--size-gb", type=float, default=8.0, help="of its checkpoint")
    parser.add_argument("--rounds", type=int, default=3, help="of magnitude work")
    parser.add_argument("-o", "--output", type=Path, help="save the result as JSON")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> BenchResult:
    settings = prunectl.BenchSettings(
        batch_sizes=tuple(args.batch_size),
        prompt_tokens=tuple(args.prompt_tokens),
        new_tokens=args.new_tokens,
        seconds=args.seconds,
        device=args.device,
        dtype=args.dtype,
        kernels=args.kernels,
    )
    return prunectl.bench(random_weights=args.random_weights, settings=settings, on_event=tell)


def tell(event: Event) -> None:
    if isinstance(event, Note):
        print(event.text, file=sys.stderr)


def markdown(result: BenchResult) -> Iterator[str]:
    """Verdicts, the table of runs, and the table of kernels."""
    machine, rates = result.machine, result.rates
    yield f"{machine.name}, {machine.driver or machine.device}, torch {machine.versions['torch']};"
    yield (
        f"measured {rates.bandwidth / 1e9:,.0f} GB/s and {rates.flops / 1e12:,.2f} TFLOP/s; "
        f"{result.seconds:,.0f} s in all.\n"
    )
    yield from (f"- {verdict}" for verdict in result.verdicts)
    yield "\n| workload | phase | side | median ms | rate | to the first | of limit | peak GB |"
    yield "|---|---|---|---:|---:|---|---:|---:|"
    yield from map(run_row, result.runs)
    if result.kernels:
        yield "\n| weight | input rows | kernel | dense us | sparse us | speed | used |"
        yield "|---|---:|---|---:|---:|---|---|"
        yield from map(kernel_row, result.kernels)
    yield ""
    for one in result.agreements:
        word = "agree" if one.ok else "DIFFER"
        yield f"Outputs of {one.side} {word}: relative error {one.relative_error:.2g}."
    for left in result.skipped:
        yield f"Left out: {left.what}: {left.why}."


def run_row(run: MeasuredRun) -> str:
    ratio = ""
    if run.against is not None:
        one = run.against
        ratio = f"{one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f}), {one.verdict}"
    peak = "" if run.peak_memory is None else f"{run.peak_memory / 1e9:.1f}"
    return (
        f"| {run.workload.name} | {run.phase} | {run.side} | {1e3 * run.seconds.median:.3g} "
        f"| {run.rate:,.0f} | {ratio} | {run.of_limit:.0%} | {peak} |"
    )


def kernel_row(row: KernelRow) -> str:
    shape = f"{row.shape[0]} x {row.shape[1]}"
    if row.against is None:
        return f"| {shape} | | {row.error} | | | | no |"
    return (
        f"| {shape} | {row.batch} | {row.backend} | {1e6 * row.dense_seconds:.1f} "
        f"| {1e6 * row.sparse_seconds:.1f} | {row.against.ratio:.2f}x "
        f"({row.against.low:.2f} to {row.against.high:.2f}) | {'yes' if row.chosen else 'no'} |"
    )


JOBS: dict[str, dict[str, Any] | None] = {
    "analyze --pattern none": None,
    "prune --sparsity 0.4": {"sparsity": 0.4},
    "prune --sparsity 0.4 --scope row": {"sparsity": 0.4, "scope": "row"},
    "prune --pattern 2:4": {"pattern": "2:4"},
    "prune --pattern 8:16": {"pattern": "8:16"},
}
"""Magnitude work that is timed: settings of a prune, or None for analyze."""


def magnitude(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of every job on the CPU and on the device, with bf16 weights and nothing known."""
    args.magnitude.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="gpu-", dir=args.magnitude))
    try:
        return timed(checkpoint_in(args.magnitude, work, args.size_gb), work, args)
    finally:
        shutil.rmtree(work)


def checkpoint_in(folder: Path, work: Path, size_gb: float) -> Path:
    """The checkpoint that is worked on, made whole or not at all, and kept for another time."""
    source = folder / f"llama-{size_gb:g}gb-bf16"
    if not source.exists():
        make_checkpoint.make_checkpoint(work / "source", size_gb=size_gb)
        (work / "source").rename(source)
    return source


def timed(source: Path, work: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All jobs, by turns on the CPU and on the device; outputs go to ``work``."""
    rows = []
    for job, settings in JOBS.items():
        seconds: dict[str, list[float]] = {"cpu": [], "device": []}
        found: dict[str, object] = {}
        for number in range(args.rounds + 1):
            for side, device in (("cpu", "cpu"), ("device", args.device)):
                took, found[side] = once(source, work / "out", settings, device)
                if number:
                    seconds[side].append(took)
        same = found["cpu"] == found["device"]
        rows.append({"job": job, "device": args.device, "seconds": seconds, "same": same})
    return rows


def once(
    source: Path, output: Path, settings: dict[str, Any] | None, device: str
) -> tuple[float, object]:
    """Seconds of one job, and what it found or wrote: hashes of all weights."""
    how: dict[str, Any] = {"use_cache": False, "device": device, "on_event": tell}
    start = time.perf_counter()
    if settings is None:
        document = prunectl.analyze(source, patterns=(), **how).to_json()
        return time.perf_counter() - start, document | {"seconds": 0}
    prunectl.prune(source, output, prunectl.PruneSettings(**settings), **how)
    took = time.perf_counter() - start
    manifest = (output / "prunectl.json").read_bytes()
    shutil.rmtree(output)
    return took, manifest


def magnitude_table(args: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"| {args.size_gb:g} GB, bf16 | CPU s | {args.device} s | speed | same bytes |"
    yield "|---|---:|---:|---:|---|"
    for row in rows:
        here, there = (statistics.median(row["seconds"][side]) for side in ("cpu", "device"))
        same = "yes" if row["same"] else "NO"
        yield f"| `{row['job']}` | {here:.2f} | {there:.2f} | {here / there:.2f}x | {same} |"


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    document: object
    try:
        if args.magnitude:
            rows = document = magnitude(args)
            lines, ok = magnitude_table(args, rows), all(row["same"] for row in rows)
        else:
            result = measure(args)
            lines, ok, document = markdown(result), result.ok, result.to_json()
    except prunectl.PrunectlError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    if args.output:
        args.output.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return 0 if ok else 3


if __name__ == "__main__":
    sys.exit(main())
