"""Operators over compressed weights: what ``torch.compile`` and ``torch.export`` see in a graph.

A graph names a matrix by its number, so it lives as long as its model, in one process. Code that is
not traced calls the same functions without torch's dispatcher, which takes longer than a small
product.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch

from prunectl.errors import UnsupportedCheckpoint
from prunectl.runtime.matrix import Matrix

_held: WeakValueDictionary[int, Matrix] = WeakValueDictionary()


def number_of(matrix: Matrix) -> int:
    """The number by which graphs name a matrix."""
    _held[matrix.number] = matrix
    return matrix.number


def held(number: int) -> Matrix:
    """The matrix of a number.

    Raises:
        UnsupportedCheckpoint: there is none, or no longer.
    """
    found = _held.get(number)
    if found is None:
        raise UnsupportedCheckpoint(
            "a graph",
            "names a compressed weight that is not in memory",
            hint="keep the model as long as its graph, and run the graph in the same process",
        )
    return found


def is_traced(given: torch.Tensor) -> bool:
    """Whether a call is recorded, or its tensor stands for others: the dispatcher must see it."""
    return (
        torch.compiler.is_compiling()
        or type(given) not in (torch.Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def rows(places: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Rows of a matrix by their numbers, of any shape: [*places, columns].

    Raises:
        IndexError: the matrix has no such row.
    """
    flat = places.reshape(-1).to(torch.int64)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < matrix.rows:
        raise IndexError("index out of range in self")  # torch's own words
    return matrix.decoded(flat.numpy()).reshape(*places.shape, matrix.columns).contiguous()


@torch.library.custom_op(
    "prunectl::product",
    mutates_args=(),
    schema="(Tensor inputs, Tensor? bias, SymInt matrix, SymInt rows) -> Tensor",
)
def product(inputs: torch.Tensor, bias: Any, matrix: int, rows: int) -> torch.Tensor:
    """``Matrix.product`` of the matrix of a number; its backward pass raises."""
    return held(matrix).product(inputs, bias)


@product.register_fake
def _(inputs: torch.Tensor, bias: Any, matrix: int, rows: int) -> torch.Tensor:
    return inputs.new_empty((*inputs.shape[:-1], rows))


@torch.library.custom_op(
    "prunectl::rows",
    mutates_args=(),
    schema="(Tensor places, SymInt matrix, SymInt columns, ScalarType dtype) -> Tensor",
)
def rows_of(places: torch.Tensor, matrix: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """:func:`rows` of the matrix of a number."""
    return rows(places, held(matrix))


@rows_of.register_fake
def _(places: torch.Tensor, matrix: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return places.new_empty((*places.shape, columns), dtype=dtype)


@torch.library.custom_op(
    "prunectl::whole",
    mutates_args=(),
    schema="(Tensor anchor, SymInt matrix, SymInt rows, SymInt columns, ScalarType dtype)"
    " -> Tensor",
)
def whole(
    anchor: torch.Tensor, matrix: int, rows: int, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """``Matrix.dense`` of the matrix of a number, for operations that need all of it."""
    return held(matrix).dense()


@whole.register_fake
def _(
    anchor: torch.Tensor, matrix: int, rows: int, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    return anchor.new_empty((rows, columns), dtype=dtype)


@torch.library.custom_op(
    "prunectl::no_gradient", mutates_args=(), schema="(Tensor given, SymInt[] shape) -> Tensor"
)
def no_gradient(given: Any, shape: Any) -> torch.Tensor:
    """Where a gradient of a product's inputs or bias would be: says why there is none."""
    raise UnsupportedCheckpoint(
        "a compressed weight",
        "has no backward pass",
        hint="load the model with execution='dense' to train it",
    )


@no_gradient.register_fake
def _(given: torch.Tensor, shape: Any) -> torch.Tensor:
    return given.new_empty(shape)


def _keep_shapes(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    given, bias, *_ = inputs
    ctx.shapes = given.shape, None if bias is None else bias.shape


def _backward(ctx: Any, given: torch.Tensor) -> tuple[Any, ...]:
    found = (None if shape is None else no_gradient(given, shape) for shape in ctx.shapes)
    return *found, None, None


product.register_autograd(_backward, setup_context=_keep_shapes)
