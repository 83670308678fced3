"""Whether torchrun or ``accelerate launch`` started this process as one of several."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) for a process started alone.

    A batch system may set WORLD_SIZE for everything it starts; the processes belong together only
    if a rendezvous address is set too.
    """
    rank, count = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and count.isdecimal() and "MASTER_ADDR" in os.environ):
        return 0, 1
    return (int(rank), int(count)) if int(rank) < int(count) else (0, 1)


def on_this_host() -> int:
    """How many of these processes share this host's memory, from torchrun or accelerate."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(local)) if launched()[1] > 1 and local.isdecimal() else 1


def is_first_process() -> bool:
    """Whether this process prints: it is not a further process of torchrun or accelerate."""
    return launched()[0] == 0
