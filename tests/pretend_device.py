"""A CUDA device with little memory, pretended on the CPU, where there is no GPU to fill.

Tensors that are sent to ``cuda:0`` say that they are there. Their bytes are counted, and torch's
own error is raised where they would be more than there is room for. As on a real device, an
operation on tensors in both places fails, and numpy sees nothing of those that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

CUDA = torch.device("cuda", 0)

_WHERE = torch.Tensor.device.__get__  # type: ignore[attr-defined]
_WORDS = {torch.device, torch._C._nn._parse_to}
"""What only speaks of devices."""

_MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda}
_BOTH = {
    torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__,
    torch.Tensor.data.__set__, torch._has_compatible_shallow_copy_type,  # type: ignore[attr-defined]
}  # fmt: skip
"""What takes tensors in both places."""

_HOST_ONLY = {torch.Tensor.numpy, torch.Tensor.__array__}


class PretendDevice(TorchFunctionMode):
    """While inside the block, this thread has a ``cuda:0``.

    Args:
        room: bytes that it has.

    Attributes:
        most: the most that were in use. refused: how often there was no room.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.most, self.refused = room, 0, 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _WORDS:
            return func(*args, **kwargs)
        tensors = list(_tensors((args, kwargs)))
        there = [self._is_there(one) for one in tensors]
        if func == _WHERE:
            return CUDA if there[0] else func(*args, **kwargs)
        if any(there) and func in _HOST_ONLY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        args, kwargs, asked = _without_cuda(args, kwargs)
        if func in _MOVES and tensors:
            return self._moved(func, args, kwargs, there[0], asked)
        apart = any(one.ndim and not here for one, here in zip(tensors, there, strict=True))
        if any(there) and apart and func not in _BOTH:
            raise RuntimeError(f"{func}: expected all tensors on one device, found cuda:0 and cpu")
        result = func(*args, **kwargs)
        # What is copied into stays where it is.
        if func is not torch.Tensor.copy_ and (any(there) or asked == CUDA):
            for one in _tensors(result):
                self._take(one)
        return result

    def _moved(
        self,
        func: Callable[..., torch.Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        there: bool,
        asked: torch.device | None,
    ) -> torch.Tensor:
        """The result of ``to``, ``cpu`` or ``cuda``: a copy, unless it stays where it is."""
        stays = func is torch.Tensor.to and asked is None and there
        goes = stays or asked == CUDA or func is torch.Tensor.cuda
        result = func(*args, **kwargs)
        if result is args[0] and goes != there:
            result = result.clone()
        if goes:
            self._take(result)
        return result

    @property
    def used(self) -> int:
        """Bytes of the tensors that are there."""
        self._held = {key: kept for key, kept in self._held.items() if not kept[0].expired()}
        return sum(size for _, size in self._held.values())

    def _is_there(self, tensor: torch.Tensor) -> bool:
        kept = self._held.get(tensor.untyped_storage()._cdata)
        return kept is not None and not kept[0].expired()

    def _take(self, tensor: torch.Tensor) -> None:
        if tensor.is_meta or self._is_there(tensor):
            return
        storage = tensor.untyped_storage()
        if self.used + storage.nbytes() > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory (pretended).")
        self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, self.used)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _without_cuda(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], torch.device | None]:
    """The arguments with the CPU in the place of the device, and which device they named."""
    asked: list[torch.device] = []

    def change(leaf: Any) -> Any:
        if isinstance(leaf, str) and leaf in ("cpu", "cuda", "cuda:0"):
            leaf = torch.device(leaf)
        if not isinstance(leaf, torch.device) or leaf.type == "meta":
            return leaf
        asked.append(CUDA if leaf.type == "cuda" else leaf)
        return torch.device("cpu")

    args, kwargs = pytree.tree_map(change, (args, kwargs))
    return args, kwargs, asked[0] if asked else None
