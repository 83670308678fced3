"""How kernels are compiled: one decorator for those of all rooms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop that releases the interpreter lock, at its first call with new types.

    The machine code is kept in numba's cache. An unprivileged user whose home is not there has no
    place for that, and compiles in every process.
    """
    try:
        return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder that numba can write to
        return njit(nogil=True)(function)  # type: ignore[no-any-return]
