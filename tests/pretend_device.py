"""CUDA devices with little memory, pretended on the CPU, where there is no GPU to fill.

Tensors that are sent to ``cuda:0`` say that they are there. Their bytes are counted, and torch's
own error is raised where they would be more than there is room for. As on real devices, an
operation on tensors in several places fails, and numpy sees nothing of those that are there.
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
"""What takes tensors in several places."""

_HOST_ONLY = {torch.Tensor.numpy, torch.Tensor.__array__}


class PretendDevice(TorchFunctionMode):
    """While inside the block, this thread has a ``cuda:0``, and more where that is wanted.

    Args:
        room: bytes that it has. others: bytes of ``cuda:1`` and so on.

    Attributes:
        most, most_of: the most that were in use, of the first and of each. refused: how often there
            was no room. no_room: what is raised then.
    """

    def __init__(self, room: int, *others: int) -> None:
        super().__init__()
        self.rooms = [room, *others]
        self.most_of, self.refused = [0] * len(self.rooms), 0
        self.no_room: RuntimeError = torch.OutOfMemoryError("CUDA out of memory (pretended).")
        self._held: dict[int, tuple[StorageWeakRef, int, torch.device]] = {}

    @property
    def room(self) -> int:
        """Of the first."""
        return self.rooms[0]

    @room.setter
    def room(self, value: int) -> None:
        self.rooms[0] = value

    @property
    def most(self) -> int:
        return self.most_of[0]

    @property
    def used(self) -> int:
        """Bytes of the tensors that are on the first."""
        return self.used_of(CUDA)

    def used_of(self, device: torch.device) -> int:
        """Bytes of the tensors that are there."""
        self._held = {key: kept for key, kept in self._held.items() if not kept[0].expired()}
        return sum(size for _, size, where in self._held.values() if where == device)

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
        places = [self._place(one) for one in tensors]
        if func == _WHERE:
            return places[0] or func(*args, **kwargs)
        there = {place for place in places if place is not None}
        if there and func in _HOST_ONLY:
            raise TypeError(f"can't convert {places[0]} device type tensor to numpy")
        args, kwargs, asked = _without_cuda(args, kwargs)
        if func in _MOVES and tensors:
            return self._moved(func, args, kwargs, places[0], asked)
        on_host = any(one.ndim and p is None for one, p in zip(tensors, places, strict=True))
        if there and on_host + len(there) > 1 and func not in _BOTH:
            found = ", ".join(sorted(map(str, there))) + " and cpu" * on_host
            raise RuntimeError(f"{func}: expected all tensors on one device, found {found}")
        result = func(*args, **kwargs)
        goes = asked if asked is not None and asked.type == "cuda" else places and _first(places)
        # What is copied into stays where it is.
        if func is not torch.Tensor.copy_ and goes:
            for one in _tensors(result):
                self._take(one, goes)
        return result

    def _moved(
        self,
        func: Callable[..., torch.Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        place: torch.device | None,
        asked: torch.device | None,
    ) -> torch.Tensor:
        """The result of ``to``, ``cpu`` or ``cuda``: a copy, unless it stays where it is."""
        goes = None if asked is None or asked.type != "cuda" else asked
        if func is torch.Tensor.to and asked is None:
            goes = place
        elif func is torch.Tensor.cuda:
            goes = asked or CUDA
        result = func(*args, **kwargs)
        if result is args[0] and goes != place:
            result = result.clone()
        if goes is not None:
            self._take(result, goes)
        return result

    def _place(self, tensor: torch.Tensor) -> torch.device | None:
        """The device that a tensor is on; None on the host."""
        kept = self._held.get(tensor.untyped_storage()._cdata)
        return kept[2] if kept is not None and not kept[0].expired() else None

    def _take(self, tensor: torch.Tensor, device: torch.device) -> None:
        if tensor.is_meta or self._place(tensor) is not None:
            return
        index = device.index
        storage = tensor.untyped_storage()
        if self.used_of(device) + storage.nbytes() > self.rooms[index]:
            self.refused += 1
            raise type(self.no_room)(*self.no_room.args)  # anew: an error keeps what is in use
        self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes(), device
        self.most_of[index] = max(self.most_of[index], self.used_of(device))


def _first(places: Iterable[torch.device | None]) -> torch.device | None:
    return next((place for place in places if place is not None), None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _without_cuda(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], torch.device | None]:
    """The arguments with the CPU in the place of the device, and which device they named."""
    asked: list[torch.device] = []

    def change(leaf: Any) -> Any:
        if isinstance(leaf, str) and (leaf in ("cpu", "cuda") or leaf.startswith("cuda:")):
            leaf = torch.device(leaf)
        if not isinstance(leaf, torch.device) or leaf.type == "meta":
            return leaf
        asked.append(torch.device("cuda", leaf.index or 0) if leaf.type == "cuda" else leaf)
        return torch.device("cpu")

    args, kwargs = pytree.tree_map(change, (args, kwargs))
    return args, kwargs, asked[0] if asked else None
