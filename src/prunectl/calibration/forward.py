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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunectl.calibration.block_order import BlockGroup, Stop
from prunectl.checkpoint.block_model import BlockModel
from prunectl.device import is_out_of_memory
from prunectl.errors import CalibrationFailed, CannotWrite
from prunectl.methods.table import DEFAULT
from prunectl.output.osfiles import allocate

Inputs = Mapping[str, torch.Tensor]


class Forward:
    """Runs samples through single blocks.

    Attributes:
        first: of what the samples make, side by side where they can be, the first batch.
        batches: those of this process; count: how many.

    Args:
        block_model: the model.
        samples: keyword arguments of its forward, one sample each.
        spill: a folder for what blocks put out; None keeps it in memory.
        own: which batches are this process's.
    """

    def __init__(
        self,
        block_model: BlockModel,
        samples: Sequence[Inputs],
        spill: Path | None = None,
        own: slice = slice(None),
    ) -> None:
        self._spill = spill
        batches = _batched(samples)
        self.block_model, self.first, self.batches = block_model, batches[0], batches[own]
        self.count = len(self.batches)
        # Heads are left out where they can be: logits of a large vocabulary fill the memory.
        self._model = block_model.body
        # By list of blocks and batch: what the last block that was run has put out.
        self._outputs: dict[str, list[Any]] = {}

    @contextmanager
    def replaced(self, run: Callable[..., Any]) -> Iterator[None]:
        """``run(block, its own forward, ...)`` in the place of every block's forward."""
        modules = {
            path: self.block_model.model.get_submodule(path) for path in self.block_model.blocks
        }
        for path, module in modules.items():
            module.forward = partial(run, path, module.forward)
        try:
            yield
        finally:
            for module in modules.values():
                del module.forward

    def go(self, inputs: Inputs) -> bool:
        """Run inputs through the model; returns whether a block has ended it by :class:`Stop`.

        Raises:
            CalibrationFailed: the model fails on them.
        """
        device, dtype = self.block_model.device, self.block_model.dtype
        placed = {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        try:
            with torch.no_grad():
                self._model(**placed)
        except Stop:
            return True
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            first = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            raise CalibrationFailed(
                f"the model's forward fails on the samples: {first}",
                hint=f"PRUNECTL_DEBUG=1 shows where; --method {DEFAULT} runs no samples",
            ) from error
        return False

    def run(self, group: BlockGroup, index: int) -> dict[str, Any]:
        """One batch through a group; returns what its blocks put out last, by list of blocks.

        Raises:
            CalibrationFailed: the model fails, or does not come to the group.
            NotShared: a watcher inside of the forward says so.
        """
        left = group.calls
        found: dict[str, Any] = {}

        def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            stack = block.rpartition(".")[0]
            if block not in group.blocks:
                return self.fresh(self._outputs[stack][index])
            found[stack] = original(*args, **kwargs)
            left -= 1
            if not left:
                raise Stop
            return found[stack]

        with self.replaced(run):
            if self.go(self.batches[index]):
                return found
        raise CalibrationFailed(f"some samples do not reach block {group.blocks[-1]}")

    def fresh(self, output: Any) -> Any:
        """A copy on the device: the model may write into what a block returns."""
        device = self.block_model.device
        return pytree.tree_map_only(torch.Tensor, lambda one: one.to(device, copy=True), output)

    def record(self, group: BlockGroup, index: int) -> None:
        """Keep what a group puts out for a batch, for the blocks after it."""
        for stack, output in self.run(group, index).items():
            kept = self._outputs.setdefault(stack, [None] * self.count)
            kept[index] = _on_host(output, kept[index - 1] if index else None, self._spill)
            first = next(
                (leaf for leaf in pytree.tree_leaves(kept[index]) if torch.is_tensor(leaf)), None
            )
            if first is not None and first.is_floating_point() and not first.isfinite().all():
                raise CalibrationFailed(
                    f"block {group.blocks[-1]} puts out NaN or Inf",
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
