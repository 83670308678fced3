"""Speed and memory of every command, next to a durable copy of the same checkpoint.

    python benchmarks/speed.py --size-gb 8 --dtype bf16 --rounds 3 --work DIR [--json FILE]

Makes a LLaMA-shaped checkpoint (see make_checkpoint.py), then runs each job as a fresh process, all
jobs in turn, several rounds. A durable copy is ``cp -r`` and then fsync of each file of the copy; a
*direct* one goes past the page cache, as prunectl's large files do where the file system offers it.
The result is a table on stdout: median wall time, its ratio to the median durable copy, and the
largest peak RSS (of the process, as the kernel counts it, mapped file pages included).

The source is read once before the first round, so it is in the page cache if it fits in memory.
What prunectl has cached is removed before each job: *cold* removes all of it, as on the first
command ever on this model; *roles kept* leaves ``roles-*.json`` (the module tree's answer, which
does not depend on the weights). The analysis goes in both, code that numba has compiled in neither.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from machine import available_memory, machine
from measuring import (
    COPY,
    HERE,
    Folders,
    Job,
    checkpoint,
    clear_cache,
    copy_command,
    direct_copy_command,
    installed,
    measure,
    read_once,
    run,
    summary,
    weight_bytes,
)

REFERENCE_COPY = "durable copy of the small model"
# global_unstructured takes this many times the model's bytes (measured: 16 to 18).
REFERENCE_MEMORY = 20
REFERENCE_SIZES = (1.0, 0.5, 0.2, 0.1, 0.05)


def jobs_for(prunectl: list[str], at: Folders) -> list[Job]:
    """All jobs of a round, in their order."""
    model, output = str(at.model), str(at.output)
    jobs = [Job(COPY, copy_command(at.model, at.output))]
    direct = direct_copy_command(at.model, at.output)
    if direct:
        jobs.append(Job("direct durable copy", direct))
    for label, arguments in (
        ("analyze", ["analyze", model]),
        ("analyze --pattern none", ["analyze", model, "--pattern", "none"]),
        ("prune --sparsity 0.4", ["prune", model, "--sparsity", "0.4", "-o", output]),
        ("prune --pattern 2:4", ["prune", model, "--pattern", "2:4", "-o", output]),
    ):
        for variant, keep_roles in (("cold", False), ("roles kept", True)):
            jobs.append(
                Job(
                    f"{label} ({variant})",
                    [*prunectl, *arguments],
                    partial(clear_cache, at.cache, keep_roles=keep_roles),
                )
            )
    jobs[-1].keeps_output = True
    jobs.append(Job("verify (of that 2:4)", [*prunectl, "verify", output]))
    reference = [sys.executable, str(HERE / "torch_reference.py"), str(at.small), output]
    jobs += [
        Job(
            REFERENCE_COPY,
            copy_command(at.small, at.output),
            baseline=REFERENCE_COPY,
        ),
        Job("torch global_unstructured, small model", reference, baseline=REFERENCE_COPY),
        Job("--help", [*prunectl, "--help"], baseline=""),
        Job("--version", [*prunectl, "--version"], baseline=""),
    ]
    return jobs


def fitting_size() -> float:
    """The largest size, in GB, that torch's own pruning has the memory for."""
    limit = available_memory() / REFERENCE_MEMORY / 1e9
    return next((size for size in REFERENCE_SIZES if size <= limit), REFERENCE_SIZES[-1])


def table_of(report: dict[str, Any]) -> Table:
    about = report["machine"]
    table = Table(
        title=f"{report['model_bytes'] / 1e9:.2f} GB {report['dtype']}, "
        f"small model {report['small_bytes'] / 1e9:.2f} GB, median of {report['rounds']}",
        caption=f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB",
    )
    table.add_column("job")
    for heading in ("seconds", "to its durable copy", "peak MiB", "fastest - slowest"):
        table.add_column(heading, justify="right")
    for row in report["jobs"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        runs = row["runs_seconds"]
        spread = f"{min(runs):.2f} - {max(runs):.2f}"
        table.add_row(
            row["job"], f"{row['seconds']:.2f}", ratio, f"{row['peak_rss_mib']:.0f}", spread
        )
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure prunectl against a durable copy.")
    parser.add_argument("--size-gb", type=float, default=1.0, help="weights, in 10^9 bytes")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder to work in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument(
        "--small-gb", type=float, help="model for torch's own pruning (default: what fits, up to 1)"
    )
    parser.add_argument(
        "--prunectl", help="the command (default: the one installed with this Python)"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    log = Console(stderr=True)
    small_gb = args.small_gb or min(args.size_gb, fitting_size())
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    at = Folders(
        model=checkpoint(work, args.size_gb, args.dtype),
        small=checkpoint(work, small_gb, args.dtype),
        output=work / "output",
        cache=work / "cache",
    )
    shutil.rmtree(at.output, ignore_errors=True)
    at.cache.mkdir(exist_ok=True)
    prunectl = installed(args.prunectl)
    # Compiles what numba and Python keep compiled; no user pays for that twice.
    run([*prunectl, "analyze", str(at.small)], at.cache)
    read_once(at.model)

    jobs = jobs_for(prunectl, at)
    measure(jobs, at.output, at.cache, args.rounds, log)
    report = {
        "machine": machine(),
        "dtype": args.dtype,
        "rounds": args.rounds,
        "model_bytes": weight_bytes(at.model),
        "small_bytes": weight_bytes(at.small),
        "jobs": summary(jobs),
    }
    Console(width=None if sys.stdout.isatty() else 110).print(table_of(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
