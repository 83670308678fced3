"""Waits for torch that a signal can end.

torch's own timeouts do not replace them. A call of a TCPStore whose host hangs never returns,
whatever its timeout; aborting a gloo group leaves its pending work waiting; and neither is ended by
Ctrl-C, which Python handles only once torch has returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")

_STEP = 0.1


def in_thread(call: Callable[[], Answer]) -> Future[Answer]:
    """Start a call in a thread of its own, which does not keep the process alive."""
    found: Future[Answer] = Future()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="prunectl-waits", daemon=True).start()
    return found


def answer_to(
    call: Callable[[], Answer], patience: float, stop: threading.Event | None = None
) -> Answer:
    """Return what a call of torch's store returns; the call is abandoned if that takes too long.

    Args:
        patience: seconds. Time in which this process is suspended does not count.
        stop: when set, wait only briefly.

    Raises:
        TimeoutError: no answer in time.
        RuntimeError: raised by the store.
    """
    found = in_thread(call)
    waited = 0.0
    while waited < patience and not (waited and stop is not None and stop.is_set()):
        try:
            return found.result(_STEP)
        except TimeoutError:
            waited += _STEP
    raise TimeoutError("it does not answer")
