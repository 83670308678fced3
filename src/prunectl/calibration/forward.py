"""A model's own forward, run for one block at a time.

The blocks before it answer at once with what they put out last time, and it ends with the block. So
nothing here knows what a block is called with: masks, positions, caches, a shared position bias or
the encoder's output come from the model's own code.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunectl.calibration.statistics import NotShared
from prunectl.checkpoint.skeleton import Skeleton
from prunectl.errors import CalibrationFailed, CannotWrite
from prunectl.sink.osfiles import allocate

Inputs = Mapping[str, torch.Tensor]


class _Stop(BaseException):
    """The block has been run, and the rest is of no interest. No model may catch this."""


@dataclass(frozen=True)
class Unit:
    """Blocks that are worked on together: one, or several that take turns.

    Attributes:
        blocks: in the order of their first call.
        calls: how often one of them is called in a forward.
    """

    blocks: tuple[str, ...]
    calls: int


class Forward:
    """Runs samples through single blocks.

    Attributes:
        count: batches that the samples make.

    Args:
        skeleton: the model.
        samples: keyword arguments of its forward, one sample each.
        spill: a folder for what blocks put out; None keeps it in memory.
    """

    def __init__(
        self, skeleton: Skeleton, samples: Sequence[Inputs], spill: Path | None = None
    ) -> None:
        self._spill = spill
        self._skeleton, self._batches = skeleton, _batched(samples)
        self.count = len(self._batches)
        # Heads are left out where they can be: logits of a large vocabulary fill the memory.
        base = skeleton.model.base_model
        prefix = f"{skeleton.model.base_model_prefix}."
        inside = all(path.startswith(prefix) for path in skeleton.blocks)
        self._model = base if inside else skeleton.model
        # By list of blocks and batch: what the last block that was run has put out.
        self._outputs: dict[str, list[Any]] = {}

    def units(self) -> list[Unit]:
        """Run one sample through the whole model, with each block in memory while it is called."""
        trace: list[str] = []

        def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            trace.append(block)
            self._skeleton.load(block)
            try:
                return original(*args, **kwargs)
            finally:
                self._skeleton.unload(block)

        with self._replaced(run):
            self._forward(0)
        if not trace:
            raise CalibrationFailed("no transformer block is reached by the samples")
        return _in_units(trace)

    @contextmanager
    def _replaced(self, run: Callable[..., Any]) -> Iterator[None]:
        """``run(block, its own forward, ...)`` in the place of every block's forward."""
        modules = {path: self._skeleton.model.get_submodule(path) for path in self._skeleton.blocks}
        for path, module in modules.items():
            module.forward = partial(run, path, module.forward)
        try:
            yield
        finally:
            for module in modules.values():
                del module.forward

    def _forward(self, index: int) -> None:
        """One batch through the model, until a block says that it is enough."""
        device, dtype = self._skeleton.device, self._skeleton.dtype
        inputs = {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in self._batches[index].items()
        }
        try:
            with torch.no_grad():
                self._model(**inputs)
        except (_Stop, NotShared, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            first = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            raise CalibrationFailed(
                f"the model's forward fails on the samples: {first}",
                hint="PRUNECTL_DEBUG=1 shows where; --method magnitude runs no samples",
            ) from error

    def run(self, unit: Unit, index: int) -> dict[str, Any]:
        """One batch through a unit; returns what its blocks put out last, by list of blocks.

        Raises:
            CalibrationFailed: the model fails, or does not come to the unit.
            NotShared: a watcher inside of the forward says so.
        """
        left = unit.calls
        found: dict[str, Any] = {}

        def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            stack = block.rpartition(".")[0]
            if block not in unit.blocks:
                return pytree.tree_map_only(torch.Tensor, self._fresh, self._outputs[stack][index])
            found[stack] = original(*args, **kwargs)
            left -= 1
            if not left:
                raise _Stop
            return found[stack]

        with self._replaced(run):
            try:
                self._forward(index)
            except _Stop:
                return found
        raise CalibrationFailed(f"some samples do not reach block {unit.blocks[-1]}")

    def _fresh(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device: the model may write into what a block returns."""
        return tensor.to(self._skeleton.device, copy=True)

    def record(self, unit: Unit, index: int) -> None:
        """Keep what a unit puts out for a batch, for the blocks after it."""
        for stack, output in self.run(unit, index).items():
            kept = self._outputs.setdefault(stack, [None] * self.count)
            kept[index] = _on_host(output, kept[index - 1] if index else None, self._spill)
            first = next(
                (leaf for leaf in pytree.tree_leaves(kept[index]) if torch.is_tensor(leaf)), None
            )
            if first is not None and first.is_floating_point() and not first.isfinite().all():
                raise CalibrationFailed(
                    f"block {unit.blocks[-1]} puts out NaN or Inf",
                    hint="--dtype float32 has more range; is the checkpoint damaged?",
                )


def _batched(samples: Sequence[Inputs]) -> list[Inputs]:
    """Samples of equal shapes side by side, as many as make one efficient forward.

    Nothing is padded, so that every row of an input is a token of some sample.
    """
    batches: list[list[Inputs]] = []
    for sample in samples:
        room = max(1, _ROWS // max(_rows(sample), 1))
        last = batches[-1] if batches else []
        if last and len(last) < room and _shapes(last[0]) == _shapes(sample):
            last.append(sample)
        else:
            batches.append([sample])
    return [{key: torch.cat([one[key] for one in batch]) for key in batch[0]} for batch in batches]


_ROWS = 2048
"""Tokens in a forward; more of them make it no faster."""

_PATCH = 256
"""Values of an image or a sound that about make a row of a block's input."""


def _rows(sample: Inputs) -> int:
    return max(
        value.numel() // (_PATCH if value.is_floating_point() else 1) for value in sample.values()
    )


def _shapes(sample: Inputs) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in sample.items()}


def _in_units(trace: Sequence[str]) -> list[Unit]:
    """Cut a sequence of calls wherever no block is called on both sides of the cut."""
    last = {block: at for at, block in enumerate(trace)}
    units: list[Unit] = []
    start = 0
    while start < len(trace):
        end = at = start
        while at <= end:
            end = max(end, last[trace[at]])
            at += 1
        part = trace[start : end + 1]
        units.append(Unit(tuple(dict.fromkeys(part)), len(part)))
        start = end + 1
    return units


def _on_host(output: Any, before: Any, spill: Path | None) -> Any:
    """The output on the CPU; a tensor that is equal to the last batch's is kept once."""
    leaves, spec = pytree.tree_flatten(output)
    others = pytree.tree_leaves(before)
    kept = []
    for i, leaf in enumerate(leaves):
        if torch.is_tensor(leaf):
            leaf = leaf.detach().to("cpu")
            other = others[i] if i < len(others) else None
            if torch.is_tensor(other) and _same(leaf, other):
                leaf = other
            elif spill is not None:
                leaf = _in_file(leaf, spill)
        kept.append(leaf)
    return pytree.tree_unflatten(kept, spec)


def _in_file(tensor: torch.Tensor, folder: Path) -> torch.Tensor:
    """The same tensor in a file that is gone with it: it has no name, and a kill leaves none.

    Raises:
        CannotWrite: the folder takes no file of that size.
    """
    if not tensor.numel():
        return tensor
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".prunectl-states-")
        try:
            allocate(handle, tensor.nbytes)  # a full disk is an error here, and a signal later
            mapped = torch.from_file(
                name, shared=True, size=tensor.numel(), dtype=tensor.dtype
            ).reshape(tensor.shape)
        finally:
            os.close(handle)
            Path(name).unlink()
    except OSError as error:
        raise CannotWrite(folder, error.strerror or type(error).__name__) from None
    return mapped.copy_(tensor)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
