"""Where the processes of one command come together, each when it has started."""

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
        place = PrefixStore(f"prunectl-{group}", _store(rank, count, on_event))
        ours = PrefixStore(_roll_call(place, rank, count, on_event), place)

        def connected() -> tuple[Store, Link]:
            return ours.clone(), Link(ours, rank, count)  # type: ignore[attr-defined]

        return answer_to(connected, _MEETING.total_seconds())
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
        host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
        if not found.done() and (rank == 0 or not _listens(host, port)):
            on_event(Note(f"rank {rank} of {count} waits for the others at {host}:{port}"))
        return found.result()


def _listens(host: str, port: str) -> bool:
    """Whether the first rank is at the meeting place, and says itself who is waited for."""
    with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), 1.0):
        return True
    return False


def _roll_call(store: Store, rank: int, count: int, on_event: OnEvent) -> str:
    """Wait until all have come, so that from then on they need no patience with one another.

    torchrun starts failed processes again with the store that they had, and what they left in it.
    So each calls a name of its own; rank 0 reads them out, and all answer to the ones that count.

    Returns:
        A name for this meeting, as no other has it.

    Raises:
        RuntimeError: one does not come.
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
            if not told and 0 in (rank, missing):  # one speaks, if it came
                on_event(Note(f"rank {rank} of {count} waits for rank {missing} to start"))
                told = True
        time.sleep(0.05)


def _answered(store: Store, rank: int, count: int, own: str) -> str:
    """Do this rank's part of the roll call; the names that have all answered, '' until then."""
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
    """The first rank that has not come; 0 if all have."""
    return next((one for one in range(count) if not store.check([f"here/{one}"])), 0)


def _get(store: Store, key: str) -> str:
    """A value that may not be there yet."""
    return store.get(key).decode() if store.check([key]) else ""


Answer = TypeVar("Answer")

_STEP = 0.1


class NoAnswer(RuntimeError):
    """The store has not answered in time."""


def answer_to(
    question: Callable[[], Answer], patience: float, stop: threading.Event | None = None
) -> Answer:
    """What a call of torch's store returns.

    When the store's host hangs, no call of it comes back, and neither its timeout nor a signal ends
    it. So it is made by a thread of its own, which then is left behind.

    Args:
        patience: seconds. Those in which this process stands still do not count, as when all of
            them are suspended together.
        stop: when set, an answer that does not come soon is not waited for.

    Raises:
        NoAnswer: not in time. RuntimeError: what the store raises.
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
