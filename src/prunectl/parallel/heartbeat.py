"""Ends all processes when one fails: each watches the others in a thread.

A rank's error and its heartbeats are keys of the store of torch's rendezvous. A rank that finds
another one failed interrupts itself as Ctrl-C does: the same code drops unfinished work and keeps
finished work.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from prunectl.parallel.errors import RankFailed, RanksLost, in_short
from prunectl.parallel.waiting import Answer, answer_to

_EVERY = 0.5
"""Seconds between two looks at the other ranks."""
_SILENT = 30.0
"""Seconds without a heartbeat after which a process, or the store, counts as lost."""
_PARTING = 2.0
"""Seconds that a failing process waits for an answer of the store, and for the others to end."""
_FAILED = "failed"


class Watch:
    """A thread that watches the other ranks and sends this rank's heartbeat.

    Args:
        store: of torch.distributed, with a connection of its own.
        rank, count: of the processes.
        cut: ends waits of the main thread that an interrupt does not end; called in this thread.

    Attributes:
        lost: the error that made this process stop; None while nothing failed.
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

    # --- in the main thread, which never waits for the store without a limit --------------------

    def fail(self, why: str, hint: str, code: int) -> None:
        """Report to the other ranks that this one failed; only the first report counts."""
        self._said = True
        text = json.dumps([self._rank, socket.gethostname(), why, hint, code])
        self._ask(lambda: self._store.compare_set(_FAILED, "", text))

    def failure(self) -> RankFailed | RanksLost | None:
        """The failure that another rank reported, of itself or of this rank; None if unknown."""
        return self._ask(self._failure)

    def end(self) -> None:
        """Stop watching, and mark this rank as ended: no heartbeat is expected from it."""
        self._stop.set()
        self._thread.join()
        self._ask(lambda: self._store.set(f"ended/{self._rank}", "1"))

    def wait_for_others(self) -> None:
        """Give the others a moment to end by themselves: torchrun kills them when this one ends."""
        until = time.monotonic() + _PARTING
        keys = [f"ended/{rank}" for rank in range(self._count)]
        while self._ask(lambda: self._store.check(keys)) is False and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)  # they print their errors after marking themselves ended

    def _ask(self, call: Callable[[], Answer]) -> Answer | None:
        """Call the store; None if it does not answer, and then it is not called again."""
        if self._answers:
            try:
                return answer_to(call, _PARTING)
            except TimeoutError:
                self._answers = False
            except RuntimeError:  # the store is gone
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
                self._cut()  # after the interrupt: aborted work may look finished
                return

    def _look(self, look: int) -> RankFailed | RanksLost | None:
        """Send a heartbeat and check the other ranks."""

        def ask() -> RankFailed | RanksLost | None:
            self._store.add(f"alive/{self._rank}", 1)
            return self._failure() or self._neighbour(look)

        try:
            return answer_to(ask, _SILENT, self._stop)
        except TimeoutError:
            if not self._stop.is_set():
                self._answers = False
            return RanksLost(
                f"the rendezvous store has not answered for {_SILENT:.0f} s", hint=_HUNG
            )
        except RuntimeError as error:
            return RanksLost(f"the rendezvous store is gone ({in_short(error)})")

    def _failure(self) -> RankFailed | RanksLost | None:
        if self._store.check([_FAILED]):
            rank, host, why, hint, code = json.loads(self._store.get(_FAILED))
            if rank != self._rank:
                return RankFailed(rank, host, why, hint=hint, code=code)
            if not self._said:
                return RanksLost(f"this one {why}; the others gave up on it")
        return None

    def _neighbour(self, look: int) -> RankFailed | RanksLost | None:
        """The failure of the next rank, if its heartbeats stopped for long.

        Time is counted in looks: a clock would go on while all processes are suspended.
        """
        other = (self._rank + 1) % self._count
        if other == self._rank or self._store.check([f"ended/{other}"]):
            return None
        beats, since = self._heard
        found = int(self._store.add(f"alive/{other}", 0))
        if found != beats:
            self._heard = (found, look)
        elif (look - since) * _EVERY > _SILENT:
            why = f"has sent no heartbeat for {_SILENT:.0f} s"
            self._store.compare_set(_FAILED, "", json.dumps([other, "its host", why, _HINT, 1]))
            return self._failure()
        return None


_HINT = "it was killed, or its host is gone; the same command resumes from the finished work"
_HUNG = "rank 0's host hangs or is cut off; the same command resumes from the finished work"
