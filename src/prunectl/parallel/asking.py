"""Questions to the store that the processes meet at, none of which is waited for without end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

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
