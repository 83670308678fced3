"""A model's own forward, stopped after one block.

Earlier blocks return their last outputs without computing, and the forward ends after the block.
Nothing here needs to know a block's arguments: masks, positions, caches, a shared position bias and
the encoder's output come from the model's own code.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunectl.calibration.errors import in_short, not_finite
from prunectl.checkpoint.block_model import BlockModel
from prunectl.cpu import multiplies_bf16
from prunectl.device import is_out_of_memory
from prunectl.errors import CalibrationFailed, CannotWrite
from prunectl.methods.table import DEFAULT
from prunectl.output.osfiles import allocate

Inputs = Mapping[str, torch.Tensor]


_ROWS = 2048
"""Tokens in a batch; more make the forward no faster."""


HELD_OUT = 16
"""One of this many batches is held out."""


class Stop(BaseException):
    """Ends a forward after the last block of interest. Models catch Exception, not this."""


@dataclass(frozen=True)
class BlockGroup:
    """Blocks that are calibrated together: one, or several that the model calls in turns.

    Attributes:
        blocks: in the order of their first call.
        calls: of all its blocks in one forward.
    """

    blocks: tuple[str, ...]
    calls: int


class Forward:
    """Runs batches of samples through single blocks.

    Attributes:
        first: the first batch of all processes.
        batches: of this process. count: of them; total: of all processes. numbers: which of all
            these are.
        rows: of the hidden states that the last block of a group got, such as tokens.

    Args:
        spill: a folder for block outputs; None keeps them in memory.
        own: selects this process's batches.
        least: batches to make at least, if there are as many samples.
    """

    def __init__(
        self,
        block_model: BlockModel,
        samples: Sequence[Inputs],
        spill: Path | None = None,
        own: slice = slice(None),
        least: int = 1,
    ) -> None:
        self._spill = spill
        batches = _batched(samples, least)
        self.block_model, self.first, self.batches = block_model, batches[0], batches[own]
        self.count, self.total = len(self.batches), len(batches)
        self.numbers = range(self.total)[own]
        self.rows = 0
        # Without the head, where the model class allows: logits of large vocabularies fill memory.
        self._body = block_model.body
        # By model, list of blocks and batch: the output of the last block that was run.
        self._outputs: dict[bool, dict[str, list[Any]]] = {False: {}, True: {}}

    @contextmanager
    def replaced(self, run: Callable[..., Any]) -> Iterator[None]:
        """Replace every block's forward by ``run(block, its own forward, ...)``."""
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

    @property
    def held_out(self) -> range:
        """The numbers, among those of all processes, of the batches on which a fit is judged."""
        return range(min(HELD_OUT, self.total) - 1, self.total, HELD_OUT)

    @property
    def fitted(self) -> list[int]:
        """The numbers of all other batches, to which a fit is made."""
        return [number for number in range(self.total) if number not in self.held_out]

    def autocast(self, *, enabled: bool = True) -> AbstractContextManager[None]:
        """Multiply in bf16 what is fp32, if the device does it in hardware: for gradients."""
        device = self.block_model.device.type
        enabled = enabled and self.block_model.dtype == torch.float32 and multiplies_bf16_on(device)
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    def go(self, inputs: Inputs, *, grad: bool = False) -> bool:
        """Run inputs through the body; returns whether a block ended the forward by :class:`Stop`.

        Args:
            grad: record operations on parameters that ask for it.

        Raises:
            CalibrationFailed: the model fails on them.
        """
        return self._call(self._body, inputs, grad) is None

    def _call(self, model: torch.nn.Module, inputs: Inputs, grad: bool) -> Any:
        """What a model puts out; None if a block ended its forward."""
        device, dtype = self.block_model.device, self.block_model.dtype
        placed = {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        try:
            with torch.set_grad_enabled(grad):
                return model(**placed)
        except Stop:
            return None
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise CalibrationFailed(
                f"the model's forward fails on the samples: {in_short(error)}",
                hint=f"PRUNECTL_DEBUG=1 shows where; --method {DEFAULT} alone runs no samples",
            ) from error

    def run(
        self,
        group: BlockGroup,
        index: int,
        *,
        dense: bool = False,
        grad: bool = False,
        before: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run one batch through a group; returns the last outputs of its blocks, by list of blocks.

        Args:
            dense: begin with the outputs that :meth:`record` kept for the dense model.
            before: begin with these outputs, by list of blocks, and not with recorded ones.

        Raises:
            CalibrationFailed: the model fails, or does not reach the group.
            NotShared: raised by a watcher inside the forward.
        """
        left = group.calls
        found: dict[str, Any] = {}

        def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            stack = block.rpartition(".")[0]
            if block not in group.blocks:
                return self.fresh(
                    self._outputs[dense][stack][index] if before is None else before[stack]
                )
            states = hidden_states((args, kwargs))
            self.rows = 0 if states is None else states.shape[:-1].numel()
            found[stack] = original(*args, **kwargs)
            left -= 1
            if not left:
                raise Stop
            return found[stack]

        with self.replaced(run):
            if self.go(self.batches[index], grad=grad):
                return found
        raise CalibrationFailed(f"some samples do not reach block {group.blocks[-1]}")

    def dense_outputs(self, index: int) -> dict[str, Any]:
        """The last outputs of each list of blocks that :meth:`record` kept for the dense model."""
        return {stack: outputs[index] for stack, outputs in self._outputs[True].items()}

    def logits_of(
        self, inputs: Inputs, last: Mapping[str, Any], *, grad: bool = False
    ) -> torch.Tensor:
        """The model's logits [samples, tokens, vocabulary].

        Args:
            last: the last outputs of each list of blocks.
            grad: record operations on them.

        Raises:
            CalibrationFailed: the model fails, or puts out something else.
        """

        def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return self.fresh(last[block.rpartition(".")[0]])

        with self.replaced(run):
            found = self._call(self.block_model.model, inputs, grad)
        logits = getattr(found, "logits", None)
        if not torch.is_tensor(logits) or logits.ndim < 2:
            raise CalibrationFailed("the model puts out no logits")
        return logits

    def output(self, stack: str, index: int, *, dense: bool = False) -> Any:
        """What :meth:`record` kept last for a batch, of the last block of a list."""
        return self._outputs[dense][stack][index]

    def fresh(self, output: Any) -> Any:
        """A copy on the device: the model may write into what a block returns."""
        device = self.block_model.device
        return pytree.tree_map_only(torch.Tensor, lambda one: one.to(device, copy=True), output)

    def record(self, group: BlockGroup, index: int, *, dense: bool = False) -> None:
        """Keep a group's outputs for a batch, for later blocks; apart for the dense model."""
        for stack, output in self.run(group, index, dense=dense).items():
            kept = self._outputs[dense].setdefault(stack, [None] * self.count)
            kept[index] = _on_host(output, kept[index - 1] if index else None, self._spill)
            first = hidden_states(kept[index])
            if first is not None and first.is_floating_point() and not first.isfinite().all():
                raise not_finite(group.blocks[-1])


def multiplies_bf16_on(device: str) -> bool:
    """Whether a device of this type multiplies bf16 in hardware."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return multiplies_bf16()


def hidden_states(output: Any) -> torch.Tensor | None:
    """The first tensor of a block's output, or of its arguments."""
    return next((leaf for leaf in pytree.tree_leaves(output) if torch.is_tensor(leaf)), None)


def _batched(samples: Sequence[Inputs], least: int) -> list[Inputs]:
    """Batches of samples of equal shapes, large enough for an efficient forward.

    Nothing is padded: every row of an input is a token of a sample.
    """
    batches: list[list[Inputs]] = []
    for sample in samples:
        room = max(1, min(_ROWS // max(_rows(sample), 1), len(samples) // least))
        last = batches[-1] if batches else []
        if last and len(last) < room and _shapes(last[0]) == _shapes(sample):
            last.append(sample)
        else:
            batches.append([sample])
    return [{key: torch.cat([one[key] for one in batch]) for key in batch[0]} for batch in batches]


_PATCH = 256
"""Values of an image or a sound for each row of a block's input, roughly."""


def _rows(sample: Inputs) -> int:
    return max(
        value.numel() // (_PATCH if value.is_floating_point() else 1) for value in sample.values()
    )


def _shapes(sample: Inputs) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in sample.items()}


def _on_host(output: Any, before: Any, spill: Path | None) -> Any:
    """The output on the CPU; a tensor equal to that of the batch before shares its memory."""
    leaves, spec = pytree.tree_flatten(output)
    others = pytree.tree_leaves(before)
    kept = []
    for i, leaf in enumerate(leaves):
        if torch.is_tensor(leaf):
            leaf = leaf.detach().to("cpu")
            other = others[i] if i < len(others) else None
            if torch.is_tensor(other) and leaf.dtype == other.dtype and torch.equal(leaf, other):
                leaf = other
            elif spill is not None:
                leaf = _in_file(leaf, spill)
        kept.append(leaf)
    return pytree.tree_unflatten(kept, spec)


def _in_file(tensor: torch.Tensor, folder: Path) -> torch.Tensor:
    """The tensor in an unlinked file, which disappears with it, also when the process is killed."""
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
