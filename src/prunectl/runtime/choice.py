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
from prunectl.documents import parse_json
from prunectl.runtime.forms import in_all_forms, reason_against
from prunectl.runtime.matrix import Matrix
from prunectl.runtime.selection import instructions
from prunectl.userdirs import cache_dir, write_cache_file

_TOLERANCE = 1.02
"""Repeated measurements of the same kernel differ by this much."""

_COLD = 64 << 20
"""Bytes that a measurement reads: in a model, each weight comes from memory, not the cache."""

_PASSES = 5


Product = Callable[[torch.Tensor], Any]


Dense = Callable[[torch.Tensor], Product]
"""Prepares a dense weight [outputs, inputs] and returns the product with it."""


def _product_of_torch(weight: torch.Tensor) -> Product:
    return lambda inputs: functional.linear(inputs, weight)


def kept(
    weight: torch.Tensor,
    execution: str,
    dense: Dense = _product_of_torch,
    name: str = "",
) -> Matrix | None:
    """A weight in the form that an execution gives it; None if it stays dense.

    Args:
        weight: [outputs, inputs].
        execution: ``compressed`` or ``auto``.
        dense: the product that ``auto`` compares with; torch's is the default.
        name: of ``dense``, under which its measurements are cached.
    """
    if reason_against(weight):
        return None
    smaller = (one for one in in_all_forms(weight, instructions()) if one.nbytes < weight.nbytes)
    made = sorted(smaller, key=lambda one: one.nbytes)
    if execution == "compressed" or not made:
        return next(iter(made), None)
    fast = _fast_forms(weight, made, dense, name)
    return next((one for one in made if one.form in fast), None)


def _fast_forms(weight: torch.Tensor, made: list[Matrix], product: Dense, name: str) -> list[str]:
    """Forms whose product with one row takes no longer than dense, from the cache or measured."""
    share = round(20 * float(weight.count_nonzero()) / weight.numel()) / 20
    key = f"{weight.shape[0]}x{weight.shape[1]} {weight.dtype} {share} {name}".rstrip()
    known = _known()
    if key not in known:
        sides = [_dense_copies(weight, product), *(_copies(one) for one in made)]
        dense, *others = _seconds(sides)
        known[key] = [
            one.form
            for one, seconds in zip(made, others, strict=True)
            if seconds <= dense * _TOLERANCE
        ]
        text = json.dumps(known).encode()
        write_cache_file(_cache_name(), lambda file: file.write(text))
    return known[key]


Products = list[Callable[[], Any]]


def _dense_copies(weight: torch.Tensor, product: Dense = _product_of_torch) -> Products:
    inputs = torch.ones(1, weight.shape[1], dtype=weight.dtype)
    copies = [product(weight.clone()) for _ in range(_copies_of(weight.nbytes))]
    return [lambda one=one: one(inputs) for one in copies]  # type: ignore[misc]


def _copies(matrix: Matrix) -> Products:
    inputs = torch.ones(1, matrix.columns, dtype=matrix.torch_dtype)
    copies = [matrix.copy() for _ in range(_copies_of(matrix.nbytes))]
    return [lambda one=one: one.product(inputs, None) for one in copies]  # type: ignore[misc]


def _copies_of(nbytes: int) -> int:
    return max(1, math.ceil(_COLD / max(nbytes, 1 << 14)))


def _seconds(sides: list[Products]) -> list[float]:
    """The time of one product of each side: the best of several passes, made in turns."""
    best = [math.inf] * len(sides)
    with torch.inference_mode():
        for products in sides:
            products[0]()
        for _ in range(_PASSES):
            for number, products in enumerate(sides):
                start = time.perf_counter()
                for one in products:
                    one()
                taken = (time.perf_counter() - start) / len(products)
                best[number] = min(best[number], taken)
    return best


@cache
def _known() -> dict[str, list[str]]:
    """What was measured on this CPU with these libraries and threads."""
    try:
        found = parse_json((cache_dir() / _cache_name()).read_bytes())
    except (OSError, ValueError):
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
