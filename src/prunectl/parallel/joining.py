"""How the processes of one command find one another, and how they part."""

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
"""Seconds that another rank waits with its error: often all of them meet the same one."""
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_AT_ONCE = 5.0
"""Seconds in which one signal after another is the same one: the terminal sends Ctrl-C to all, and
torchrun to those that it has started. What is half done is dropped meanwhile, undisturbed."""


_groups = itertools.count()
"""Every time that processes join, they meet under another name in the same store."""


@contextmanager
def joined_ranks(on_event: OnEvent = ignore_events) -> Iterator[Ranks]:
    """The processes that torchrun or ``accelerate launch`` has started for one command.

    One that was started alone is alone. When a process leaves the block by an error, the others
    leave it within seconds, with :class:`RankFailed` saying why; and so they do if one is killed.
    It is entered in the main thread: others' errors arrive there as Ctrl-C does.

    Args:
        on_event: told, as :class:`Note`, for whom is waited if one does not start soon.

    Raises:
        RankFailed: another process could not go on. RanksLost: the processes cannot be joined.
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
                left = error  # as well as by the end of the block
            ranks.check_same("end", None, hint="")  # nobody leaves before all are done
        except BaseException as error:
            interruptible.clear()
            other = _other(watch, error, rank)
            if other is None and not isinstance(error, RanksDiffer):
                watch.fail(*_words(error))
            watch.end()
            link.cut()  # or the process may not end
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
    """While the event is set: Ctrl-C, what torchrun sends when another process has ended, and what
    our own watch sends raise KeyboardInterrupt, also where a shell has these ignored."""
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
    """The error that is behind this one, in another process; None if this one is the first."""
    waits = rank != 0 or isinstance(error, RanksLost)
    until = time.monotonic() + (_FIRST_SPEAKS if waits else 0.0)
    while True:
        other = watch.lost or watch.failure()
        if other is not None or time.monotonic() > until:
            return other
        time.sleep(0.02)


def _words(error: BaseException) -> tuple[str, str, int]:
    """What the others are told of an error: what happened, what to do, and the exit code."""
    if isinstance(error, PrunectlError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "was interrupted", "", 130
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        return f"has ended by itself ({error.code})", "", code
    code = getattr(error, "exit_code", 1)  # as that of a mistyped option
    return f"{type(error).__name__}: {error}", "", code
