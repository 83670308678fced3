"""Run a kernel on torch's own threads.

torch keeps a pool of OpenMP threads, which spin for a while after each parallel operation. A second
pool would compete with them for the cores, so kernels run in torch's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from prunectl.lazy import torch


def run(function: Callable[[int], None], address: int, arguments: Any, threads: int) -> None:
    """Run a kernel, given as a function and as an address, on some threads of torch's pool.

    Without such a pool it runs on this thread alone.
    """
    parallel = _openmp() if threads > 1 else None
    if parallel is None:
        function(ctypes.addressof(arguments))
    else:
        parallel(address, ctypes.addressof(arguments), threads, 0)


@cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel`` of the OpenMP library that torch is linked to; None without one.

    Others may be loaded with it, each with a pool of its own: sentencepiece brings one. GNU's
    library has this function, and LLVM's and Intel's have it for compatibility.
    """
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # searched in what it is linked to
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function
