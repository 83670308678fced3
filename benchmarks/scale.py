"""How time and memory grow with bytes, processes, threads, shards, tensors; beside a durable copy.

    python benchmarks/scale.py --parts sizes ranks --sizes 1 2 4 8 16 --work DIR [--json FILE]

Each part makes its checkpoints (LLaMA-shaped, see make_checkpoint.py; experts.py), runs its jobs as
fresh processes in turn, several rounds, and prints a table in Markdown on stdout:

    sizes    analyze, prune 40%, prune 2:4 of 1 to 16 GB, and a line through each job's times
    ranks    prune 40% and analyze by --jobs 1, 2, 4 .. threads, and by torchrun's processes
    shards   prune 40% with source and output in files of 50 MB to 5 GB
    tensors  100,000 small matrices of a mixture of experts
    headers  what reads headers only, of a model of 10^12 bytes in sparse files that take no disk:
             from the folder, and (--remote) from a Hub on 127.0.0.1, with an empty cache of its own

Weights have not been measured before any job. What the tensors are is remembered from an earlier
command, but for jobs called *cold*: where no table says it, importing transformers to find out
takes 2 to 3 s, once per model. The source is in the page cache: what does not fit there, or on the
disk, is left out with a message. torchrun starts the prunectl of this Python. Peaks are of the
largest process, and for torchrun also the sum of all that it starts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import linear_regression
from typing import Any

from rich.console import Console

import experts
import make_checkpoint
from hub_folder import REPO, FolderHub, hub_of
from machine import available_memory, machine
from measuring import (
    COPY,
    Job,
    checkpoint,
    clear_cache,
    copy_command,
    installed,
    measure,
    read_once,
    run,
    summary,
    weight_bytes,
)

GB = 10**9
ROOM = 10**9
"""Bytes that stay free on the disk and in memory beside what a job needs."""
TIMED = ("analyze", "analyze --pattern none", "prune --sparsity 0.4", "prune --pattern 2:4")
OPEN = "import sys, prunectl; print(len(prunectl.open_checkpoint(sys.argv[1]).tensors))"
Row = dict[str, Any]


class Bench:
    """Where and how jobs run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.work: Path = args.work.resolve()
        self.output, self.cache = self.work / "output", self.work / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.output, ignore_errors=True)
        self.prunectl = installed(args.prunectl)
        self.log = Console(stderr=True)

    def job(self, words: str, model: Path | str, *, cold: bool = False, label: str = "") -> Job:
        """A command of prunectl on a model; ``words`` are its verb and options."""
        return Job(
            label or words + (" (cold)" if cold else ""),
            [*self.prunectl, *self.arguments(words, model)],
            partial(clear_cache, self.cache, keep_roles=not cold),
        )

    def remote_job(self, words: str, hub: FolderHub, *, cold: bool) -> Job:
        """As :meth:`job`, on the model of a Hub of which nothing has been downloaded."""
        job = self.job(words, REPO, cold=cold)
        job.environment, job.sent, job.baseline = hub.environment, hub.sent, ""
        forget = job.prepare

        def prepare() -> None:
            forget()
            shutil.rmtree(hub.home, ignore_errors=True)

        job.prepare = prepare
        return job

    def arguments(self, words: str, model: Path | str) -> list[str]:
        verb, *options = words.split()
        writes = verb == "prune" and "--dry-run" not in options
        return [verb, str(model), *options, *(["-o", str(self.output)] if writes else [])]

    def copy(self, model: Path) -> Job:
        return Job(COPY, copy_command(model, self.output))

    def fits(self, size: float, what: str) -> bool:
        """Whether there is disk for a model and a copy of it, and memory to cache the model."""
        free = shutil.disk_usage(self.work).free
        for name, needed, there in (
            ("bytes of disk", 2 * size, free),
            ("bytes of memory", size, available_memory()),
        ):
            if needed + ROOM > there:
                self.log.print(f"{what} left out: {needed + ROOM:,.0f} {name}, {there:,} are free")
                return False
        return True

    def measured(self, jobs: list[Job], of: str, nbytes: int) -> list[Row]:
        """Rows of a table: what ``of`` is, each job's numbers, and bytes of the model a second."""
        measure(jobs, self.output, self.cache, self.args.rounds, self.log)
        rows = summary(jobs)
        return [
            {"of": of, "gb": round(nbytes / GB, 4)}
            | row
            | {"gb_per_second": round(nbytes / GB / row["seconds"], 3)}
            for row in rows
        ]

    @contextmanager
    def made(self, model: Path, make: Callable[[], object]) -> Iterator[Path]:
        """A checkpoint in the page cache whose roles are known; removed afterwards."""
        was_there = model.exists()
        try:
            if not was_there:
                in_a_process(make)
            run([*self.prunectl, "prune", str(model), "-s", "0.4", "--dry-run"], self.cache)
            yield model
        finally:
            if not (was_there or self.args.keep):
                shutil.rmtree(model, ignore_errors=True)


