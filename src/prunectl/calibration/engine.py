"""Calibration, one block at a time: inputs gathered, weights pruned, outputs computed anew.

The model's own forward is run for every block, with the blocks before it answering at once with
what they put out last time. So nothing here knows what a block is called with: masks, positions,
caches, a shared position bias or the encoder's output come from the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunectl.calibration.capture import Matrix, ProductWatcher, matrices
from prunectl.calibration.statistics import Key, NotShared, Statistics
from prunectl.checkpoint.skeleton import Skeleton
from prunectl.errors import CalibrationFailed
from prunectl.events import Advanced, OnEvent, PhaseDone, PhaseStarted, ignore_events
from prunectl.methods.statistics import Gram

Inputs = Mapping[str, torch.Tensor]
Values = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Measured:
    """A matrix of a block, and what was seen of its inputs; None where nothing reached it."""

    matrix: Matrix
    gram: Gram | None


PruneTensor = Callable[[str, Sequence[Measured]], torch.Tensor | None]
"""Takes a tensor's name and its matrices; gives its new values in the stored shape, or None."""


@dataclass(frozen=True)
class Wanted:
    """Which tensors are pruned, and how their inputs are measured.

    Attributes:
        axes: input axis by tensor name, in file order.
        full: whole second moments; False gathers their diagonals only.
        true_sequential: measure the inputs of each matrix with those before it, in the same block,
            pruned already.
    """

    axes: Mapping[str, int | None]
    full: bool = True
    true_sequential: bool = False


class _Stop(Exception):
    """The block has been run: what comes after it is of no interest."""


def _never(block: str) -> Values | None:
    return None


def calibrate(
    skeleton: Skeleton,
    samples: Sequence[Inputs],
    wanted: Wanted,
    prune_tensor: PruneTensor,
    *,
    finished: Callable[[str], Values | None] = _never,
    done: Callable[[str], object] = _never,
    phase: str = "calibrating",
    on_event: OnEvent = ignore_events,
) -> None:
    """Go through the blocks in the order in which the model calls them.

    Args:
        skeleton: the model.
        samples: keyword arguments of the model's forward, one sample each.
        wanted: what is measured.
        prune_tensor: called once for each wanted tensor, when the inputs of its block are known
            with all blocks before it pruned. Blocks that no sample reaches come last.
        finished: a block's new values from an earlier run, by tensor; None if there are none.
        done: told when all tensors of a block have been pruned.
        phase: what the progress is called.
        on_event: told of the progress, in bytes of blocks.

    Raises:
        CalibrationFailed: the model fails on the samples, or puts out NaN.
    """
    engine = _Engine(skeleton, _batched(samples), wanted, prune_tensor, phase, on_event)
    units = engine.units()
    on_event(PhaseStarted(phase, sum(skeleton.nbytes(b) for unit in units for b in unit.blocks)))
    for unit in units:
        engine.run(unit, {block: finished(block) for block in unit.blocks})
        for block in unit.blocks:
            done(block)
    for block in engine.unreached(units):
        if finished(block) is None:
            engine.prune_unreached(block)
        done(block)
    on_event(PhaseDone(phase))


@dataclass(frozen=True)
class _Unit:
    """Blocks that are worked on together: one, or several that take turns.

    Attributes:
        blocks: in the order of their first call.
        calls: how often one of them is called in a forward.
    """

    blocks: tuple[str, ...]
    calls: int


