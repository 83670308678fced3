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

from prunectl.ranks.errors import RankFailed, RanksLost, in_short

_EVERY = 0.5
"""Seconds from one look at the others to the next."""
_SILENT = 30.0
"""Seconds without a sign of life after which a process is given up."""
_PARTING = 2.0
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
        self.lost: RankFailed | RanksLost | None = None
        self._stop = threading.Event()
        self._heard = (0, time.monotonic())
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._run, name="prunectl-watch", daemon=True)
        self._thread.start()

    def fail(self, why: str, hint: str, code: int) -> None:
        """Tell the others that this rank cannot go on; the first to say so is believed."""
        self._said = True
        text = json.dumps([self._rank, socket.gethostname(), why, hint, code])
        with contextlib.suppress(RuntimeError):
            self._store.compare_set(_FAILED, "", text)

    def failure(self) -> RankFailed | RanksLost | None:
        """What another rank has said of its end, or of this one's."""
        with contextlib.suppress(RuntimeError):
            if self._store.check([_FAILED]):
                rank, host, why, hint, code = json.loads(self._store.get(_FAILED))
                if rank != self._rank:
                    return RankFailed(rank, host, why, hint=hint, code=code)
                if not self._said:
                    return RanksLost(f"this one {why}, the others have given it up")
        return None

    def end(self) -> None:
        """Stop watching; nobody waits for a sign of life of this rank any more."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"ended/{self._rank}", "1")

    def wait_for_others(self) -> None:
        """Give the others a moment to end by themselves: torchrun kills them when this one ends."""
        until = time.monotonic() + _PARTING
        with contextlib.suppress(RuntimeError):
            keys = [f"ended/{rank}" for rank in range(self._count)]
            while not self._store.check(keys) and time.monotonic() < until:
                time.sleep(0.05)
        time.sleep(0.2)  # what they have to say of it comes after that

    def _run(self) -> None:
        while not self._stop.wait(_EVERY):
            try:
                self._store.add(f"alive/{self._rank}", 1)
                self.lost = self.failure() or self._neighbour()
            except RuntimeError as error:
                self.lost = RanksLost(f"their meeting place is gone ({in_short(error)})")
            if self.lost is not None:
                if self._main is not None:
                    signal.pthread_kill(self._main, signal.SIGINT)
                self._cut()  # after the interrupt: what is cut off may look as if it were done
                return

    def _neighbour(self) -> RankFailed | RanksLost | None:
        """The next rank's end, if it has not been heard of for long."""
        other = (self._rank + 1) % self._count
        if other == self._rank or self._store.check([f"ended/{other}"]):
            return None
        beats, since = self._heard
        found = int(self._store.add(f"alive/{other}", 0))
        now = time.monotonic()
        if found != beats:
            self._heard = (found, now)
        elif now - since > _SILENT:
            why = f"has not been heard of for {_SILENT:.0f} s"
            self._store.compare_set(_FAILED, "", json.dumps([other, "its host", why, _HINT, 1]))
            return self.failure()
        return None


_HINT = "it was killed, or its host is gone; the same command goes on from what is done"
