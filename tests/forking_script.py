"""Runs prunectl in forks of a process that has loaded the libraries, and interrupts them.

Reads one JSON object a line: ``args``, ``folder`` (where it runs and its stdout and stderr go),
``calls``; writes one: ``code``, ``calls``, ``left`` (whether processes of it are left).
Ctrl-C comes when so many Python functions have been called: what a run has done until then does not
depend on how fast the machine is. With 0 nothing is interrupted, and the calls are counted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import datasets  # noqa: F401
import torch
import transformers  # noqa: F401

from prunectl.__main__ import main

count = 0


def interrupt_after(calls: int) -> None:
    """Count the main thread's calls; the signal comes from another, at any place of this one."""
    reached = threading.Event()

    def send() -> None:
        reached.wait()
        os.kill(os.getpid(), signal.SIGINT)

    def called(frame: FrameType, event: str, argument: object) -> None:
        global count
        if event == "call":
            count += 1
            if count == calls:
                reached.set()
                time.sleep(0)

    threading.Thread(target=send, daemon=True).start()
    sys.setprofile(called)


def run(args: list[str], folder: Path, calls: int) -> int:
    """What a fork does; returns the exit code."""
    os.setsid()
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.argv = ["prunectl", *args]
    interrupt_after(calls)
    try:
        return main()
    finally:
        sys.setprofile(None)
        Path("calls").write_text(str(count))


def has_processes(group: int) -> bool:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def forked(args: list[str], folder: str, calls: int) -> dict[str, Any]:
    child = os.fork()
    if not child:
        code = 99  # of what goes past main
        try:
            code = run(args, Path(folder), calls)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = Path(folder, "calls")
    return {"code": code, "left": has_processes(child), "calls": int(found.read_text())}


torch.set_num_threads(1)
for line in sys.stdin:
    print(json.dumps(forked(**json.loads(line))), flush=True)
