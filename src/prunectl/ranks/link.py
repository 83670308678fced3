"""What passes between the processes: bytes and sums, by torch.distributed."""

from __future__ import annotations

import datetime
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from prunectl.ranks import devices
from prunectl.ranks.errors import RanksLost, in_short
from prunectl.ranks.network import on_their_network

if TYPE_CHECKING:
    import torch

_LONGEST = datetime.timedelta(days=7)
"""A rank waits for the others as long as their part takes; that they live is seen to elsewhere."""
_CONNECTING = datetime.timedelta(seconds=30)
"""For which a rank that has met the others tries to reach them."""
_PIECE = 64 << 20
_CUTTING = 5.0
"""Seconds for which the end of what waits in nccl is waited for."""
_NCCL = "NCCL_DEBUG=INFO shows why; --device cpu does without it"


class Link:
    """A process group of gloo, and one of nccl where every rank has a CUDA device of its own.

    Every method but :meth:`cut` is called by all ranks alike, and in the same order. Waiting can be
    interrupted: it is done here, not in torch.

    Args:
        store: that the processes meet at. rank, count: of them.

    Attributes:
        device: this rank's own, whose tensors go by nccl; None where they go through the host.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        import torch.distributed as dist

        self.rank, self.count = rank, count
        self.device: torch.device | None = None
        self._names: tuple[str, ...] = ()
        self._direct: Any = None  # the group of nccl
        self._is_cut = False
        self._own = not dist.is_initialized()
        with on_their_network():
            if self._own:
                dist.init_process_group(
                    "gloo", store=store, rank=rank, world_size=count, timeout=_CONNECTING
                )
                self._group = dist.group.WORLD
            else:
                self._group = dist.new_group(backend="gloo", timeout=_CONNECTING)
        dist.distributed_c10d._set_pg_timeout(_LONGEST, self._group)

    def bytes_of(self, source: int, data: bytes = b"") -> bytes:
        """What ``source`` gives as ``data``, on every rank."""
        import numpy as np
        import torch

        size = torch.tensor([len(data)])
        self._broadcast(size, source)
        length = int(size)
        if not length:
            return b""
        held = np.frombuffer(data, np.uint8).copy() if source == self.rank else None
        whole = torch.empty(length, dtype=torch.uint8) if held is None else torch.from_numpy(held)
        self.tensor_of(source, whole)
        return whole.numpy().tobytes()

    def use(self, device: torch.device, names: tuple[str, ...]) -> None:
        """Have tensors on the ranks' devices pass from one to the other directly from now on.

        Args:
            device: this rank's. names: of all ranks' devices, which are all different; none at all
                has tensors go through the host again.

        Raises:
            RanksLost: nccl does not work.
        """
        import torch
        import torch.distributed as dist

        if names == self._names:
            return
        self._leave()
        if not names:
            return
        try:
            with devices.errors_are_raised():
                self._direct = dist.new_group(backend=devices.BACKEND, timeout=_CONNECTING)
            self._connect(torch.zeros(1, device=device))
            dist.distributed_c10d._set_pg_timeout(_LONGEST, self._direct)
        except RuntimeError as error:
            raise RanksLost(f"{devices.BACKEND}: {in_short(error)}", hint=_NCCL) from error
        self._names, self.device = names, device

    def _connect(self, probe: torch.Tensor) -> None:
        """Pass a tensor for the first time, which connects the devices, while all ranks are here.

        By another thread, since no interrupt ends what nccl does meanwhile.
        """
        import torch.distributed as dist

        failed: list[RuntimeError] = []

        def run() -> None:
            try:
                dist.broadcast(probe, 0, group=self._direct)
            except RuntimeError as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="prunectl-connect", daemon=True)
        thread.start()
        while thread.is_alive():
            self._check()
            time.sleep(0.01)
        if failed:
            raise failed[0]

    def sum(self, tensor: torch.Tensor) -> None:
        """Add up the ranks' tensors, in place and contiguous; every rank gets the same bits."""
        import torch.distributed as dist

        if self._all_on_devices(tensor):
            # That all get the same bits, nccl says of what it broadcasts.
            self._wait(partial(dist.reduce, tensor, 0, group=self._direct))
            self._broadcast(tensor, 0)
            return
        total = tensor.cpu()
        self._wait(partial(dist.all_reduce, total, group=self._group))
        if total is not tensor:
            tensor.copy_(total)

    def _all_on_devices(self, tensor: torch.Tensor) -> bool:
        """Whether every rank has its tensor on its device; one may have had no room for it."""
        import torch
        import torch.distributed as dist

        if self._direct is None:
            return False
        least = torch.tensor([int(tensor.device == self.device)])
        self._wait(partial(dist.all_reduce, least, dist.ReduceOp.MIN, group=self._group))
        return bool(least.item())

    def tensor_of(self, source: int, tensor: torch.Tensor) -> None:
        """Put what ``source`` has in ``tensor``, contiguous and of any dtype, in every rank's.

        It is on the CPU, or on :attr:`device`, in all of them.
        """
        import torch

        if tensor.numel():
            for piece in tensor.view(-1).view(torch.uint8).split(_PIECE):
                self._broadcast(piece, source)

    def cut(self) -> None:
        """End what waits in nccl, which an interrupt alone does not; called in any thread."""
        self._is_cut = True
        if self._direct is not None:
            ending = threading.Thread(target=devices.abort, args=(self._direct,), daemon=True)
            ending.start()
            ending.join(_CUTTING)

    def close(self) -> None:
        """Leave the groups that were joined here."""
        import torch.distributed as dist

        self._leave()
        if self._own:
            dist.destroy_process_group()

    def abandon(self) -> None:
        """Let the process end without what the others still owe it: they may be silent for ever.

        gloo's group, when it goes, waits for what was begun, and nothing ends that waiting. With a
        reference too many it stays.
        """
        import ctypes

        import torch

        assert self._group is not None
        for group in (self._group, self._group._get_backend(torch.device("cpu"))):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))

    def _leave(self) -> None:
        import torch.distributed as dist

        if self._direct is not None:
            dist.destroy_process_group(self._direct)
        self._direct, self.device, self._names = None, None, ()

    def _broadcast(self, tensor: torch.Tensor, source: int) -> None:
        import torch.distributed as dist

        group = self._group if tensor.device.type == "cpu" else self._direct
        self._wait(partial(dist.broadcast, tensor, source, group=group))

    def _wait(self, start: Any) -> None:
        """Start what is to be done together, and wait for the others.

        Of nccl, a work that has failed counts as completed: waiting for it raises why.

        Raises:
            RanksLost: one of them is gone.
        """
        try:
            work = start(async_op=True)
            pause = 1e-4
            while not work.is_completed():
                self._check()
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            work.wait()
        except RuntimeError as error:
            raise RanksLost(in_short(error)) from error
        self._check()  # what was cut off may look as if it had succeeded

    def _check(self) -> None:
        if self._is_cut:
            raise RanksLost("this one was cut off")
