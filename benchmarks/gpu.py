"""The table of docs/performance.md for a CUDA device: a 7B LLaMA shape, dense, pruned and sparse.

    python benchmarks/gpu.py                                      # about five minutes, 60 GB
    python benchmarks/gpu.py --random-weights llama-1b            # for a card of 16 GB
    python benchmarks/gpu.py --kernels sparse --dtype float16

The weights are random and pruned to 2:4 in memory: no download, and time does not depend on their
values. Prints Markdown; ``-o`` saves the whole result as JSON too. ``prunectl bench`` does the same
with a real model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import prunectl
from prunectl.benchmarking.result import BenchResult, KernelRow, Run
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


def run_row(run: Run) -> str:
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


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        result = measure(args)
    except prunectl.PrunectlError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print("\n".join(markdown(result)))
    if args.output:
        args.output.write_text(json.dumps(result.to_json(), indent=2), encoding="utf-8")
    return 0 if result.ok else 3


if __name__ == "__main__":
    sys.exit(main())
