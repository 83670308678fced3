"""Sees to it that all processes end when one cannot go on: each watches the others meanwhile.

What a rank that fails says of it, and its sign of life, are keys of the store that torch's
processes meet at. A rank that finds another failed interrupts itself as Ctrl-C does, so that what
is half done is dropped, and what is done is kept, by the same code.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from prunectl.parallel.errors import RankFailed, RanksLost, in_short
from prunectl.parallel.rendezvous import Answer, NoAnswer, answer_to

_EVERY = 0.5
"""Seconds from one look at the others to the next."""
_SILENT = 30.0
"""Seconds without a sign of life after which a process, or the store, is given up."""
_PARTING = 2.0
"""Seconds that a process takes to tell the others of its end, and to see theirs."""
_GLANCE = 0.5
"""Seconds in which it is found out whether another one's end is behind this one's."""
_FAILED = "failed"


class Watch:
    """A thread that looks after the other ranks, and shows them that this one lives.

    Args:
        store: of torch.distributed, with a connection of its own. rank, count: of the processes.
        cut: ends what the main thread waits for where an interrupt does not; called in this thread.

    Attributes:
        lost: what made this process stop; None while all is well.
    """

    def __init__(self, store: Any, rank: int, count: int, cut: Callable[[], None]) -> None:
        self._store, self._rank, self._count, self._cut = store, rank, count, cut
        self._said = False
        self._answers = True
        self.lost: RankFailed | RanksLost | None = None
        self._stop = threading.Event()
        self._heard = (0, 0)
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._run, name="prunectl-watch", daemon=True)
        self._thread.start()

    # --- in the main thread, which never waits for the store without end ------------------------

    def fail(self, why: str, hint: str, code: int) -> None:
        """Tell the others that this rank cannot go on; the first to say so is believed."""
        self._said = True
        text = json.dumps([self._rank, socket.gethostname(), why, hint, code])
        self._tell(lambda: self._store.compare_set(_FAILED, "", text))

    def failure(self) -> RankFailed | RanksLost | None:
        """What another rank has said of its end, or of this one's; None if that is not known."""
        if self._answers:
            with contextlib.suppress(RuntimeError):
                return answer_to(self._failure, _GLANCE)
        return None

    def end(self) -> None:
        """Stop watching; nobody waits for a sign of life of this rank any more."""
        self._stop.set()
        self._thread.join()
        self._tell(lambda: self._store.set(f"ended/{self._rank}", "1"))

    def wait_for_others(self) -> None:
        """Give the others a moment to end by themselves: torchrun kills them when this one ends."""
        until = time.monotonic() + _PARTING
        keys = [f"ended/{rank}" for rank in range(self._count)]
        while self._tell(lambda: self._store.check(keys)) is False and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)  # what they have to say of it comes after that

    def _tell(self, what: Callable[[], Answer]) -> Answer | None:
        """What the store answers; None if it does not, after which it is not asked again."""
        if self._answers:
            try:
                return answer_to(what, _PARTING)
            except NoAnswer:
                self._answers = False
            except RuntimeError:  # it is gone
                pass
        return None

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        look = 0
        while not self._stop.wait(_EVERY):
            look += 1
            lost = self._look(look)
            if lost is not None and not self._stop.is_set():
                self.lost = lost
                if self._main is not None:
                    signal.pthread_kill(self._main, signal.SIGINT)
                self._cut()  # after the interrupt: what is cut off may look as if it were done
                return

    def _look(self, look: int) -> RankFailed | RanksLost | None:
        """Show a sign of life, and see what has become of the others."""

        def ask() -> RankFailed | RanksLost | None:
            self._store.add(f"alive/{self._rank}", 1)
            return self._failure() or self._neighbour(look)

        try:
            return answer_to(ask, _SILENT, self._stop)
        except NoAnswer:
            if not self._stop.is_set():
                self._answers = False
            return RanksLost(
                f"their meeting place has not answered for {_SILENT:.0f} s", hint=_HUNG
            )
        except RuntimeError as error:
            return RanksLost(f"their meeting place is gone ({in_short(error)})")

    def _failure(self) -> RankFailed | RanksLost | None:
        if self._store.check([_FAILED]):
            rank, host, why, hint, code = json.loads(self._store.get(_FAILED))
            if rank != self._rank:
                return RankFailed(rank, host, why, hint=hint, code=code)
            if not self._said:
                return RanksLost(f"this one {why}, the others have given it up")
        return None

    def _neighbour(self, look: int) -> RankFailed | RanksLost | None:
        """The next rank's end, if it has not been heard of for long.

        That is told by our own looks, not by a clock, which goes on while all are suspended.
        """
        other = (self._rank + 1) % self._count
        if other == self._rank or self._store.check([f"ended/{other}"]):
            return None
        beats, since = self._heard
        found = int(self._store.add(f"alive/{other}", 0))
        if found != beats:
            self._heard = (found, look)
        elif (look - since) * _EVERY > _SILENT:
            why = f"has not been heard of for {_SILENT:.0f} s"
            self._store.compare_set(_FAILED, "", json.dumps([other, "its host", why, _HINT, 1]))
            return self._failure()
        return None


_HINT = "it was killed, or its host is gone; the same command goes on from what is done"
_HUNG = "its host, that of rank 0, hangs or is cut off; the same command goes on from what is done"
