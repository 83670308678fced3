"""Where the processes of one command meet, each when it has started."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from blake3 import blake3

from prunectl.events import Note, OnEvent
from prunectl.parallel.errors import RanksLost, in_short
from prunectl.parallel.link import Link

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
    from torch.distributed.distributed_c10d import PrefixStore

    try:
        place = PrefixStore(f"prunectl-{group}", _store(rank, count, on_event))
        ours = PrefixStore(_roll_call(place, rank, count, on_event), place)

        def connected() -> tuple[Store, Link]:
            return ours.clone(), Link(ours, rank, count)  # type: ignore[attr-defined]

        return answer_to(connected, _MEETING.total_seconds())
    except (RuntimeError, ValueError, OSError) as error:
        hint = _ENVIRONMENT if isinstance(error, ValueError) else _NETWORK
        raise RanksLost(f"they did not meet ({in_short(error)})", hint=hint) from None


def _store(rank: int, count: int, on_event: OnEvent) -> Store:
    """Open torch's store that all ranks share.

    Waits in a thread: Ctrl-C does not end a wait in torch.
    """
    from torch.distributed.rendezvous import rendezvous

    found: Future[Store] = Future()

    def come() -> None:
        try:
            store = next(rendezvous("env://", rank, count, timeout=_MEETING))[0]
            _open.append(store)
            found.set_result(store)
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=come, name="prunectl-meeting", daemon=True).start()
    try:
        return found.result(_PATIENCE)
    except TimeoutError:
        host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
        if not found.done() and (rank == 0 or not _listens(host, port)):
            on_event(Note(f"rank {rank} of {count} waits for the others at {host}:{port}"))
        return found.result()


def _listens(host: str, port: str) -> bool:
    """Whether rank 0 has arrived, and so reports missing ranks itself."""
    with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), 1.0):
        return True
    return False


def _roll_call(store: Store, rank: int, count: int, on_event: OnEvent) -> str:
    """Wait until all ranks have arrived, so that connecting them needs no long timeout.

    torchrun restarts failed processes with the same store and its old contents. So each rank writes
    a new name, rank 0 publishes the names that it reads, and every rank confirms those that count.

    Returns:
        A name that only this meeting has.

    Raises:
        RuntimeError: a rank does not arrive.
    """
    own, began, longest = uuid.uuid4().hex, time.monotonic(), _MEETING.total_seconds()
    answer_to(lambda: store.set(f"here/{rank}", own), longest)
    told = False
    while True:
        name = answer_to(partial(_answered, store, rank, count, own), longest)
        if name:
            return blake3(name.encode()).hexdigest(length=16)
        waited = time.monotonic() - began
        if waited > min(_PATIENCE, longest):
            missing = answer_to(partial(_missing, store, count), longest)
            if waited > longest:
                raise RuntimeError(f"rank {missing} did not come")
            if not told and 0 in (rank, missing):  # only one rank reports, if it has arrived
                on_event(Note(f"rank {rank} of {count} waits for rank {missing} to start"))
                told = True
        time.sleep(0.05)


def _answered(store: Store, rank: int, count: int, own: str) -> str:
    """Do this rank's part of the roll call; return the confirmed names, '' until then."""
    calls = [f"here/{other}" for other in range(count)]
    if rank == 0 and store.check(calls):
        names = ",".join(name.decode() for name in store.multi_get(calls))
        store.set("roll", names)
        if all(_get(store, f"answer/{other}") == names for other in range(1, count)):
            store.set("complete", names)
            return names
    if rank and own in (names := _get(store, "roll")):
        store.set(f"answer/{rank}", names)
        if _get(store, "complete") == names:
            return names
    return ""


def _missing(store: Store, count: int) -> int:
    """The first rank that has not arrived; 0 if all have."""
    return next((one for one in range(count) if not store.check([f"here/{one}"])), 0)


def _get(store: Store, key: str) -> str:
    """A value that may not exist yet."""
    return store.get(key).decode() if store.check([key]) else ""


Answer = TypeVar("Answer")

_STEP = 0.1


class NoAnswer(RuntimeError):
    """The store did not answer in time."""


def answer_to(
    question: Callable[[], Answer], patience: float, stop: threading.Event | None = None
) -> Answer:
    """Call torch's store, and return its answer.

    When the store's host hangs, no call returns, and neither its timeout nor a signal ends it. So
    the call runs in a thread of its own, which is abandoned then.

    Args:
        patience: seconds. Time in which this process is suspended does not count.
        stop: when set, wait only briefly.

    Raises:
        NoAnswer: no answer in time.
        RuntimeError: raised by the store.
    """
    found: Future[Answer] = Future()

    def ask() -> None:
        try:
            found.set_result(question())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=ask, name="prunectl-asking", daemon=True).start()
    waited = 0.0
    while waited < patience:
        try:
            return found.result(_STEP)
        except TimeoutError:
            if found.done():  # just now, or by such an error
                return found.result()
        waited += _STEP
        if stop is not None and stop.is_set():
            break
    raise NoAnswer("it does not answer")
