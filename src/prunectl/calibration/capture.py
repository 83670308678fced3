"""Captures the inputs of a weight where the product is computed.

Hooks on modules would miss experts that are slices of one stacked parameter, and would need to know
the classes that a model uses. So the products are watched instead: every call of torch's linear and
matrix products with an operand that lies in the memory of a watched weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from prunectl.calibration.forward import Stop
from prunectl.methods.products import linear

_LINEAR = {torch.nn.functional.linear}
"""``f(x, w)`` with w [out, in]."""

_PRODUCT = {
    torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm,
    torch.Tensor.__matmul__,
}  # fmt: skip
"""``f(x, w)`` with w [in, out], or a stack of them."""

_ADDED = {torch.addmm, torch.baddbmm, torch.Tensor.addmm, torch.Tensor.baddbmm}
"""``f(bias, x, w)`` with w [in, out], or a stack of them."""


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """One weight matrix of a loaded block; compared by identity.

    Attributes:
        name: the tensor in the file.
        index: which matrix of a stack it is; None if the tensor is one matrix.
        weight: [out, in], sharing memory with the model.
    """

    name: str
    index: int | None
    weight: torch.Tensor

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"


def as_matrices(tensor: torch.Tensor, input_axis: int | None) -> list[torch.Tensor]:
    """The matrices [out, in] of a matrix or a stack of matrices, as views.

    Args:
        tensor: with fewer than two axes it is a matrix of one row.
        input_axis: one of the last two axes; None is the last one, or for a convolution all axes
            after the first.
    """
    if tensor.ndim < 2:
        return [tensor.reshape(1, -1)]
    if input_axis is None and tensor.ndim > 2:
        return [tensor.flatten(1)]
    last = input_axis is None or input_axis == tensor.ndim - 1
    stack = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.flatten(0, -3)
    return [one if last else one.T for one in stack]


def matrices(name: str, view: torch.Tensor, input_axis: int | None) -> list[Matrix]:
    """The matrices of a tensor in the model's memory; see :func:`as_matrices`."""
    parts = as_matrices(view, input_axis)
    is_stack = view.ndim > 2 and input_axis is not None
    return [Matrix(name, i if is_stack else None, one) for i, one in enumerate(parts)]


Seen = Callable[[tuple[Matrix, ...], torch.Tensor], None]


class ProductWatcher(TorchFunctionMode):
    """Calls ``seen(matrices, x)`` for each product with weights that are watched.

    Args:
        watched: the matrices to look for. A product with a fused weight (gate and up in one) counts
            as a product with each of its matrices.
        seen: receives the multiplied matrices and their inputs [..., in].
        stops: raise :class:`Stop` in place of a product when every matrix has been seen.

    Attributes:
        missed: matrices used in an operation that is not a known product.
    """

    def __init__(self, watched: Iterable[Matrix], seen: Seen, *, stops: bool = False) -> None:
        super().__init__()
        self._seen, self._stops = seen, stops
        self.missed: set[Matrix] = set()
        self._uses = dict.fromkeys(watched, 0)
        self._by_storage: dict[int, list[Matrix]] = {}
        for one in self._uses:
            self._by_storage.setdefault(storage_of(one.weight), []).append(one)
        self._known: dict[tuple[int, ...], tuple[Matrix, ...]] = {}

    @property
    def is_once(self) -> bool:
        """Whether every matrix has been used exactly once, in known products."""
        return not self.missed and all(count == 1 for count in self._uses.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        place = _OPERANDS.get(func)
        if place is not None:
            x, weight = _at(args, kwargs, place), _at(args, kwargs, place + 1)
            if self._look(x, weight, out_first=func in _LINEAR):
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        self._miss([*args, *kwargs.values()], result)
        return result

    def _look(self, x: Any, weight: Any, *, out_first: bool) -> bool:
        """Report a product of two operands; False if it is not a known product."""
        if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor):
            return False
        if weight.ndim < 2 or storage_of(weight) not in self._by_storage:
            return False
        if weight.ndim == 2:
            return self._report(weight if out_first else weight.T, x)
        if weight.ndim == 3 and x.ndim == 3 and x.shape[0] == weight.shape[0]:
            known = False
            for one, part in zip(weight, x, strict=True):
                known |= self._report(one if out_first else one.T, part)
            return known
        return False

    def _miss(self, operands: Iterable[Any], result: Any) -> None:
        """Record the matrices that an unknown operation uses. Making a view is no use."""
        made = {storage_of(one) for one in _tensors_in([result])}
        for one in _tensors_in(operands) if made else ():
            storage = storage_of(one)
            if storage not in made and storage in self._by_storage:
                self.missed.update(m for m in self._by_storage[storage] if _overlap(one, m.weight))

    def _report(self, operand: torch.Tensor, x: torch.Tensor) -> bool:
        """Report a product with ``operand`` [out, in]; False if it holds no watched matrix."""
        key = (storage_of(operand), operand.storage_offset(), *operand.stride(), *operand.shape)
        found = self._known.get(key)
        if found is None:
            candidates = self._by_storage[key[0]]
            found = tuple(one for one in candidates if _holds(operand, one.weight))
            self._known[key] = found
        if found:
            self._seen(found, x)
            for one in found:
                self._uses[one] += 1
            if self._stops and all(self._uses.values()):
                raise Stop
        return bool(found)


_OPERANDS = dict.fromkeys(_LINEAR | _PRODUCT, 0) | dict.fromkeys(_ADDED, 1)
"""By function, the position of the inputs; the weight is the next argument."""

_NAMES = {0: ("input",), 1: ("weight", "mat2", "other", "mat1", "batch1"), 2: ("mat2", "batch2")}


class FastLinear(TorchFunctionMode):
    """Within it, torch's ``linear`` is :func:`prunectl.methods.products.linear`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            func = linear
        return func(*args, **(kwargs or {}))


def _at(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int) -> Any:
    """An operand by its position or its keyword."""
    if len(args) > index:
        return args[index]
    return next((kwargs[name] for name in _NAMES[index] if name in kwargs), None)


def _tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Tensors with storage among the values, lists and tuples included."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided:
                yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the memory ranges of two tensors of one storage overlap."""
    (first, end), (start, stop) = _stretch(a), _stretch(b)
    return first < stop and start < end


def _stretch(tensor: torch.Tensor) -> tuple[int, int]:
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset())
    return begin, begin + (int(steps) + 1 if tensor.numel() else 0)


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _holds(operand: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``weight`` [out, in] is some of the rows of ``operand`` [out', in]."""
    if operand.shape[1] != weight.shape[1]:
        return False
    step, across = operand.stride()
    same = weight.shape[0] == 1 or operand.shape[0] == 1 or weight.stride(0) == step
    if not same or (weight.shape[1] > 1 and weight.stride(1) != across):
        return False
    ahead = int(weight.storage_offset() - operand.storage_offset())
    rows, rest = divmod(ahead, step) if step else (0, ahead)
    return not rest and 0 <= rows <= operand.shape[0] - weight.shape[0]
