"""Which inputs a weight is multiplied by, seen where the product is computed.

Hooks on modules would miss experts that are slices of one stacked parameter, and would need to know
the classes that a model uses. So the products themselves are watched: every call of torch's linear
and matrix products whose one operand lies in the memory of a weight that is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

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
    """One weight matrix of a loaded block; equal to itself only.

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
        """What people call it."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"


def as_matrices(tensor: torch.Tensor, input_axis: int | None) -> list[torch.Tensor]:
    """The matrices [out, in] of a tensor that is one, or a stack of them; views, no copies.

    Args:
        tensor: of two or more axes; one of fewer is a matrix of one row.
        input_axis: the axis of the inputs, one of the last two; None is the last.
    """
    if tensor.ndim < 2:
        return [tensor.reshape(1, -1)]
    last = input_axis is None or input_axis == tensor.ndim - 1
    stack = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.flatten(0, -3)
    return [one if last else one.T for one in stack]


def matrices(name: str, view: torch.Tensor, input_axis: int | None) -> list[Matrix]:
    """The matrices of a tensor in the model's memory; see :func:`as_matrices`."""
    parts = as_matrices(view, input_axis)
    return [Matrix(name, None if view.ndim <= 2 else i, one) for i, one in enumerate(parts)]


Seen = Callable[[tuple[Matrix, ...], torch.Tensor], None]


class ProductWatcher(TorchFunctionMode):
    """Calls ``seen(matrices, x)`` for each product with weights that are watched.

    Args:
        watched: the matrices to look for. A product with a fused weight (gate and up in one) is a
            product with each of the matrices that it is fused of.
        seen: takes the matrices that were multiplied and their inputs [..., in].
    """

    def __init__(self, watched: Iterable[Matrix], seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        self._by_storage: dict[int, list[Matrix]] = {}
        for one in watched:
            self._by_storage.setdefault(_storage(one.weight), []).append(one)
        self._known: dict[tuple[int, ...], tuple[Matrix, ...]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _LINEAR:
            self._look(_at(args, kwargs, 0), _at(args, kwargs, 1), out_first=True)
        elif func in _PRODUCT:
            self._look(_at(args, kwargs, 0), _at(args, kwargs, 1), out_first=False)
        elif func in _ADDED:
            self._look(_at(args, kwargs, 1), _at(args, kwargs, 2), out_first=False)
        return func(*args, **kwargs)

    def _look(self, x: Any, weight: Any, *, out_first: bool) -> None:
        if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor):
            return
        if weight.ndim < 2 or _storage(weight) not in self._by_storage:
            return
        if weight.ndim == 2:
            self._report(weight if out_first else weight.T, x)
        elif weight.ndim == 3 and x.ndim == 3 and x.shape[0] == weight.shape[0]:
            for one, part in zip(weight, x, strict=True):
                self._report(one if out_first else one.T, part)

    def _report(self, operand: torch.Tensor, x: torch.Tensor) -> None:
        """``operand`` [out, in]."""
        key = (_storage(operand), operand.storage_offset(), *operand.stride(), *operand.shape)
        found = self._known.get(key)
        if found is None:
            candidates = self._by_storage[key[0]]
            found = tuple(one for one in candidates if _holds(operand, one.weight))
            self._known[key] = found
        if found:
            self._seen(found, x)


_NAMES = {0: ("input",), 1: ("weight", "mat2", "other", "mat1", "batch1"), 2: ("mat2", "batch2")}


def _at(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int) -> Any:
    """An operand by its place, or by whatever name the function has for it."""
    if len(args) > index:
        return args[index]
    return next((kwargs[name] for name in _NAMES[index] if name in kwargs), None)


def _storage(tensor: torch.Tensor) -> int:
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
