"""How the processes of one command find one another, and how they part."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from prunectl.errors import PrunectlError
from prunectl.ranks.errors import RanksDiffer, RanksLost, in_short
from prunectl.ranks.launched import launched
from prunectl.ranks.link import Link
from prunectl.ranks.ranks import ALONE, Ranks
from prunectl.ranks.watch import Watch

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_MEETING = datetime.timedelta(minutes=10)
"""How long a process waits for the others to start."""
_FIRST_SPEAKS = 0.5
"""Seconds that another rank waits with its error: often all of them meet the same one."""
_STOPPING = (signal.SIGINT, signal.SIGTERM)


_groups = itertools.count()
"""Every time that processes join, they meet under another name in the same store."""


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The processes that torchrun or ``accelerate launch`` has started for one command.

    One that was started alone is alone. When a process leaves the block by an error, the others
    leave it within seconds, with :class:`RankFailed` saying why; and so they do if one is killed.
    It is entered in the main thread: others' errors arrive there as Ctrl-C does.

    Raises:
        RankFailed: another process could not go on. RanksLost: the processes cannot be joined.
        ValueError: not the main thread.
    """
    rank, count = launched()
    if count == 1:
        yield ALONE
        return
    with _interruptible() as interruptible:
        store, link = _met(rank, count)
        watch = Watch(store, rank, count, link.cut)
        try:
            yield Ranks(link)
            link.bytes_of(0)  # nobody leaves before all are done
        except BaseException as error:
            interruptible.clear()
            other = _other(watch, error, rank)
            if other is None and not isinstance(error, RanksDiffer):
                watch.fail(*_words(error))
            watch.end()
            link.cut()  # or the process may not end
            watch.wait_for_others()
            if other is not None:
                raise other from error
            raise
        interruptible.clear()
        watch.end()
        with contextlib.suppress(RuntimeError):
            link.close()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """While the event is set: Ctrl-C, what torchrun sends when another process has ended, and what
    our own watch sends raise KeyboardInterrupt, also where a shell has these ignored."""
    wanted = threading.Event()
    wanted.set()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if wanted.is_set():
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _STOPPING}
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _other(watch: Watch, error: BaseException, rank: int) -> PrunectlError | None:
    """The error that is behind this one, in another process; None if this one is the first."""
    waits = rank != 0 or isinstance(error, RanksLost)
    until = time.monotonic() + (_FIRST_SPEAKS if waits else 0.0)
    while True:
        other = watch.lost or watch.failure()
        if other is not None or time.monotonic() > until:
            return other
        time.sleep(0.02)


def _met(rank: int, count: int) -> tuple[Store, Link]:
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", rank, count, timeout=_MEETING))
        ours = PrefixStore(f"prunectl-{next(_groups)}", store)
        _wait_for_all(ours, rank, count)
        return ours.clone(), Link(ours, rank, count)  # type: ignore[attr-defined]
    except (RuntimeError, ValueError, OSError) as error:
        hint = "each host must reach the others; GLOO_SOCKET_IFNAME=NAME says by which network"
        raise RanksLost(f"they did not meet ({in_short(error)})", hint=hint) from None


def _wait_for_all(store: Store, rank: int, count: int) -> None:
    """Until all have come, so that from then on they need no patience with one another.

    Raises:
        RuntimeError: one does not come.
    """
    store.set(f"here/{rank}", "1")
    until = time.monotonic() + _MEETING.total_seconds()
    for other in range(count):
        while not store.check([f"here/{other}"]):
            if time.monotonic() > until:
                raise RuntimeError(f"rank {other} did not come")
            time.sleep(0.05)


def _words(error: BaseException) -> tuple[str, str, int]:
    """What the others are told of an error: what happened, what to do, and the exit code."""
    if isinstance(error, PrunectlError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "was interrupted", "", 130
    code = getattr(error, "exit_code", 1)  # as that of a mistyped option
    return f"{type(error).__name__}: {error}", "", code
