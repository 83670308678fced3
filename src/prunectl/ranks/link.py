"""What passes between the processes: bytes and sums, by torch.distributed."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

from prunectl.ranks.errors import RanksLost, in_short
from prunectl.ranks.network import on_their_network

if TYPE_CHECKING:
    import torch

_LONGEST = datetime.timedelta(days=7)
"""A rank waits for the others as long as their part takes; that they live is seen to elsewhere."""
_CONNECTING = datetime.timedelta(seconds=30)
"""For which a rank that has met the others tries to reach them."""
_PIECE = 64 << 20


class Link:
    """A process group of gloo. Every method is called by all ranks alike, and in the same order.

    Waiting can be interrupted: it is done here, not in torch.

    Args:
        store: that the processes meet at. rank, count: of them.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        import torch.distributed as dist

        self.rank, self.count = rank, count
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

    def sum(self, tensor: torch.Tensor) -> None:
        """Add up the ranks' tensors, in place; every rank gets the same bits."""
        import torch.distributed as dist

        self._wait(lambda: dist.all_reduce(tensor, group=self._group, async_op=True))

    def tensor_of(self, source: int, tensor: torch.Tensor) -> None:
        """Put what ``source`` has in ``tensor``, contiguous and of any dtype, in every rank's."""
        import torch

        if tensor.numel():
            for piece in tensor.view(-1).view(torch.uint8).split(_PIECE):
                self._broadcast(piece, source)

    def close(self) -> None:
        """Leave the group, if it was joined here."""
        import torch.distributed as dist

        if self._own:
            dist.destroy_process_group()

    def _broadcast(self, tensor: torch.Tensor, source: int) -> None:
        import torch.distributed as dist

        self._wait(lambda: dist.broadcast(tensor, source, group=self._group, async_op=True))

    def _wait(self, start: Any) -> None:
        """Start what is to be done together, and wait for the others.

        Raises:
            RanksLost: one of them is gone.
        """
        try:
            work = start()
            pause = 1e-4
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            work.wait()
        except RuntimeError as error:
            raise RanksLost(in_short(error)) from error
