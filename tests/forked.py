"""Work in a copy of this process, which may be killed: it need not load the libraries again."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """What the copy ends with: 0, 1 after an exception, or minus the signal that has killed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn where threads run
        copy = os.fork()
    if not copy:
        signal.alarm(600)  # instead of waiting without end
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_after(owner: object, name: str, times: int = 1) -> None:
    """Let this process die behind a call of a function of ``owner``."""
    whole, calls = getattr(owner, name), []

    def wrapped(*args: object, **options: object) -> object:
        result = whole(*args, **options)
        calls.append(name)
        if len(calls) == times:
            die()
        return result

    setattr(owner, name, wrapped)


def dying_before(owner: object, name: str, times: int = 1) -> None:
    whole, calls = getattr(owner, name), []

    def wrapped(*args: object, **options: object) -> object:
        calls.append(name)
        if len(calls) == times:
            die()
        return whole(*args, **options)

    setattr(owner, name, wrapped)
