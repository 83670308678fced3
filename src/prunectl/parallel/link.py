"""Messages and sums between the processes, by torch.distributed."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING, Any

from prunectl.parallel import devices
from prunectl.parallel.errors import RanksLost, in_short
from prunectl.parallel.waiting import in_thread

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

_LONGEST = datetime.timedelta(days=7)
"""Timeout of collective operations: long, since the heartbeat notices dead ranks."""
_CONNECTING = datetime.timedelta(seconds=30)
"""Timeout of connecting to a rank that has arrived at the rendezvous."""
_GLOO = "prunectl_gloo"
"""The name of :func:`_gloo` among torch's backends."""
_PIECE = 64 << 20
_ANSWERING = 120.0
"""Seconds for NCCL to connect, which has no timeout of its own."""
_CUTTING = 5.0
"""Seconds to wait for NCCL to abort."""


class Link:
    """A process group of gloo, and one of NCCL after :meth:`join`.

    All ranks call every method but :meth:`cut`, in the same order. Waiting happens here, not in
    torch, so that it can be interrupted.

    Args:
        store: of the rendezvous.
        rank, count: of the processes.

    Attributes:
        device: this rank's device, whose tensors are sent by NCCL; None where all are sent through
            the host.
    """

    def __init__(self, store: Store, rank: int, count: int) -> None:
        import torch.distributed as dist

        self.rank, self.count = rank, count
        self.device: torch.device | None = None
        self._direct: Any = None  # the NCCL group
        self._is_cut = False
        self._is_stuck = False
        self._own = not dist.is_initialized()
        if _GLOO not in dist.Backend.backend_list:
            dist.Backend.register_backend(_GLOO, _gloo, devices=["cpu"])
        if self._own:
            dist.init_process_group(
                _GLOO, store=store, rank=rank, world_size=count, timeout=_CONNECTING
            )
            self._group = dist.group.WORLD
        else:
            self._group = dist.new_group(backend=_GLOO, timeout=_CONNECTING)
        dist.distributed_c10d._set_pg_timeout(_LONGEST, self._group)

    def bytes_of(self, source: int, data: bytes = b"") -> bytes:
        """Broadcast the ``data`` of rank ``source``."""
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

    def join(self, device: torch.device) -> str:
        """Send tensors directly between the ranks' devices from now on.

        Every rank does its part to the end, even if another rank fails. The caller asks whether all
        have joined, and calls :meth:`leave` if not.

        Args:
            device: of this rank only.

        Returns:
            Why this rank has not been joined to the others; '' if it has.

        Raises:
            RanksLost: this rank is cut off.
        """
        import torch
        import torch.distributed as dist

        try:
            with devices.errors_are_raised():
                self._direct = dist.new_group(backend=devices.BACKEND, timeout=_CONNECTING)
            self._connect(torch.zeros(1, device=device))
            dist.distributed_c10d._set_pg_timeout(_LONGEST, self._direct)
        except (RuntimeError, ValueError) as error:
            return in_short(error)
        self.device = device
        return ""

    def _connect(self, probe: torch.Tensor) -> None:
        """Connect the devices, by sending a first tensor while all ranks are here.

        Runs in another thread, since an interrupt does not end NCCL's connecting.
        """
        import torch.distributed as dist

        def connect() -> None:
            dist.broadcast(probe, 0, group=self._direct)
            probe.cpu()  # waits for the device

        connected = in_thread(connect)
        until = time.monotonic() + _ANSWERING
        while not connected.done():
            self._check()
            if time.monotonic() > until:
                raise RuntimeError(f"no answer for {_ANSWERING:.0f} s")
            time.sleep(0.01)
        connected.result()

    def sum(self, tensor: torch.Tensor) -> None:
        """All-reduce contiguous tensors by a sum, in place; every rank gets the same bits."""
        import torch.distributed as dist

        if self._all_on_devices(tensor):
            # NCCL guarantees the same bits on all ranks for a broadcast, not for a sum.
            self._wait(partial(dist.reduce, tensor, 0, group=self._direct))
            self._broadcast(tensor, 0)
            return
        total = tensor.cpu()
        self._wait(partial(dist.all_reduce, total, group=self._group))
        if total is not tensor:
            tensor.copy_(total)

    def _all_on_devices(self, tensor: torch.Tensor) -> bool:
        """Whether every rank has its tensor on its device; a rank may have had no room for it."""
        import torch
        import torch.distributed as dist

        if self._direct is None:
            return False
        least = torch.tensor([int(tensor.device == self.device)])
        self._wait(partial(dist.all_reduce, least, dist.ReduceOp.MIN, group=self._group))
        return bool(least.item())

    def tensor_of(self, source: int, tensor: torch.Tensor) -> None:
        """Broadcast ``tensor`` of rank ``source`` in place.

        The tensor is contiguous, of any dtype, and on the CPU.
        """
        import torch

        if tensor.numel():
            for piece in tensor.view(-1).view(torch.uint8).split(_PIECE):
                self._broadcast(piece, source)

    def cut(self) -> None:
        """Abort pending work of NCCL, which an interrupt does not end; called in any thread."""
        self._is_cut = True
        if self._direct is not None:
            _within(_CUTTING, self._direct.abort)

    def leave(self) -> None:
        """Send all tensors through the host again."""
        import torch.distributed as dist

        group, self._direct, self.device = self._direct, None, None
        if group and not _within(_CUTTING, partial(dist.destroy_process_group, group)):
            self._is_stuck = True  # not connected yet, and NCCL does not give up
            _keep(group)

    def close(self) -> None:
        """Leave the groups that were joined here."""
        import torch.distributed as dist

        self.leave()
        if self._is_stuck:
            self.abandon()
        elif self._own:
            dist.destroy_process_group()

    def abandon(self) -> None:
        """Let the process end without waiting for other ranks, which may never answer.

        The destructor of gloo's group waits for pending operations without a limit.
        """
        import torch

        assert self._group is not None
        _keep(self._group)
        _keep(self._group._get_backend(torch.device("cpu")))

    def _broadcast(self, tensor: torch.Tensor, source: int) -> None:
        import torch.distributed as dist

        group = self._group if tensor.device.type == "cpu" else self._direct
        self._wait(partial(dist.broadcast, tensor, source, group=group))

    def _wait(self, start: Any) -> None:
        """Start a collective operation, and wait for the other ranks.

        NCCL reports failed work as completed; waiting for it raises the error.

        Raises:
            RanksLost: a rank is gone.
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
        self._check()  # aborted work may look successful

    def _check(self) -> None:
        if self._is_cut:
            raise RanksLost("this one was cut off")


def _within(seconds: float, call: Callable[[], None]) -> bool:
    """Whether a call that may block forever returned, or raised, in time."""
    return bool(wait([in_thread(call)], seconds).done)


def _keep(held: object) -> None:
    """Leak a reference, so that the object is not destroyed when the process ends."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


def _gloo(store: Store, rank: int, count: int, timeout: datetime.timedelta) -> Any:
    """Gloo, at an address of this host that the other ranks can reach.

    By itself, gloo takes the address of the host's name, which is the loopback address on many
    systems. Unless the user has chosen an interface, this is the address that the rendezvous sees.
    """
    from torch.distributed import ProcessGroupGloo

    address = "" if os.environ.get("GLOO_SOCKET_IFNAME") else _own_address()
    if not address:
        return ProcessGroupGloo(store, rank, count, timeout)
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    return ProcessGroupGloo(store, rank, count, options)


def _own_address() -> str:
    """This host's address as seen from the rendezvous host; '' if unknown."""
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    with contextlib.suppress(OSError):
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # a datagram socket sends nothing here
            return str(probe.getsockname()[0])
    return ""
