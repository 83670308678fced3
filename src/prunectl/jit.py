"""One decorator for compiling all kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop that releases the interpreter lock, at its first call with new types.

    The machine code is kept in numba's cache. If the cache cannot be written (an unprivileged user
    without a home, a full disk), every process compiles again, which costs only time.
    """
    try:
        compiled: Any = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no folder for the cache
        compiled = njit(nogil=True)(function)
    if (cache := getattr(compiled, "_cache", None)) is not None:  # None: NUMBA_DISABLE_JIT
        cache.save_overload = _forgiving(cache.save_overload)
    return compiled  # type: ignore[no-any-return]


def _forgiving(save: Callable[..., None]) -> Callable[..., None]:
    """Like ``save``, but silent if the system refuses to write."""

    def attempt(*args: Any) -> None:
        with suppress(OSError):
            save(*args)

    return attempt
