"""The order in which a model calls its blocks, and whether they can be run one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from prunectl.errors import CalibrationFailed

if TYPE_CHECKING:
    from prunectl.calibration.forward import Forward

_TOKENS = 64
"""Tokens of the sample that shows the order: what blocks put out for it is kept for all of them."""


class Stop(BaseException):
    """A block has been run, and the rest is of no interest. No model may catch this."""


@dataclass(frozen=True)
class Unit:
    """Blocks that are worked on together: one, or several that take turns.

    Attributes:
        blocks: in the order of their first call.
        calls: how often one of them is called in a forward.
    """

    blocks: tuple[str, ...]
    calls: int


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of a block in the whole model: its inputs, and its output, on the CPU."""

    block: str
    inputs: list[Any]
    output: Any


def find_units(forward: Forward) -> list[Unit]:
    """Run a short sample through the whole model, with each block in memory while it is called.

    Raises:
        CalibrationFailed: the model fails, no block is called, or a block depends on more than what
            the block before it puts out, so that it cannot be run by itself.
    """
    sample = {
        key: value[:1, :_TOKENS] if value.ndim == 2 else value[:1]
        for key, value in forward.batches[0].items()
    }
    trace: list[_Call] = []
    skeleton = forward.skeleton

    def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        skeleton.load(block)
        inputs = _tensors((args, kwargs))
        try:
            output = original(*args, **kwargs)
        finally:
            skeleton.unload(block)
        trace.append(_Call(block, inputs, _kept(output)))
        return output

    with forward.replaced(run):
        forward.go(sample)
    if not trace:
        raise CalibrationFailed("no transformer block is reached by the samples")
    units = in_units([call.block for call in trace])
    start = 0
    for unit in units:
        if start:
            _check(forward, sample, unit, trace, start)
        start += unit.calls
    return units


def _check(
    forward: Forward, sample: Mapping[str, Any], unit: Unit, trace: Sequence[_Call], start: int
) -> None:
    """See that a unit gets the same inputs when the blocks before it only answer from memory."""
    latest = {call.block.rpartition(".")[0]: call.output for call in trace[:start]}
    found: list[Any] = []

    def run(block: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if block in unit.blocks:
            found.extend(_tensors((args, kwargs)))
            raise Stop
        return forward.fresh(latest[block.rpartition(".")[0]])

    with forward.replaced(run):
        forward.go(sample)
    expected = trace[start].inputs
    same = len(found) == len(expected) and all(map(_close, found, expected))
    if not same:
        raise CalibrationFailed(
            f"block {unit.blocks[0]} depends on more than what the block before it puts out",
            hint="calibration runs one block at a time; --method magnitude needs none",
        )


def in_units(trace: Sequence[str]) -> list[Unit]:
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


def _kept(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda one: one.detach().cpu().clone(), value)


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves: list[Any] = pytree.tree_leaves(_kept(value))
    return [leaf for leaf in leaves if torch.is_tensor(leaf)]


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5, equal_nan=True)
