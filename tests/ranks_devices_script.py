"""What the two ranks of test_ranks_devices.py do, with pretended devices.

    torchrun --nproc-per-node 2 ranks_devices_script.py MODEL FOLDER

Each rank writes what it saw to FOLDER/rank.json. In the place of nccl, which the CPU has not, a
second group of gloo joins the devices.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pretend_device import PretendDevice

import prunectl
from prunectl.calibration import forward
from prunectl.errors import PrunectlError
from prunectl.parallel import devices, link
from prunectl.parallel import ranks as ranks_module
from prunectl.plan import job as plan_job

RANK = int(os.environ["RANK"])
OWN, CPU = torch.device("cuda", RANK), torch.device("cpu")
NAMES = {
    "own": ["a", "b"], "lacking": ["a", ""], "shared": ["a", "a"], "own again": ["a", "b"],
    "broken": ["c", "d"], "silent": ["e", "f"], "own at last": ["a", "b"],
}  # fmt: skip
PLENTY = 1 << 40

reduced: list[str] = []
"""Where the tensors were that were added up on devices."""


def counting(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(str(tensor.device))
        return reduce(tensor, *args, **kwargs)

    return counted


@contextmanager
def nccl_is(way: str) -> Iterator[None]:
    """While the devices are to be joined, one rank has no way to the others, or all are silent."""
    broadcast = dist.broadcast

    def wrong(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread():  # it is gloo's
            return broadcast(tensor, *args, **kwargs)
        if way == "silent":
            time.sleep(60)
        if RANK == 1:
            raise RuntimeError("[/source.cpp:1] no way. What else torch says")
        return broadcast(tensor, *args, **kwargs)

    before, link._ANSWERING = link._ANSWERING, 1.0
    if way in ("broken", "silent"):
        dist.broadcast = wrong
    try:
        yield
    finally:
        dist.broadcast, link._ANSWERING = broadcast, before


def passed(ranks: prunectl.Ranks, case: str) -> dict[str, Any]:
    """Sums and tensors that pass between the ranks, and where they are then."""
    mine = NAMES[case][RANK]
    ranks_module.name_of = lambda device: mine if device.type == "cuda" else ""
    here = OWN if mine else CPU
    notes: list[Any] = []
    with nccl_is(case):
        ranks.use(here, notes.append)
    assert ranks._link is not None
    reduced.clear()
    total = torch.arange(5.0).to(here) * (RANK + 1)
    ranks.all_reduce(total)
    apart = torch.ones(3).to(here if RANK == 0 else CPU)  # one rank had no room for it
    ranks.all_reduce(apart)
    held = torch.arange(6, dtype=torch.bfloat16).reshape(3, 2)
    held = ranks.tensor_of(1, held.reshape(2, 3) if RANK == 1 else None)
    return {
        "notes": ["! " * one.warning + one.text for one in notes],
        "device": str(ranks._link.device),
        "total": [str(total.device), total.tolist()],
        "apart": [str(apart.device), apart.tolist()],
        "told": [str(held.device), str(held.dtype), held.tolist()],
        "reduced": reduced[:],
    }


def pruned(ranks: prunectl.Ranks, model: str, output: Path, device: str) -> list[str]:
    """Prune with samples on a device; returns where sums were made."""
    ranks_module.name_of = lambda device: f"gpu {RANK}" if device.type == "cuda" else ""
    forward._ROWS = 16
    choose = prunectl.device.choose_device
    plan_job.choose_device = lambda name: OWN if name == "cuda" else choose(name)
    reduced.clear()
    calibration = prunectl.Calibration(
        ("random",), samples=8, sequence_length=16, device=device, dtype="float32"
    )
    settings = prunectl.PruneSettings(
        sparsity=0.5, method=prunectl.Method.SPARSEGPT, calibration=calibration
    )
    prunectl.prune(model, output, settings, use_cache=False, ranks=ranks)
    return sorted(set(reduced))


def failing(wrong: Callable[[prunectl.Ranks], None]) -> list[Any]:
    """What ends a rank that waits for a sum on devices, and after how many seconds."""
    began = time.monotonic()
    try:
        with prunectl.joined_ranks() as ranks:
            ranks_module.name_of = lambda device: f"gpu {RANK}"
            ranks.use(OWN)
            if RANK == 1:
                wrong(ranks)
            ranks.all_reduce(torch.ones(3).to(OWN))
    except (PrunectlError, ValueError) as error:
        return [type(error).__name__, str(error), time.monotonic() - began]
    return []


def fails(ranks: prunectl.Ranks) -> None:
    raise ValueError("an error of one rank")


def is_cut(ranks: prunectl.Ranks) -> None:
    """Its own wait is ended, as its watch does, while the other has not come."""
    assert ranks._link is not None
    threading.Timer(0.3, ranks._link.cut).start()
    ranks._link._wait(lambda async_op: _Never())


class _Never:
    def is_completed(self) -> bool:
        return False


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    devices.BACKEND = "gloo"
    dist.reduce = counting(dist.reduce)
    said: dict[str, Any] = {}
    with PretendDevice(PLENTY, PLENTY):
        with prunectl.joined_ranks() as ranks:
            said |= {case: passed(ranks, case) for case in NAMES}
            said["cuda"] = pruned(ranks, model, folder / "cuda", "cuda")
            said["cpu"] = pruned(ranks, model, folder / "cpu", "cpu")
        said["fails"] = failing(fails)
        said["is cut"] = failing(is_cut)
    (folder / f"{RANK}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
