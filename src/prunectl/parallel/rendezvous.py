"""Where the processes of one command meet, each when it has started."""

from __future__ import annotations

import datetime
import os
import time
import uuid
from typing import TYPE_CHECKING

from prunectl.events import Note, OnEvent
from prunectl.parallel.errors import RanksLost, in_short
from prunectl.parallel.link import Link
from prunectl.parallel.waiting import in_thread

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


_MEETING = datetime.timedelta(minutes=10)
"""Timeout of waiting for the others to start."""
_PATIENCE = 10.0
"""Seconds after which a note names the missing ranks."""
_NETWORK = "each host must reach the others; GLOO_SOCKET_IFNAME=NAME chooses the network"
_ENVIRONMENT = (
    "torchrun and accelerate launch set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; a process "
    "that runs alone has none of them"
)

_open: list[Store] = []
"""Stores of earlier meetings. They keep rank 0's server running: one that was stopped and started
again would have lost the names of ranks that had arrived for the next meeting already."""


def meet(rank: int, count: int, group: int, on_event: OnEvent) -> tuple[Store, Link]:
    """Wait for all ranks, and connect them.

    Args:
        group: number of the meeting, the same on every rank, new each time.
        on_event: receives a note on missing ranks after a while.

    Returns:
        The store for heartbeats and errors, with a connection of its own; and the link.

    Raises:
        RanksLost: the processes do not meet.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    waits_for = [f"the others at {host}:{port}"]

    def come() -> tuple[Store, Link]:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        _open.append(next(rendezvous("env://", rank, count, timeout=_MEETING))[0])
        place = PrefixStore(f"prunectl-{group}", _open[-1])
        ours = PrefixStore(_roll_call(place, rank, count, waits_for), place)
        return ours.clone(), Link(ours, rank, count)  # type: ignore[attr-defined]

    try:
        met = in_thread(come)
        try:
            return met.result(_PATIENCE)
        except TimeoutError:
            for whom in [] if met.done() else waits_for:
                on_event(Note(f"rank {rank} of {count} waits for {whom}"))
            return met.result()
    except (RuntimeError, ValueError, OSError) as error:
        hint = _ENVIRONMENT if isinstance(error, ValueError) else _NETWORK
        raise RanksLost(f"they did not meet ({in_short(error)})", hint=hint) from None


def _roll_call(store: Store, rank: int, count: int, waits_for: list[str]) -> str:
    """Wait until all ranks have arrived, so that connecting them needs no long timeout.

    torchrun restarts failed processes with the same store and its old contents, which torch's
    ``init_process_group`` takes for the new ones. So rank 0 publishes a new name, the others answer
    to it by new names of their own, and the meeting counts for those whose answers rank 0 repeats.

    Args:
        waits_for: receives who is missing, on ranks that report it.

    Returns:
        A name that only this meeting has.

    Raises:
        RuntimeError: a rank does not arrive.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + _MEETING.total_seconds()
    if rank == 0:
        store.set("name", own)
    while True:
        name = own if rank == 0 else _get(store, "name")
        if name:
            store.set(f"{name}/{rank}", own)
        answers = [f"{name}/{one}" for one in range(count)]
        missing = next((one for one in range(count) if not store.check([answers[one]])), 0)
        if rank == 0 and not missing:
            store.set(f"{name}/all", ",".join(_get(store, key) for key in answers))
        if own in _get(store, f"{name}/all"):
            return name
        waits_for[:] = [f"rank {missing} to start"] if 0 in (rank, missing) else []
        if time.monotonic() > until:
            raise RuntimeError(f"rank {missing} did not come")
        time.sleep(0.05)


def _get(store: Store, key: str) -> str:
    """A value that may not exist yet."""
    return store.get(key).decode() if store.check([key]) else ""
