"""Which form a weight is kept in: by its size, or by what was measured to be fast on this CPU."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Any

import llvmlite.binding as llvm
import torch
from torch.nn import functional

from prunectl._version import __version__
from prunectl.errors import InvalidOption
from prunectl.runtime.forms import FORMS, compress, reason_against
from prunectl.runtime.matrix import Matrix
from prunectl.runtime.selection import instructions
from prunectl.userdirs import cache_dir, write_cache_file

DENSE = "dense"

EXECUTIONS = {
    DENSE: "weights as torch keeps them",
    "compressed": "the smallest form of each weight",
    "auto": "the smallest form that is not slower than dense on this machine",
}

_TOLERANCE = 1.02
"""Repeated measurements of the same kernel differ by this much."""

_COLD = 96 << 20
"""Bytes that a measurement goes through: in a model, each weight comes from memory, not the cache."""

_PASSES = 3


def check_execution(execution: str) -> None:
    """Refuse an unknown execution.

    Raises:
        InvalidOption: it is not one of EXECUTIONS.
    """
    if execution not in EXECUTIONS:
        raise InvalidOption(
            f"execution '{execution}' is not known", hint=f"one of {', '.join(EXECUTIONS)}"
        )


def kept(weight: torch.Tensor, execution: str) -> Matrix | None:
    """A weight in the form that an execution gives it; None if it stays dense.

    Args:
        weight: [outputs, inputs].
        execution: ``compressed`` or ``auto``.
    """
    if reason_against(weight):
        return None
    made = [compress(weight, form) for form in FORMS]
    made = sorted((one for one in made if one.nbytes < weight.nbytes), key=lambda one: one.nbytes)
    if execution == "compressed" or not made:
        return next(iter(made), None)
    return next((one for one in made if one.form in _fast_forms(weight, made)), None)


def _fast_forms(weight: torch.Tensor, made: list[Matrix]) -> list[str]:
    """Forms whose product with one row takes no longer than torch's, from the cache or measured."""
    share = round(20 * float(weight.count_nonzero()) / weight.numel()) / 20
    key = f"{weight.shape[0]}x{weight.shape[1]} {weight.dtype} {share}"
    known = _known()
    if key not in known:
        dense = _seconds(weight.nbytes, _dense_copies(weight))
        known[key] = [
            one.form
            for one in made
            if _seconds(one.nbytes, _copies(one)) <= dense * _TOLERANCE
        ]
        text = json.dumps(known).encode()
        write_cache_file(_cache_name(), lambda file: file.write(text))
    return known[key]


Work = Callable[[int], list[Callable[[], Any]]]


def _dense_copies(weight: torch.Tensor) -> Work:
    inputs = torch.ones(1, weight.shape[1], dtype=weight.dtype)

    def make(count: int) -> list[Callable[[], Any]]:
        copies = [weight.clone() for _ in range(count)]
        return [lambda one=one: functional.linear(inputs, one) for one in copies]  # type: ignore[misc]

    return make


def _copies(matrix: Matrix) -> Work:
    inputs = torch.ones(1, matrix.columns, dtype=matrix.torch_dtype)

    def make(count: int) -> list[Callable[[], Any]]:
        copies = [matrix.copy() for _ in range(count)]
        return [lambda one=one: one.product(inputs, None) for one in copies]  # type: ignore[misc]

    return make


def _seconds(nbytes: int, make: Work) -> float:
    """The time of one product, of the fastest pass over copies that exceed the cache."""
    work = make(max(1, math.ceil(_COLD / max(nbytes, 1 << 14))))
    best = math.inf
    with torch.inference_mode():
        work[0]()
        for _ in range(_PASSES):
            start = time.perf_counter()
            for one in work:
                one()
            best = min(best, time.perf_counter() - start)
    return best / len(work)


@cache
def _known() -> dict[str, list[str]]:
    """What was measured on this CPU with these libraries and threads."""
    try:
        found = json.loads((cache_dir() / _cache_name()).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    is_ours = isinstance(found, dict) and all(isinstance(one, list) for one in found.values())
    return found if is_ours else {}


def _cache_name() -> str:
    parts = (
        __version__,
        torch.__version__,
        llvm.get_host_cpu_name(),
        instructions(),
        str(torch.get_num_threads()),
    )
    return f"execution-{blake2b(' '.join(parts).encode(), digest_size=8).hexdigest()}.json"
