"""The order in which a model calls its blocks, and whether they can be run one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prunectl.calibration.forward import BlockGroup, Forward, Inputs, Stop
from prunectl.checkpoint.block_model import BlockModel
from prunectl.errors import BadCheckpoint, CalibrationFailed
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted, ignore_events
from prunectl.methods.table import DEFAULT

_TOKENS = 64
"""Tokens of the trial sample. The outputs of all blocks for it are kept in memory."""


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of a block in the whole model: its inputs, and its output, on the CPU."""

    block: str
    inputs: list[Any]
    output: Any


@dataclass(frozen=True)
class BlockOrder:
    """The order of a model's blocks, and the sizes of their outputs.

    Attributes:
        groups: in the order in which the model calls them.
        states: upper bound of the bytes of block outputs for all samples of this process.
        batch_states: the same for the largest batch.
        rows: most tokens, or patches, in one batch.
        has_logits: whether the model has a head from the checkpoint that puts out logits.
    """

    groups: tuple[BlockGroup, ...]
    states: int
    batch_states: int
    rows: int
    has_logits: bool = False


def find_block_order(forward: Forward, on_event: OnEvent = ignore_events) -> BlockOrder:
    """Run a short sample through the whole model, with each block in memory while it is called.

    Then run each group by itself and compare its outputs, so that a model that cannot be calibrated
    block by block is refused here and not in the middle of a calibration.

    Raises:
        CalibrationFailed: the model fails, no block is called, or a block depends on more than the
        output of the block before it, so that it cannot be run by itself.
        BadCheckpoint: the model computes its blocks' inputs with weights that the checkpoint lacks.
    """
    block_model, sample = forward.block_model, _short(forward.first)
    total = 2 * sum(block_model.nbytes(block) for block in block_model.blocks)
    done = 0
    on_event(PhaseStarted(_PHASE, total))

    def tell(block: str) -> None:
        nonlocal done
        done += block_model.nbytes(block)
        on_event(Advanced(_PHASE, block_model.nbytes(block), block))

    trace: list[_Call] = []
    reads = _MadeUpReads(block_model, trace)

    def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with reads.paused():  # reads by the loader are not reads by the model
            block_model.load(block)
        inputs = _tensors((args, kwargs))
        try:
            output = original(*args, **kwargs)
        finally:
            block_model.unload(block)
        if all(call.block != block for call in trace):
            tell(block)
        trace.append(_Call(block, inputs, _kept(output)))
        return output

    with forward.replaced(run), reads:
        forward.go(sample)
    if not trace:
        raise CalibrationFailed("no transformer block is reached by the samples")
    _refuse_made_up(block_model, [name for name, at in reads.found.items() if at < len(trace)])
    groups = in_groups([call.block for call in trace])
    start = 0
    for group in groups:
        if start:
            _check(forward, sample, group, trace, start)
        for block in group.blocks:
            tell(block)
        start += group.calls
    on_event(Advanced(_PHASE, total - done))
    on_event(PhaseDone(_PHASE))
    return BlockOrder(
        tuple(groups),
        *_sizes(trace, sample, forward.batches),
        has_logits=_has_logits(forward, sample, trace),
    )


def _has_logits(forward: Forward, sample: Inputs, trace: Sequence[_Call]) -> bool:
    """Whether the model has a head from the checkpoint, loaded, that puts out logits."""
    head = forward.block_model.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or weight.is_meta or forward.block_model.made_up:
        return False
    latest = {call.block.rpartition(".")[0]: call.output for call in trace}
    try:
        return bool(forward.logits_of(sample, latest).shape[-1] == len(weight))
    except CalibrationFailed:
        return False


_PHASE = "trying the model"


