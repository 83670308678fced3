"""Faults on demand: what shall go wrong at which route, and how often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Cut = Literal["", "before", "middle", "after", "answer"]


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        route: name of the route, as in ``server.ROUTES``; ``*`` is any.
        name: of a file: only requests for the bytes of files whose names end so.
        times: how often.
        status: answer with this status instead of doing anything.
        message: in the body and the header ``X-Error-Message`` of that answer.
        headers: of that answer.
        cut: reset the connection: ``before`` anything is read, in the ``middle`` of the body, or
            ``after`` all was done, instead of the answer; or in the middle of the ``answer``.
        delay: seconds between two blocks of the body that are read.
        skip: requests that pass unharmed first.
        call: called before the request is handled, for example to commit something else.
    """

    route: str
    name: str = ""
    times: int = 1
    status: int = 0
    message: str = "broken on demand"
    headers: dict[str, str] = field(default_factory=dict)
    cut: Cut = ""
    delay: float = 0.0
    skip: int = 0
    call: Callable[[], None] | None = None


class Faults:
    """Those that are still to happen."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        self._waiting.append(fault)

    def clear(self) -> None:
        self._waiting.clear()

    @property
    def left(self) -> list[str]:
        """Routes whose faults did not all happen."""
        return [fault.route for fault in self._waiting]

    def take(self, route: str, name: str) -> Fault | None:
        """The fault that happens to a request; ``name`` is of the file whose bytes it asks for."""
        with self._lock:
            for fault in self._waiting:
                if fault.route not in (route, "*") or not name.endswith(fault.name):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                if not fault.times:
                    self._waiting.remove(fault)
                return fault
        return None
