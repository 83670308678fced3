"""Where the processes of one command come together, each when it has started."""

from __future__ import annotations

import datetime
import os
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from prunectl.events import Note, OnEvent
from prunectl.ranks.errors import RanksLost, in_short
from prunectl.ranks.link import Link

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_MEETING = datetime.timedelta(minutes=10)
"""How long a process waits for the others to start."""
_PATIENCE = 10.0
"""Seconds after which it is said who is waited for."""
_NETWORK = "each host must reach the others; GLOO_SOCKET_IFNAME=NAME says by which network"
_ENVIRONMENT = (
    "torchrun and accelerate launch set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; a process "
    "that is to be alone has none of them"
)


def meet(rank: int, count: int, group: int, on_event: OnEvent) -> tuple[Store, Link]:
    """Wait for all, and connect them.

    Args:
        group: the same number on every rank, another one each time.
        on_event: told after a while who is waited for.

    Returns:
        What they tell one another of themselves, with a connection of its own; and the link.

    Raises:
        RanksLost: they do not meet.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    try:
        ours = PrefixStore(f"prunectl-{group}", _store(rank, count, on_event))
        _wait_for_all(ours, rank, count, on_event)
        return ours.clone(), Link(ours, rank, count)  # type: ignore[attr-defined]
    except (RuntimeError, ValueError, OSError) as error:
        hint = _ENVIRONMENT if isinstance(error, ValueError) else _NETWORK
        raise RanksLost(f"they did not meet ({in_short(error)})", hint=hint) from None


def _store(rank: int, count: int, on_event: OnEvent) -> Store:
    """What torch keeps for all of them.

    It is waited for in a thread: inside of torch, no Ctrl-C would end the waiting.
    """
    from torch.distributed.rendezvous import rendezvous

    found: Future[Store] = Future()

    def come() -> None:
        try:
            found.set_result(next(rendezvous("env://", rank, count, timeout=_MEETING))[0])
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=come, name="prunectl-meeting", daemon=True).start()
    try:
        return found.result(_PATIENCE)
    except TimeoutError:
        if not found.done():
            place = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
            on_event(Note(f"rank {rank} of {count} waits for the others at {place}"))
        return found.result()


def _wait_for_all(store: Store, rank: int, count: int, on_event: OnEvent) -> None:
    """Until all have come, so that from then on they need no patience with one another.

    Raises:
        RuntimeError: one does not come.
    """
    store.set(f"here/{rank}", "1")
    began = time.monotonic()
    told = False
    for other in range(count):
        while not store.check([f"here/{other}"]):
            waited = time.monotonic() - began
            if waited > _MEETING.total_seconds():
                raise RuntimeError(f"rank {other} did not come")
            if waited > _PATIENCE and not told and 0 in (rank, other):  # one speaks, if it came
                told = True
                on_event(Note(f"rank {rank} of {count} waits for rank {other} to start"))
            time.sleep(0.05)
