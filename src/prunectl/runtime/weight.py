"""A weight of a model that stays compressed: a tensor that holds a :class:`Matrix`.

To its module it is an ordinary parameter with a shape, a dtype and a device. Products and lookups
of rows read the compressed form. Every other operation gets the decoded matrix, which lives as long
as the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils import _pytree as pytree

from prunectl.errors import UnsupportedCheckpoint
from prunectl.runtime.matrix import Matrix
from prunectl.runtime.operators import held, number_of, product, rows, rows_of, whole

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}


class CompressedWeight(torch.Tensor):
    """A matrix [outputs, inputs] in a form; transposed, a Conv1D's [inputs, outputs].

    Attributes:
        matrix: what it holds, with a row for each output.
        transposed: whether its own rows are inputs.
        number: by which the graphs of torch.compile name the matrix.
        anchor: an empty tensor, in whose place a tracer puts its own.
    """

    matrix: Matrix
    transposed: bool
    number: int
    anchor: torch.Tensor

    @staticmethod
    def __new__(
        cls, matrix: Matrix, transposed: bool = False, anchor: Any = None
    ) -> CompressedWeight:
        shape = (matrix.rows, matrix.columns)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            shape[::-1] if transposed else shape,
            dtype=matrix.torch_dtype,
            device=torch.device("cpu"),
            requires_grad=False,
        )
        made.matrix, made.transposed, made.number = matrix, transposed, number_of(matrix)
        made.anchor = torch.empty(0) if anchor is None else anchor
        return made

    def __init__(self, matrix: Matrix, transposed: bool = False, anchor: Any = None) -> None:
        pass

    def __tensor_flatten__(self) -> Any:
        return ["anchor"], (self.number, self.transposed)

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Any:
        number, transposed = context
        return CompressedWeight(held(number), transposed, inner["anchor"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CompressedWeight({self.matrix.form}, {list(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UnsupportedCheckpoint(
            "a compressed weight",
            "cannot be pickled",
            hint="save_pretrained writes the dense weights",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedWeight:
        """Another weight with the same matrix, which nothing changes."""
        return torch.nn.Parameter(self.again(), requires_grad=False)  # type: ignore[return-value]

    def again(self, *, turned: bool = False) -> CompressedWeight:
        """The same weight, or its transpose, as another tensor."""
        return CompressedWeight(self.matrix, self.transposed != turned, self.anchor)

    def decoded(self) -> torch.Tensor:
        """The dense weight, bit for bit."""
        matrix = self.matrix
        if type(self.anchor) is torch.Tensor:
            dense = matrix.dense()
        else:
            dense = whole(self.anchor, self.number, matrix.rows, matrix.columns, matrix.torch_dtype)
        return dense.T.contiguous() if self.transposed else dense

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler = _HANDLERS.get(function)
        if handler is not None:
            found = handler(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        with torch._C.DisableTorchFunctionSubclass():  # results are ordinary tensors
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if operation in _SAME:
            return CompressedWeight(args[0].matrix, args[0].transposed, args[0].anchor)
        if operation is _aten._to_copy.default:
            return _moved(args[0], kwargs or {})
        if operation._schema.is_mutable:
            raise UnsupportedCheckpoint(
                "a compressed weight",
                "cannot be changed in place",
                hint="load the model with execution='dense'",
            )
        args, kwargs = pytree.tree_map_only(
            CompressedWeight, CompressedWeight.decoded, (args, kwargs or {})
        )
        return operation(*args, **kwargs)


def _moved(weight: CompressedWeight, wanted: dict[str, Any]) -> CompressedWeight:
    """The weight itself: it has one device and one dtype."""
    device, dtype = wanted.get("device"), wanted.get("dtype")
    if device is not None and torch.device(device).type != "cpu":
        raise UnsupportedCheckpoint(
            "a compressed weight",
            f"stays on the CPU and cannot move to {device}",
            hint="load the model with execution='dense'",
        )
    if dtype is not None and dtype != weight.dtype:
        raise UnsupportedCheckpoint(
            "a compressed weight",
            f"keeps its dtype {weight.dtype} and cannot become {dtype}",
            hint="load the model with this dtype, or with execution='dense'",
        )
    return CompressedWeight(weight.matrix, weight.transposed)


def _linear(inputs: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> Any:
    if not isinstance(weight, CompressedWeight) or weight.transposed:
        return NotImplemented
    return _product(inputs, weight, bias)


def _addmm(bias: torch.Tensor, inputs: torch.Tensor, weight: Any, **scales: Any) -> Any:
    """The product of a Conv1D."""
    if scales or not isinstance(weight, CompressedWeight) or not weight.transposed:
        return NotImplemented
    return _product(inputs, weight, bias)


def _product(inputs: torch.Tensor, weight: CompressedWeight, bias: torch.Tensor | None) -> Any:
    if inputs.device.type != "cpu":
        raise UnsupportedCheckpoint(
            "a compressed weight",
            f"takes inputs on the CPU, not on {inputs.device}",
            hint="load the model with execution='dense'",
        )
    stored = weight.matrix.torch_dtype  # weight.dtype takes longer than a small product
    if inputs.dtype != stored:  # as torch's own product would say
        raise RuntimeError(f"inputs are {inputs.dtype}, the weight is {stored}")
    needs_gradient = torch.is_grad_enabled() and (
        inputs.requires_grad or (bias is not None and bias.requires_grad)
    )
    if needs_gradient or torch.compiler.is_compiling():
        return product(inputs, bias, weight.number, weight.matrix.rows)
    return weight.matrix.product(inputs, bias)


def _embedding(
    places: torch.Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if not isinstance(weight, CompressedWeight) or weight.transposed or max_norm is not None:
        return NotImplemented
    if torch.compiler.is_compiling():
        return rows_of(places, weight.number, weight.matrix.columns, weight.matrix.torch_dtype)
    return rows(places, weight.matrix)


def _transposed(weight: CompressedWeight) -> CompressedWeight:
    return weight.again(turned=True)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.detach: CompressedWeight.again,
    torch.Tensor.t: _transposed,
    torch.Tensor.T.__get__: _transposed,  # type: ignore[attr-defined]
    functional.linear: _linear,
    torch.addmm: _addmm,
    functional.embedding: _embedding,
}
