"""What passes between the processes: bytes and sums, by torch.distributed."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from prunectl.parallel import devices
from prunectl.parallel.errors import RanksLost, in_short

if TYPE_CHECKING:
    import torch

_LONGEST = datetime.timedelta(days=7)
"""A rank waits for the others as long as their part takes; that they live is seen to elsewhere."""
_CONNECTING = datetime.timedelta(seconds=30)
"""For which a rank that has met the others tries to reach them."""
_PIECE = 64 << 20
_ANSWERING = 120.0
"""Seconds for which nccl may connect: what it does then has no limit of its own."""
_CUTTING = 5.0
"""Seconds for which the end of what waits in nccl is waited for."""


class Link:
    """A process group of gloo, and one of nccl where :meth:`join` has made it.

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
        self._direct: Any = None  # the group of nccl
        self._is_cut = False
        self._is_stuck = False
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

    def join(self, device: torch.device) -> str:
        """Have tensors on the ranks' devices pass from one to the other directly from now on.

        Every rank does its part to the end, whatever comes of it elsewhere: that all of them have
        been joined is for the caller to ask, and to :meth:`leave` again if not.

        Args:
            device: this rank's, which is no other's.

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
        """Pass a tensor for the first time, which connects the devices, while all ranks are here.

        By another thread, since no interrupt ends what nccl does meanwhile.
        """
        import torch.distributed as dist

        failed: list[RuntimeError] = []

        def run() -> None:
            try:
                dist.broadcast(probe, 0, group=self._direct)
                probe.cpu()  # on a device, it is over only now
            except RuntimeError as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="prunectl-connect", daemon=True)
        thread.start()
        until = time.monotonic() + _ANSWERING
        while thread.is_alive():
            self._check()
            if time.monotonic() > until:
                raise RuntimeError(f"no answer for {_ANSWERING:.0f} s")
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
        """Put what ``source`` has in ``tensor`` in every rank's.

        It is contiguous, of any dtype, and on the CPU.
        """
        import torch

        if tensor.numel():
            for piece in tensor.view(-1).view(torch.uint8).split(_PIECE):
                self._broadcast(piece, source)

    def cut(self) -> None:
        """End what waits in nccl, which an interrupt alone does not; called in any thread."""
        self._is_cut = True
        if self._direct is not None:
            _within(_CUTTING, devices.abort, self._direct)

    def leave(self) -> None:
        """Have all tensors go through the host again."""
        import torch.distributed as dist

        group, self._direct, self.device = self._direct, None, None
        if group is not None and not _within(_CUTTING, dist.destroy_process_group, group):
            self._is_stuck = True  # it has not connected, and nccl does not give that up
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
        """Let the process end without what the others still owe it: they may be silent for ever.

        gloo's group, when it goes, waits for what was begun, and nothing ends that waiting.
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


def _within(seconds: float, what: Callable[[Any], None], group: Any) -> bool:
    """Whether something that may wait for ever has come to its end, or an error, in time."""

    def run() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            what(group)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _keep(held: object) -> None:
    """With a reference too many it stays when the process ends."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


# --- the network interface ------------------------------------------------------------------------

INTERFACE = "GLOO_SOCKET_IFNAME"


@contextmanager
def on_their_network() -> Iterator[None]:
    """Have gloo tell the others an address of this host that they can reach.

    By itself it takes what the host's own name stands for, which on many systems is the loopback
    address. Inside the block, and unless the user has chosen one, it takes the network interface
    that leads to where the processes meet.
    """
    name = None if os.environ.get(INTERFACE) else _interface(_own_address())
    if name is None:
        yield
        return
    os.environ[INTERFACE] = name
    try:
        yield
    finally:
        del os.environ[INTERFACE]


def _own_address() -> str:
    """This host's address as the meeting place sees it; '' if that is not known."""
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    with contextlib.suppress(OSError):
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # of datagrams: nothing is sent
            return str(probe.getsockname()[0])
    return ""


def _interface(address: str) -> str | None:
    """The interface that has an address; None for the loopback, which is no way to other hosts."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            loops = address == "::1" or address.startswith("127.")
            return None if loops else str(name)
    return None