def _short(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The first tokens of the first sample."""
    return {
        key: value[:1, :_TOKENS] if value.ndim == 2 else value[:1] for key, value in inputs.items()
    }


def _sizes(
    trace: Sequence[_Call], sample: Inputs, batches: Sequence[Inputs]
) -> tuple[int, int, int]:
    """(Bytes of the last outputs of each list of blocks, scaled to all batches, and to the largest;
    most rows of a batch.)"""
    outputs = list({call.block.rpartition(".")[0]: call.output for call in trace}.values())
    parts = [  # the size of each batch in trial samples
        max(batch[key].numel() / max(value.numel(), 1) for key, value in sample.items())
        for batch in batches
    ]
    size = sum(leaf.nbytes for leaf in _tensors(outputs))
    leaves = [_tensors(output)[:1] for output in outputs]
    rows = max((one.numel() // max(one.shape[-1], 1) for leaf in leaves for one in leaf), default=1)
    largest = max(parts, default=0)
    return math.ceil(size * sum(parts)), math.ceil(size * largest), math.ceil(rows * largest)


class _MadeUpReads(TorchFunctionMode):
    """Records which parameters a model reads although the checkpoint lacks them.

    Attributes:
        found: by name, the number of block calls before the first read.
    """

    def __init__(self, block_model: BlockModel, trace: Sequence[_Call]) -> None:
        super().__init__()
        self._trace = trace
        self._names = {id(block_model.model.get_parameter(n)): n for n in block_model.made_up}
        self.found: dict[str, int] = {}
        self._is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Reads inside the ``with`` block are not recorded."""
        self._is_paused = True
        yield
        self._is_paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._names and not self._is_paused:
            for leaf in pytree.tree_leaves((args, kwargs)):
                if (name := self._names.get(id(leaf))) is not None:
                    self.found.setdefault(name, len(self._trace))
        return func(*args, **(kwargs or {}))


def _refuse_made_up(block_model: BlockModel, names: Sequence[str]) -> None:
    """Zeros in the place of an embedding or a norm would make all inputs meaningless."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise BadCheckpoint(
            block_model.folder,
            f"lacks {', '.join(names[:3])}{more}, which the model's blocks need",
            hint=f"calibration runs the model; --method {DEFAULT} works on the files as they are",
        )


class _Differs(BaseException):
    """A group's inputs or outputs differ from the whole model's. Models do not catch this."""


def _check(
    forward: Forward, sample: Inputs, group: BlockGroup, trace: Sequence[_Call], start: int
) -> None:
    """Check that a group gives the same outputs when earlier blocks are replayed from memory."""
    latest = {call.block.rpartition(".")[0]: call.output for call in trace[:start]}
    calls = iter(trace[start : start + group.calls])

    def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if block not in group.blocks:
            return forward.fresh(latest[block.rpartition(".")[0]])
        call = next(calls)
        if call.block != block or not _alike(_tensors((args, kwargs)), call.inputs):
            raise _Differs
        forward.block_model.load(block)
        try:
            output = original(*args, **kwargs)
        finally:
            forward.block_model.unload(block)
        if not _alike(_tensors(output), _tensors(call.output)):
            raise _Differs
        if call is trace[start + group.calls - 1]:
            raise Stop
        return output

    cause: Exception | None = None
    with forward.replaced(run):
        try:
            if forward.go(sample):
                return
        except _Differs:
            pass
        except CalibrationFailed as error:
            cause = error
    raise CalibrationFailed(
        f"block {group.blocks[0]} depends on more than the output of the block before it",
        hint=f"calibration runs one block at a time; --method {DEFAULT} needs none",
    ) from cause


def in_groups(trace: Sequence[str]) -> list[BlockGroup]:
    """Cut a sequence of calls wherever no block is called on both sides of the cut."""
    last = {block: at for at, block in enumerate(trace)}
    groups: list[BlockGroup] = []
    start = 0
    while start < len(trace):
        end = at = start
        while at <= end:
            end = max(end, last[trace[at]])
            at += 1
        part = trace[start : end + 1]
        groups.append(BlockGroup(tuple(dict.fromkeys(part)), len(part)))
        start = end + 1
    return groups


def _kept(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda one: one.detach().cpu().clone(), value)


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves: list[Any] = pytree.tree_leaves(_kept(value))
    return [leaf for leaf in leaves if torch.is_tensor(leaf)]


def _alike(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(map(_close, found, expected))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5, equal_nan=True)