def in_a_process(make: Callable[[], object]) -> None:
    """Call it in a process of its own: this one stays small, see measuring.run."""
    process = multiprocessing.get_context("spawn").Process(target=make)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a checkpoint could not be made: {process.exitcode}")


def sizes(bench: Bench) -> Iterable[Row]:
    """Checkpoints of rising size."""
    for size in bench.args.sizes:
        if not bench.fits(size * GB, f"{size:g} GB"):
            continue
        model = bench.work / f"llama-{size:g}gb-bf16"
        with bench.made(model, partial(checkpoint, bench.work, size, "bf16")):
            read_once(model)
            jobs = [bench.copy(model), *(bench.job(words, model) for words in TIMED)]
            yield from bench.measured(jobs, f"{size:g} GB", weight_bytes(model))


def ranks(bench: Bench) -> Iterable[Row]:
    """Threads of one process, and processes of one host that share the cores."""
    size, cores = bench.args.size_gb, len(os.sched_getaffinity(0))
    if not bench.fits(size * GB, f"ranks of {size:g} GB"):
        return
    model = bench.work / f"llama-{size:g}gb-bf16"
    with bench.made(model, partial(checkpoint, bench.work, size, "bf16")):
        read_once(model)
        total = weight_bytes(model)
        shard = f" --max-shard-size {total // (8000 * max(bench.args.ranks)) + 1}KB"
        threads = [2**power for power in range(cores.bit_length())]
        jobs = [bench.copy(model)]
        for verb, options in (("prune --sparsity 0.4", shard), ("analyze", "")):
            for count in threads:
                words = f"{verb}{options} --jobs {count}"
                jobs.append(bench.job(words, model, label=f"{verb}, --jobs {count}"))
            for count in bench.args.ranks:
                each = max(1, cores // count)
                label = f"{verb}, {count} rank{'s' * (count > 1)} of --jobs {each}"
                words = f"{verb}{options} --jobs {each}"
                jobs.append(torchrun(count, bench.job(words, model, label=label)))
        yield from bench.measured(jobs, f"{size:g} GB", total)


def torchrun(count: int, job: Job) -> Job:
    """The job by several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={count}", "-m", "prunectl", *job.command[1:]]
    return Job(job.label, command, job.prepare, is_tree=True)


def shards(bench: Bench) -> Iterable[Row]:
    """The same bytes in many files or in few."""
    size = bench.args.size_gb
    for shard_mb in bench.args.shards:
        if not bench.fits(size * GB, f"shards of {shard_mb:g} MB"):
            continue
        count = max(1, round(size * 1000 / shard_mb))
        model = bench.work / f"llama-{size:g}gb-{count}-shards"
        make = partial(make_checkpoint.make_checkpoint, model, size_gb=size, shards=count)
        with bench.made(model, make):
            read_once(model)
            words = f"prune --sparsity 0.4 --max-shard-size {round(shard_mb * 1000)}KB"
            jobs = [bench.copy(model), bench.job(words, model, label="prune --sparsity 0.4")]
            yield from bench.measured(jobs, f"{shard_mb:g} MB", weight_bytes(model))


def tensors(bench: Bench) -> Iterable[Row]:
    """Many small matrices."""
    shape = experts.many_small(bench.args.tensors)
    count = len(shape.tensors())
    model = bench.work / f"experts-{count}"
    make = partial(make_checkpoint.write_checkpoint, model, shape, dtype="bf16", shards=4)
    with bench.made(model, make):
        read_once(model)
        dry = "prune --sparsity 0.4 --dry-run"
        jobs = [bench.copy(model), *(bench.job(words, model) for words in TIMED)]
        jobs[-1].keeps_output = True
        verify = Job("verify (of that 2:4)", [*bench.prunectl, "verify", str(bench.output)])
        jobs += [verify, bench.job(dry, model), bench.job(dry, model, cold=True)]
        yield from bench.measured(jobs, f"{count:,} tensors", weight_bytes(model))


def headers(bench: Bench) -> Iterable[Row]:
    """Models too large for the disk, whose headers are all that is read."""
    nominal = int(bench.args.nominal_gb * GB)
    for kind, shape in (
        ("dense", make_checkpoint.shape_for(nominal // 2, tied=False)),
        ("experts", experts.trillion(nominal // 2)),
    ):
        model = bench.work / f"hollow-{kind}-{bench.args.nominal_gb:g}gb"
        count = max(1, round(nominal / (5 * GB)))
        make = partial(
            make_checkpoint.write_checkpoint, model, shape, dtype="bf16", shards=count, hollow=True
        )
        with bench.made(model, make), hub_of(model, bench.work / "hub-home") as hub:
            total, number = weight_bytes(model), len(shape.tensors())
            jobs = []
            for cold in (True, False):
                opened = bench.job("open", model, cold=cold, label="open in Python")
                opened.label += " (cold)" if cold else ""
                opened.command = [sys.executable, "-c", OPEN, str(model)]
                jobs.append(opened)
                for words in ("prune --sparsity 0.4 --dry-run", "prune --pattern 2:4 --dry-run"):
                    jobs.append(bench.job(words, model, cold=cold))
                for words in ("analyze --remote", "prune --sparsity 0.4 --dry-run --remote"):
                    jobs.append(bench.remote_job(words, hub, cold=cold))
            for job in jobs:
                job.baseline = ""
            yield from bench.measured(jobs, f"{kind}, {number:,} tensors, {count} files", total)


PARTS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "sizes": sizes,
    "ranks": ranks,
    "shards": shards,
    "tensors": tensors,
    "headers": headers,
}


def lines_through(rows: Sequence[Row]) -> list[Row]:
    """Of each job at several sizes: seconds = start + slope * GB, by least squares."""
    found = []
    for job in dict.fromkeys(row["job"] for row in rows):
        own = [row for row in rows if row["job"] == job]
        if len(own) > 1:
            size, seconds = ([row[key] for row in own] for key in ("gb", "seconds"))
            slope, start = linear_regression(size, seconds)
            off = max(abs(start + slope * x - y) / y for x, y in zip(size, seconds, strict=True))
            found.append(
                {"job": job, "start_seconds": round(start, 3)}
                | {"seconds_per_gb": round(slope, 4), "farthest": round(off, 3)}
            )
    return found


def table(rows: Sequence[Row]) -> str:
    """Rows of a part in Markdown."""
    lines = [
        "| of | job | seconds | to the copy | GB/s | peak MiB | sum MiB | MB received "
        "| fastest to slowest |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        runs = row["runs_seconds"]
        cells = (
            row["of"],
            row["job"],
            f"{row['seconds']:.2f}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}x",
            f"{row['gb_per_second']:.2f}" if row["ratio"] is not None else "",
            f"{row['peak_rss_mib']:,.0f}",
            "" if row["sum_rss_mib"] is None else f"{row['sum_rss_mib']:,.0f}",
            "" if row["received_bytes"] is None else f"{row['received_bytes'] / 10**6:.1f}",
            f"{min(runs):.2f} to {max(runs):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def line_table(rows: Sequence[Row]) -> str:
    """What :func:`lines_through` finds, in Markdown."""
    lines = ["| job | seconds at 0 GB | seconds per GB | farthest point |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row['job']} | {row['start_seconds']:.2f} | {row['seconds_per_gb']:.3f} "
        f"| {row['farthest']:.0%} |"
        for row in rows
    ]
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how prunectl scales.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add = parser.add_argument
    add("--sizes", type=float, nargs="+", default=[1, 2, 4, 8, 16], metavar="GB", help="of sizes")
    add("--size-gb", type=float, default=4.0, metavar="GB", help="of ranks and shards")
    add("--ranks", type=int, nargs="+", default=[1, 2], metavar="N", help="processes of torchrun")
    add("--shards", type=float, nargs="+", default=[50, 200, 1000, 5000], metavar="MB")
    add("--tensors", type=int, default=100_000, metavar="N", help="of tensors")
    add("--nominal-gb", type=float, default=1000.0, metavar="GB", help="of headers")
    add("--rounds", type=int, default=3)
    add("--work", type=Path, default=Path(".bench"), help="folder to work in")
    add("--keep", action="store_true", help="keep the checkpoints that were made")
    add("--json", type=Path, metavar="FILE", help="write the numbers here too")
    add("--prunectl", help="the command (default: the one installed with this Python)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    bench = Bench(args)
    report: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "parts": {}}
    with bench.made(
        bench.work / "llama-0.01gb-bf16", partial(checkpoint, bench.work, 0.01, "bf16")
    ) as small:
        for words in (*TIMED, "verify"):  # compiles what numba and Python keep compiled
            job = bench.job(words, bench.output if words == "verify" else small)
            run(job.command, bench.cache)
            if words != TIMED[-1]:
                shutil.rmtree(bench.output, ignore_errors=True)
    for part in args.parts:
        rows = list(PARTS[part](bench))
        report["parts"][part] = {"rows": rows}
        print(f"\n### {part}\n\n{table(rows)}", flush=True)
        if part == "sizes" and (fits := lines_through(rows)):
            report["parts"][part]["lines"] = fits
            print(f"\n{line_table(fits)}", flush=True)
        if args.json:  # after each part: a night's work is not lost by the last one
            args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
