"""How the processes of one command meet, and how they part."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prunectl.errors import PrunectlError
from prunectl.events import OnEvent, ignore_events
from prunectl.parallel.errors import RanksDiffer, RanksLost
from prunectl.parallel.heartbeat import Watch
from prunectl.parallel.launched import launched
from prunectl.parallel.ranks import ALONE, Ranks
from prunectl.parallel.rendezvous import meet

_FIRST_SPEAKS = 0.5
"""Seconds that a rank other than 0 holds back its error: often all ranks raise the same one."""
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_AT_ONCE = 5.0
"""Seconds within which repeated signals count as one. The terminal sends Ctrl-C to all processes,
and torchrun sends another signal to those that it started; cleaning up must not be interrupted.
"""


_groups = itertools.count()
"""Numbers the meetings of these processes: each uses its own name in the store."""


@contextmanager
def joined_ranks(on_event: OnEvent = ignore_events) -> Iterator[Ranks]:
    """The processes that torchrun or ``accelerate launch`` started for one command.

    A process that was started alone gets :data:`ALONE`. When a process leaves the ``with`` block by
    an error or is killed, the others leave within seconds, with :class:`RankFailed` stating why.
    Enter the block in the main thread: errors of other ranks arrive there as Ctrl-C does.

    Args:
        on_event: receives a :class:`Note` with the missing rank if one does not start soon.

    Raises:
        RankFailed: another process failed.
        RanksLost: the processes cannot be joined.
        ValueError: not the main thread.
    """
    rank, count = launched()
    if count == 1:
        yield ALONE
        return
    with _interruptible() as interruptible:
        store, link = meet(rank, count, next(_groups), on_event)
        watch = Watch(store, rank, count, link.cut)
        left: SystemExit | None = None
        ranks = Ranks(link)
        try:
            try:
                yield ranks
            except SystemExit as error:
                if error.code:
                    raise
                left = error  # counts as the end of the block
            ranks.check_same("end", None, hint="")  # nobody leaves before all are done
        except BaseException as error:
            interruptible.clear()
            other = _other(watch, error, rank)
            if other is None and not isinstance(error, RanksDiffer):
                watch.fail(*_words(error))
            watch.end()
            link.cut()  # or pending work would keep the process alive
            watch.wait_for_others()
            link.abandon()
            if other is not None:
                raise other from error
            raise
        interruptible.clear()
        watch.end()
        with contextlib.suppress(RuntimeError):
            link.close()
        if left is not None:
            raise left


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt for signals while the event is set, also where a shell ignores them.

    The signals are Ctrl-C, torchrun's when another process ended, and that of our own watch.
    """
    wanted = threading.Event()
    wanted.set()
    last = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if wanted.is_set() and time.monotonic() - last > _AT_ONCE:
            last = time.monotonic()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _STOPPING}
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _other(watch: Watch, error: BaseException, rank: int) -> PrunectlError | None:
    """Another process's error that caused this one; None if this one is the first."""
    waits = rank != 0 or isinstance(error, RanksLost)
    until = time.monotonic() + (_FIRST_SPEAKS if waits else 0.0)
    while True:
        other = watch.lost or watch.failure()
        if other is not None or time.monotonic() > until:
            return other
        time.sleep(0.02)


def _words(error: BaseException) -> tuple[str, str, int]:
    """The report of an error to the other ranks: message, hint and exit code."""
    if isinstance(error, PrunectlError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "was interrupted", "", 130
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        return f"has ended by itself ({error.code})", "", code
    code = getattr(error, "exit_code", 1)  # as for a mistyped option
    return f"{type(error).__name__}: {error}", "", code
