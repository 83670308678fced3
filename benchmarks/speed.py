"""Speed and memory of every command, next to a durable copy of the same checkpoint.

    python benchmarks/speed.py --size-gb 8 --dtype bf16 --rounds 3 --work DIR [--json FILE]

Makes a LLaMA-shaped checkpoint (see make_checkpoint.py), then runs each job as a fresh process, all
jobs in turn, several rounds. A durable copy is ``cp -r`` and then fsync of each file of the copy.
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
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from machine import available_memory, machine

HERE = Path(__file__).parent
MIB = 1 << 20
COPY = "durable copy"
REFERENCE_COPY = "durable copy of the small model"
# global_unstructured takes this many times the model's bytes (measured: 16 to 18).
REFERENCE_MEMORY = 20
REFERENCE_SIZES = (1.0, 0.5, 0.2, 0.1, 0.05)
DURABLE_COPY = 'cp -r "$1" "$2" && find "$2" -type f -exec sync {} +'


@dataclass(frozen=True)
class Folders:
    """Where everything is; all on one file system."""

    model: Path
    small: Path
    output: Path
    cache: Path


@dataclass
class Job:
    """A command that is measured in each round.

    Attributes:
        label: its name in the table.
        command: what is run.
        prepare: sets the cache as the job wants it.
        baseline: label of the durable copy that it is compared with; '' for none.
        keeps_output: the next job works on this one's output.
        walls, peaks: seconds and bytes, one each per round.
    """

    label: str
    command: list[str]
    prepare: Callable[[], None] = lambda: None
    baseline: str = COPY
    keeps_output: bool = False
    walls: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)


def clear_cache(cache: Path, *, keep_roles: bool) -> None:
    """Remove what prunectl has kept about models."""
    for entry in cache.iterdir():
        if entry.name.startswith("numba") or (keep_roles and entry.match("roles-*.json")):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def jobs_for(prunectl: list[str], at: Folders) -> list[Job]:
    """All jobs of a round, in their order."""
    model, output = str(at.model), str(at.output)
    jobs = [Job(COPY, ["sh", "-c", DURABLE_COPY, "sh", model, output])]
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
            ["sh", "-c", DURABLE_COPY, "sh", str(at.small), output],
            baseline=REFERENCE_COPY,
        ),
        Job("torch global_unstructured, small model", reference, baseline=REFERENCE_COPY),
        Job("--help", [*prunectl, "--help"], baseline=""),
        Job("--version", [*prunectl, "--version"], baseline=""),
    ]
    return jobs


def run(command: list[str], cache: Path) -> tuple[float, int]:
    """Run a fresh process to its end; returns its wall time in seconds and its peak RSS in bytes.

    A child's peak starts at the size its parent had when it started it: this module stays small.
    """
    environment = os.environ | {"PRUNECTL_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as messages:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=messages, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            messages.seek(0)
            tail = messages.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{tail}")
    return wall, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(jobs: list[Job], at: Folders, rounds: int, log: Console) -> None:
    """Run all jobs in turn, ``rounds`` times, and note their times and peaks."""
    for number in range(1, rounds + 1):
        for job in jobs:
            job.prepare()
            os.sync()  # so that no job waits for the disk work of the one before
            wall, peak = run(job.command, at.cache)
            job.walls.append(wall)
            job.peaks.append(peak)
            log.print(f"round {number}/{rounds}  {job.label}: {wall:.2f} s, {peak / MIB:.0f} MiB")
            if not job.keeps_output:
                shutil.rmtree(at.output, ignore_errors=True)


def checkpoint(work: Path, size_gb: float, dtype: str) -> Path:
    """The checkpoint of that size, made in a process of its own unless it is there."""
    target = work / f"llama-{size_gb:g}gb-{dtype}"
    if not target.exists():
        maker = [sys.executable, str(HERE / "make_checkpoint.py"), str(target)]
        options = ["--size-gb", str(size_gb), "--dtype", dtype]
        subprocess.run(maker + options, check=True, stdout=sys.stderr)
    return target


def fitting_size() -> float:
    """The largest size, in GB, that torch's own pruning has the memory for."""
    limit = available_memory() / REFERENCE_MEMORY / 1e9
    return next((size for size in REFERENCE_SIZES if size <= limit), REFERENCE_SIZES[-1])


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def read_once(folder: Path) -> None:
    """Bring the files into the page cache."""
    buffer = bytearray(8 * MIB)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def summary(jobs: list[Job]) -> list[dict[str, Any]]:
    """One entry per job: medians, ratio to its durable copy, and the single runs."""
    medians = {job.label: statistics.median(job.walls) for job in jobs}
    return [
        {
            "job": job.label,
            "seconds": round(medians[job.label], 3),
            "ratio": round(medians[job.label] / medians[job.baseline], 3) if job.baseline else None,
            "peak_rss_mib": round(max(job.peaks) / MIB, 1),
            "runs_seconds": [round(wall, 3) for wall in job.walls],
            "command": job.command,
        }
        for job in jobs
    ]


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
    installed = Path(sys.executable).with_name("prunectl")
    prunectl = [args.prunectl or str(installed)]
    if not args.prunectl and not installed.exists():
        raise SystemExit(
            f"{installed} is not there: pip install -e . first, or name one: --prunectl"
        )
    # Compiles what numba and Python keep compiled; no user pays for that twice.
    run([*prunectl, "analyze", str(at.small)], at.cache)
    read_once(at.model)

    jobs = jobs_for(prunectl, at)
    measure(jobs, at, args.rounds, log)
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
