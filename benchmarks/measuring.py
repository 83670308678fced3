"""Fresh processes, timed in turn, and what they work on: shared by the benchmarks.

A durable copy, which jobs are compared with, is ``cp -r`` and then fsync of each file of the copy.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from machine import facts_of

HERE = Path(__file__).parent
MIB = 1 << 20
COPY = "durable copy"
DURABLE_COPY = 'cp -r "$1" "$2" && find "$2" -type f -exec sync {} +'
DIRECT_COPY = (
    'mkdir "$2" && for file in "$1"/*; do dd if="$file" of="$2/${file##*/}" '
    "bs=4M oflag=direct conv=fsync status=none; done"
)
_LOOK = 0.05
"""Seconds from one look at the memory of a tree of processes to the next."""


def copy_command(source: Path, target: Path) -> list[str]:
    return ["sh", "-c", DURABLE_COPY, "sh", str(source), str(target)]


def direct_copy_command(source: Path, target: Path) -> list[str] | None:
    """A durable copy that goes past the page cache, of a folder of files; None where the file
    system of ``target`` does not offer that."""
    probe = target.with_name(f"{target.name}-probe")
    command = ["dd", "if=/dev/zero", f"of={probe}", "bs=4096", "count=1", "oflag=direct"]
    offered = subprocess.run(command, capture_output=True, check=False).returncode == 0
    probe.unlink(missing_ok=True)
    return ["sh", "-ec", DIRECT_COPY, "sh", str(source), str(target)] if offered else None


def installed(named: str | None) -> list[str]:
    """The command to measure: the one named, or the one installed with this Python."""
    path = Path(sys.executable).with_name("prunectl")
    if not named and not path.exists():
        raise SystemExit(f"{path} is not there: pip install -e . first, or name one: --prunectl")
    return [named or str(path)]


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
        is_tree: it starts processes that work side by side; the memory of each is looked at.
        environment: variables it has beside those of this process.
        sent: says after a run how many bytes of each file a server has sent it; None: no server.
        walls, peaks, sums: seconds, bytes of the largest process, and bytes of the peaks of all
            that it starts (of trees alone), one each per round.
        received: what ``sent`` said, one each per round.
    """

    label: str
    command: list[str]
    prepare: Callable[[], None] = lambda: None
    baseline: str = COPY
    keeps_output: bool = False
    is_tree: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    sent: Callable[[], dict[str, int]] | None = None
    walls: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    received: list[dict[str, int]] = field(default_factory=list)


def clear_cache(cache: Path, *, keep_roles: bool) -> None:
    """Remove what prunectl has kept about models."""
    for entry in cache.iterdir():
        if entry.name.startswith("numba") or (keep_roles and entry.match("roles-*.json")):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def run(
    command: list[str],
    cache: Path,
    *,
    started: Callable[[int], None] = lambda process: None,
    environment: Mapping[str, str] | None = None,
) -> tuple[float, int]:
    """Run a fresh process to its end; returns its wall time in seconds and its peak RSS in bytes.

    The peak is that of the largest, if the process starts others and waits for them.
    A child's peak starts at the size its parent had when it started it: this module stays small.

    Args:
        started: is told the process's id.
        environment: variables it has beside those of this process; HF_HUB_OFFLINE is 1 without.
    """
    variables = os.environ | {"PRUNECTL_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as messages:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env=variables | dict(environment or {}),
        )
        started(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            messages.seek(0)
            tail = messages.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{tail}")
    return wall, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class TreeMemory:
    """The peaks of the processes that another one starts, as Linux counts them.

    Attributes:
        peaks: bytes by process id; what grows in a process's last moment is missed.
    """

    def __init__(self) -> None:
        self.peaks: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, process: int) -> None:
        """Look from now on until :meth:`end`."""
        self._thread = threading.Thread(target=self._look, args=(process,))
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _look(self, process: int) -> None:
        while not self._stop.wait(_LOOK):
            try:
                children = psutil.Process(process).children(recursive=True)
            except psutil.Error:
                return
            for child in children:
                if kib := facts_of(f"{child.pid}/status", "VmHWM"):
                    self.peaks[child.pid] = int(kib[0].split()[0]) * 1024


def run_job(job: Job, cache: Path) -> None:
    """Run a job once, and note its time and its peaks."""
    memory = TreeMemory()
    try:
        started = memory.watch if job.is_tree else (lambda process: None)
        wall, peak = run(job.command, cache, started=started, environment=job.environment)
    finally:
        memory.end()
    job.walls.append(wall)
    job.peaks.append(peak)
    if job.is_tree:
        job.sums.append(sum(memory.peaks.values()))
    if job.sent:
        job.received.append(job.sent())


def measure(jobs: list[Job], output: Path, cache: Path, rounds: int, log: Console) -> None:
    """Run all jobs in turn, ``rounds`` times, and note their times and peaks."""
    for number in range(1, rounds + 1):
        for job in jobs:
            job.prepare()
            os.sync()  # so that no job waits for the disk work of the one before
            run_job(job, cache)
            took = f"{job.walls[-1]:.2f} s, {job.peaks[-1] / MIB:.0f} MiB"
            log.print(f"round {number}/{rounds}  {job.label}: {took}")
            if not job.keeps_output:
                shutil.rmtree(output, ignore_errors=True)


def checkpoint(work: Path, size_gb: float, dtype: str) -> Path:
    """The checkpoint of that size, made in a process of its own unless it is there."""
    target = work / f"llama-{size_gb:g}gb-{dtype}"
    if not target.exists():
        maker = [sys.executable, str(HERE / "make_checkpoint.py"), str(target)]
        options = ["--size-gb", str(size_gb), "--dtype", dtype]
        subprocess.run(maker + options, check=True, stdout=sys.stderr)
    return target


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
            "sum_rss_mib": round(max(job.sums) / MIB, 1) if any(job.sums) else None,
            "received_bytes": max((sum(one.values()) for one in job.received), default=None),
            "runs_seconds": [round(wall, 3) for wall in job.walls],
            "command": job.command,
        }
        for job in jobs
    ]