class _Engine:
    def __init__(
        self,
        skeleton: Skeleton,
        samples: Sequence[Inputs],
        wanted: Wanted,
        prune_tensor: PruneTensor,
        phase: str,
        on_event: OnEvent,
    ) -> None:
        self._phase = phase
        self._skeleton, self._samples, self._wanted = skeleton, samples, wanted
        self._prune_tensor, self._on_event = prune_tensor, on_event
        # By list of blocks and sample: what the last block that was run has put out.
        self._outputs: dict[str, list[Any]] = {}
        self._names: dict[str, list[str]] = {block: [] for block in skeleton.blocks}
        for name in wanted.axes:
            target = skeleton.targets.get(name)
            block = skeleton.block_of(target.parameter) if target is not None else None
            if block is not None:
                self._names[block].append(name)

    # --- running the model ----------------------------------------------------------------------

    def units(self) -> list[_Unit]:
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
        """One sample through the model, until a block says that it is enough."""
        device, dtype = self._skeleton.device, self._skeleton.dtype
        inputs = {
            key: value.to(device, dtype if value.is_floating_point() else None)
            for key, value in self._samples[index].items()
        }
        try:
            with torch.no_grad():
                self._skeleton.model(**inputs)
        except (_Stop, NotShared, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            first = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            raise CalibrationFailed(
                f"the model's forward fails on the samples: {first}",
                hint="PRUNECTL_DEBUG=1 shows where",
            ) from error

    def _run_unit(self, unit: _Unit, index: int) -> dict[str, Any]:
        """One sample through a unit; returns what its blocks put out last, by list of blocks."""
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

    # --- one unit -------------------------------------------------------------------------------

    def run(self, unit: _Unit, earlier: Mapping[str, Values | None]) -> None:
        """Prune the blocks of a unit, then compute what they put out now."""
        for block in unit.blocks:
            self._skeleton.load(block)
        steps = self._steps(unit, earlier)
        size = sum(self._skeleton.nbytes(block) for block in unit.blocks)
        count = (len(steps) + 1) * len(self._samples)
        tell = _Teller(self._on_event, self._phase, size, count, unit.blocks[0])
        for step in steps:
            step(tell)
        for index in range(len(self._samples)):
            self._record(unit, index)
            tell()
        for block in unit.blocks:
            self._skeleton.unload(block)
        tell.finish()

    def _steps(
        self, unit: _Unit, earlier: Mapping[str, Values | None]
    ) -> list[Callable[[_Teller], None]]:
        """What is to be done before the outputs: one measurement, or one for each input."""
        names = [name for block in unit.blocks for name in self._names[block]]
        views = self._skeleton.views(names)
        known = {k: v for found in earlier.values() for k, v in (found or {}).items()}
        for name, value in known.items():
            views[name].copy_(value)
        todo = {
            name: matrices(name, views[name], self._wanted.axes[name])
            for name in names
            if name not in known
        }
        if not todo:
            return []
        groups = self._in_order(unit, todo) if self._wanted.true_sequential else [list(todo)]
        return [
            partial(self._measure_and_prune, unit, {name: todo[name] for name in group}, views)
            for group in groups
        ]

    def _in_order(self, unit: _Unit, todo: Mapping[str, list[Matrix]]) -> list[list[str]]:
        """The tensors in order of use; those that share an input go together."""
        statistics = self._statistics(only=set())
        self._collect_one(unit, todo, statistics, 0)
        groups: dict[Key, list[str]] = {}
        placed: set[str] = set()
        for key in statistics.order:
            for name in dict.fromkeys(one.name for one in key):
                if name not in placed:
                    placed.add(name)
                    groups.setdefault(statistics.leader[key], []).append(name)
        unseen = [name for name in todo if name not in placed]
        return [*groups.values(), *([unseen] if unseen else [])]

    def _measure_and_prune(
        self, unit: _Unit, todo: Mapping[str, list[Matrix]], views: Values, tell: _Teller
    ) -> None:
        statistics = self._collect(unit, todo, tell)
        for name, parts in todo.items():
            new = self._prune_tensor(name, [Measured(one, statistics.of(one)) for one in parts])
            if new is not None:
                views[name].copy_(new)

    def _statistics(self, *, shared: bool = True, only: set[Key] | None = None) -> Statistics:
        return Statistics(
            full=self._wanted.full,
            device=self._skeleton.device,
            on_event=self._on_event,
            shared=shared,
            only=only,
        )

    def _collect(self, unit: _Unit, todo: Mapping[str, list[Matrix]], tell: _Teller) -> Statistics:
        statistics = self._statistics()
        try:
            for index in range(len(self._samples)):
                self._collect_one(unit, todo, statistics, index)
                tell()
        except NotShared:
            statistics = self._statistics(shared=False)
            for index in range(len(self._samples)):
                self._collect_one(unit, todo, statistics, index)
        return statistics

    def _collect_one(
        self, unit: _Unit, todo: Mapping[str, list[Matrix]], statistics: Statistics, index: int
    ) -> None:
        statistics.next_sample()
        watched = [one for parts in todo.values() for one in parts]
        with ProductWatcher(watched, statistics.seen):
            self._run_unit(unit, index)

    def _record(self, unit: _Unit, index: int) -> None:
        """Keep what a unit puts out for a sample, for the blocks after it."""
        for stack, output in self._run_unit(unit, index).items():
            kept = self._outputs.setdefault(stack, [None] * len(self._samples))
            kept[index] = _in_host_memory(output, kept[index - 1] if index else None)
            first = next(
                (leaf for leaf in pytree.tree_leaves(kept[index]) if torch.is_tensor(leaf)), None
            )
            if first is not None and first.is_floating_point() and not first.isfinite().all():
                raise CalibrationFailed(
                    f"block {unit.blocks[-1]} puts out NaN or Inf",
                    hint="--dtype float32 has more range; is the checkpoint damaged?",
                )

    # --- what no sample reaches -----------------------------------------------------------------

    def unreached(self, units: Sequence[_Unit]) -> list[str]:
        """Blocks with tensors to prune that no sample reaches, such as those of a vision tower."""
        reached = {block for unit in units for block in unit.blocks}
        return [block for block, names in self._names.items() if names and block not in reached]

    def prune_unreached(self, block: str) -> None:
        """Have a block's tensors pruned without statistics."""
        self._skeleton.load(block)
        for name, view in self._skeleton.views(self._names[block]).items():
            parts = matrices(name, view, self._wanted.axes[name])
            self._prune_tensor(name, [Measured(one, None) for one in parts])
        self._skeleton.unload(block)


class _Teller:
    """Turns the steps of a unit into bytes of progress, which sum up to the unit's size."""

    def __init__(self, on_event: OnEvent, phase: str, size: int, steps: int, item: str) -> None:
        self._on_event, self._phase, self._item = on_event, phase, item
        self._size, self._steps = size, steps
        self._told = self._count = 0

    def __call__(self) -> None:
        self._count += 1
        self._tell(self._size * min(self._count, self._steps) // self._steps)

    def finish(self) -> None:
        self._tell(self._size)

    def _tell(self, upto: int) -> None:
        if upto > self._told:
            self._on_event(Advanced(self._phase, upto - self._told, self._item))
            self._told = upto


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


def _in_units(trace: Sequence[str]) -> list[_Unit]:
    """Cut a sequence of calls wherever no block is called on both sides of the cut."""
    last = {block: at for at, block in enumerate(trace)}
    units: list[_Unit] = []
    start = 0
    while start < len(trace):
        end = at = start
        while at <= end:
            end = max(end, last[trace[at]])
            at += 1
        part = trace[start : end + 1]
        units.append(_Unit(tuple(dict.fromkeys(part)), len(part)))
        start = end + 1
    return units


def _in_host_memory(output: Any, before: Any) -> Any:
    """The output on the CPU; a tensor that is equal to the last sample's is kept once."""
    leaves, spec = pytree.tree_flatten(output)
    others = pytree.tree_leaves(before)
    kept = []
    for i, leaf in enumerate(leaves):
        if torch.is_tensor(leaf):
            leaf = leaf.detach().to("cpu")
            other = others[i] if i < len(others) else None
            if torch.is_tensor(other) and _same(leaf, other):
                leaf = other
        kept.append(leaf)
    return pytree.tree_unflatten(kept, spec)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
