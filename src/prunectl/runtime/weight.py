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
from prunectl.runtime.operators import held, is_traced, number_of, product, rows, rows_of, whole

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
        made: CompressedWeight = cls._made(
            shape[::-1] if transposed else shape, matrix.torch_dtype, anchor
        )
        made.matrix, made.transposed, made.number = matrix, transposed, number_of(matrix)
        return made

    @classmethod
    def _made(cls, shape: tuple[int, ...], dtype: torch.dtype, anchor: Any) -> Any:
        """A tensor of this class, without memory of its own."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=torch.device("cpu"), requires_grad=False
        )
        made.anchor = torch.empty(0, device="cpu") if anchor is None else anchor
        return made

    def __init__(self, matrix: Matrix, transposed: bool = False, anchor: Any = None) -> None:
        pass

    @property
    def form(self) -> str:
        """The form of its matrix; of several, the first one's."""
        return self.matrix.form

    @property
    def held_bytes(self) -> int:
        """Bytes in memory."""
        return self.matrix.nbytes

    def __tensor_flatten__(self) -> Any:
        return ["anchor"], (self.number, self.transposed)

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Any:
        number, transposed = context
        return CompressedWeight(held(number), transposed, inner["anchor"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self.form}, {list(self.shape)}, {self.dtype})"

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
        if not is_traced(self.anchor):
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
            return args[0].again()
        if operation is _aten._to_copy.default:
            return _moved(args[0], kwargs or {})
        if _changes_weight(operation, args, kwargs or {}):
            raise UnsupportedCheckpoint(
                "a compressed weight",
                "cannot be changed in place",
                hint="load the model with execution='dense'",
            )
        args, kwargs = pytree.tree_map_only(
            CompressedWeight, lambda one: one.decoded(), (args, kwargs or {})
        )
        return operation(*args, **kwargs)


def _changes_weight(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation writes to a compressed weight; others may be read from one."""
    given = zip(operation._schema.arguments, args, strict=False)
    written = {one.name: value for one, value in given} | kwargs
    return any(
        isinstance(written.get(one.name), CompressedWeight)
        for one in operation._schema.arguments
        if one.alias_info is not None and one.alias_info.is_write
    )


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
    return weight.again()


class CompressedStack(CompressedWeight):
    """The matrices of a layer's experts: [experts, outputs, inputs], or each of them transposed.

    An expert that is taken out by its number stays compressed.

    Attributes:
        experts: its matrices.
    """

    experts: tuple[CompressedWeight, ...]

    @staticmethod
    def __new__(cls, experts: tuple[CompressedWeight, ...], anchor: Any = None) -> CompressedStack:
        first = experts[0]
        made: CompressedStack = cls._made((len(experts), *first.shape), first.dtype, anchor)
        made.experts = experts
        return made

    def __init__(self, experts: tuple[CompressedWeight, ...], anchor: Any = None) -> None:
        pass

    @property
    def form(self) -> str:
        return self.experts[0].form

    @property
    def held_bytes(self) -> int:
        return sum(one.held_bytes for one in self.experts)

    def __tensor_flatten__(self) -> Any:
        return ["anchor"], tuple((one.number, one.transposed) for one in self.experts)

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Any:
        anchor = inner["anchor"]
        experts = (CompressedWeight(held(one), turned, anchor) for one, turned in context)
        return CompressedStack(tuple(experts), anchor)

    def again(self, *, turned: bool = False) -> CompressedStack:
        return CompressedStack(self.experts, self.anchor)

    def decoded(self) -> torch.Tensor:
        return torch.stack([one.decoded() for one in self.experts])


# The parameters of handlers have the names that torch gives them: they may be passed by name.


def _linear(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> Any:
    if not _is_matrix(weight) or weight.transposed:
        return NotImplemented
    return _product(input, weight, bias)


def _addmm(input: torch.Tensor, mat1: torch.Tensor, mat2: Any, **others: Any) -> Any:
    """The product of a Conv1D."""
    if others or not _is_matrix(mat2) or not mat2.transposed:
        return NotImplemented
    return _product(mat1, mat2, input)


def _product(inputs: torch.Tensor, weight: CompressedWeight, bias: torch.Tensor | None) -> Any:
    if inputs.device.type != "cpu":
        raise UnsupportedCheckpoint(
            "a compressed weight",
            f"takes inputs on the CPU, not on {inputs.device}",
            hint="load the model with execution='dense'",
        )
    matrix = weight.matrix
    stored = matrix.torch_dtype  # weight.dtype takes longer than a small product
    if inputs.dtype != stored:  # as torch's own product would say
        raise RuntimeError(f"inputs are {inputs.dtype}, the weight is {stored}")
    if inputs.shape[-1:] != (matrix.columns,) or isinstance(inputs, CompressedWeight):
        return NotImplemented  # kernels check no size
    if bias is not None and (bias.shape != (matrix.rows,) or not bias.is_cpu):
        return NotImplemented
    needs_gradient = torch.is_grad_enabled() and (
        inputs.requires_grad or (bias is not None and bias.requires_grad)
    )
    if needs_gradient or is_traced(inputs):
        return product(inputs, bias, weight.number, matrix.rows)
    return matrix.product(inputs, bias)


def _embedding(
    input: torch.Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if not _is_matrix(weight) or weight.transposed or max_norm is not None:
        return NotImplemented
    if is_traced(input):
        return rows_of(input, weight.number, weight.matrix.columns, weight.matrix.torch_dtype)
    return rows(input, weight.matrix)


def _share(weight: CompressedWeight) -> None:
    raise UnsupportedCheckpoint(
        "a compressed weight",
        "cannot be shared between processes",
        hint="load the model in each process: what is mapped from its files is shared",
    )


def _matmul(input: Any, other: Any, **others: Any) -> Any:
    if others or not _is_matrix(other) or not other.transposed:
        return NotImplemented
    return _product(input, other, None)


def _transposed(weight: CompressedWeight) -> Any:
    return weight.again(turned=True) if _is_matrix(weight) else NotImplemented


def _item(weight: CompressedWeight, index: Any) -> Any:
    """An expert of a stack."""
    is_number = isinstance(index, int) or (
        isinstance(index, torch.Tensor) and not index.dim() and index.dtype == torch.int64
    )
    if not isinstance(weight, CompressedStack) or not is_number:
        return NotImplemented
    return weight.experts[int(index)]


def _is_matrix(weight: Any) -> bool:
    return isinstance(weight, CompressedWeight) and not isinstance(weight, CompressedStack)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.share_memory_: _share,
    torch.Tensor.detach: lambda weight: weight.again(),
    torch.Tensor.t: _transposed,
    torch.Tensor.T.__get__: _transposed,  # type: ignore[attr-defined]
    functional.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.__getitem__: _item,
    functional.embedding: _embedding,
}
