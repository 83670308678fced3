"""Whether this process is one of several: torchrun and ``accelerate launch`` say so to each."""

from __future__ import annotations

import os


def launched() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) for one that was started alone.

    A cluster's batch system may set WORLD_SIZE for all it starts; only where there is also an
    address to meet at are these processes one another's.
    """
    rank, count = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and count.isdecimal() and "MASTER_ADDR" in os.environ):
        return 0, 1
    return (int(rank), int(count)) if int(rank) < int(count) else (0, 1)


def on_this_host() -> int:
    """How many of these processes share this host's memory; torchrun and accelerate say so."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(told)) if launched()[1] > 1 and told.isdecimal() else 1


def is_first_process() -> bool:
    """Whether this is the one that speaks: no further process of torchrun's or accelerate's."""
    return launched()[0] == 0
