"""Ranks without a launcher, each a fork of one process that has loaded what all of them need.

Loading torch, transformers and numba takes a process of its own seconds, and so does the end of its
interpreter, which forks leave out. Signals and sockets are as for processes that torchrun starts.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

COMMAND = "import sys; from prunectl.cli.run import run; sys.exit(run(sys.argv[1:]))"
SECONDS = 300.0
"""Longer than anything takes here, however busy the machine is."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *(f"prunectl.{room}.verb" for room in ("analysis", "exporting", "pruning", "verification")),
        *(f"prunectl.cli.{name}" for name in ("run", "analyze", "export", "prune", "verify")),
        "prunectl.calibration.run", "prunectl.layouts.table", "prunectl.parallel.joining",
        *(f"transformers.models.{name}.modeling_{name}" for name in ("bert", "llama", "mixtral")),
        "torch.distributed.rendezvous",
    ]
)  # fmt: skip


@dataclass
class Rank:
    """A process that was started, and the files that its output goes to."""

    process: ForkServerProcess
    out: Path
    err: Path


def _main(
    program: str, arguments: Sequence[str], folder: Path, environment: dict[str, str], out: Path,
    err: Path,
) -> None:  # fmt: skip
    """Run a program's text as ``python -c`` does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    gc.freeze()  # a collection would copy the memory of all that is loaded
    sys.argv = ["-c", *arguments]
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not; coverage has one


def start(
    count: int, arguments: Sequence[str], folder: Path, program: str = COMMAND, **more: str
) -> list[Rank]:
    """So many ranks of a command, or of another program's text, in a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(count):
        out, err = (folder / f".rank {rank} {name}" for name in ("out", "err"))
        environment = {**os.environ, **place, "RANK": str(rank), **more}
        target = (program, list(arguments), folder, environment, out, err)
        ranks.append(Rank(_CONTEXT.Process(target=_main, args=target), out, err))
        ranks[-1].process.start()
    return ranks


def ends(ranks: Sequence[Rank], stopped: Sequence[Rank] = ()) -> list[tuple[int | None, str, str]]:
    """Exit code, stdout and stderr of each; none of them, nor of those that stand still, is left.

    Those that stand still are there until the others have ended.
    """
    try:
        for rank in ranks:
            rank.process.join(SECONDS)
        assert all(rank.process.exitcode is not None for rank in ranks), "a rank does not end"
        assert all(rank.process.exitcode is None for rank in stopped)
        return [(one.process.exitcode, one.out.read_text(), one.err.read_text()) for one in ranks]
    finally:
        for rank in (*ranks, *stopped):
            rank.process.kill()
            rank.process.join()
            for path in (rank.out, rank.err):
                path.unlink(missing_ok=True)


def until(happened: Callable[[], bool]) -> None:
    """Wait for an event."""
    latest = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < latest
        time.sleep(0.05)
