"""Calibration, one block at a time: gather inputs, prune weights, recompute outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from prunectl.calibration.block_order import BlockOrder, find_block_order
from prunectl.calibration.capture import FastLinear, Matrix, ProductWatcher, matrices
from prunectl.calibration.errors import memory_errors
from prunectl.calibration.forward import BlockGroup, Forward, Inputs
from prunectl.calibration.pruner import Captured, EachAtOnce, Pruner, PruneTensor, pruned
from prunectl.calibration.reconstruction import Part, Reconstruction, steps_for
from prunectl.calibration.statistics import NotShared, Statistics, agree
from prunectl.checkpoint.block_model import BlockModel
from prunectl.device import is_out_of_memory
from prunectl.events import Advanced, Note, OnEvent
from prunectl.parallel.ranks import Ranks
from prunectl.parallel.run import PLAIN_RUN, Run

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Wanted:
    """The tensors to prune, and how their inputs are measured.

    Attributes:
        axes: input axis by tensor name, in file order.
        full: gather whole second moments; False gathers their diagonals.
        with_dense: run the dense model too, to aim at its outputs, and measure each matrix with
            those before it in the block pruned already, so that the aim makes up for them as well.
        reconstruct: then fit each block as a whole to the dense block's outputs. One of sixteen
            batches is held out, from the statistics too; there are two at least.
    """

    axes: Mapping[str, int | None]
    full: bool = True
    with_dense: bool = False
    reconstruct: bool = False


_NOT_SHARED, _FULL = "not shared", "full"

_EXPERT = re.compile(r"(?<=\bexperts\.)(\w+_)?\d+(?=\.)")
"""The number of an expert in a tensor's name."""


def _never(block: str) -> Values | None:
    return None


def try_model(
    block_model: BlockModel,
    samples: Sequence[Inputs],
    run: Run = PLAIN_RUN,
    *,
    least: int = 1,
) -> BlockOrder:
    """Check with a short sample whether a model can be calibrated block by block.

    Args:
        least: as for :func:`calibrate`.

    Raises:
        CalibrationFailed, BadCheckpoint: it cannot; see :func:`find_block_order`.
        DeviceFull: there is too little memory for a block.
    """
    return _try(Forward(block_model, samples, None, _own(run.ranks), least), run.on_event)


def _try(forward: Forward, on_event: OnEvent) -> BlockOrder:
    with memory_errors(
        forward.block_model.device,
        forward.block_model.dtype,
        "a block of the model and one short sample",
    ):
        return find_block_order(forward, on_event)


def _own(ranks: Ranks) -> slice:
    """The batches of this rank."""
    return slice(ranks.number, None, ranks.count)


def calibrate(
    block_model: BlockModel,
    samples: Sequence[Inputs],
    wanted: Wanted,
    prune_tensor: PruneTensor | Pruner,
    *,
    order: BlockOrder | None = None,
    least: int = 1,
    finished: Callable[[str], Values | None] = _never,
    done: Callable[[str], object] = _never,
    spill: Path | None = None,
    phase: str = "calibrating",
    run: Run = PLAIN_RUN,
) -> Forward:
    """Go through the blocks in the order in which the model calls them.

    Args:
        samples: keyword arguments of the model's forward, one sample each.
        wanted: the tensors, and how they are measured.
        prune_tensor: called once for each wanted tensor, with the inputs that it has after all
            earlier blocks were pruned. Blocks that no sample reaches come last. With several ranks,
            one of them calls it for each tensor; a :class:`Pruner` passes the result on.
        order: the result of :func:`try_model` for the same samples; None calls it.
        least: batches to make at least of the samples, if there are as many.
        finished: a block's new values from an earlier run, by tensor; None if there are none.
        done: called when all tensors of a block have been pruned.
        spill: a folder for block outputs; None keeps them in memory.
        run: its ranks share the samples, and the tensors; each of them calls ``finished`` and
            ``done``. Progress is in bytes of blocks.

    Returns:
        The forward, with the last outputs of the pruned model, and of the dense model if it ran.

    Raises:
        CalibrationFailed: the model fails on the samples, or its outputs hold NaN.
        DeviceFull: there is too little memory for a block.
    """
    forward = Forward(block_model, samples, spill, _own(run.ranks), least)
    pruner = prune_tensor if isinstance(prune_tensor, Pruner) else EachAtOnce(prune_tensor)
    engine = _Engine(block_model, forward, wanted, pruner, phase, run)
    groups = (order or _try(forward, run.on_event)).groups
    engine.locate()  # refuse before any tensor is pruned
    size = sum(block_model.nbytes(block) for group in groups for block in group.blocks)
    with run.phase(phase, size), FastLinear():
        for group in groups:
            with memory_errors(
                block_model.device, block_model.dtype, f"{group.blocks[0]} and its inputs"
            ):
                engine.run(group, {block: finished(block) for block in group.blocks})
            for block in group.blocks:
                done(block)
        for block in engine.unreached(groups):
            if finished(block) is None:
                with memory_errors(block_model.device, block_model.dtype, block):
                    engine.prune_unreached(block)
            done(block)
    return forward


class _Engine:
    def __init__(
        self,
        block_model: BlockModel,
        forward: Forward,
        wanted: Wanted,
        pruner: Pruner,
        phase: str,
        run: Run,
    ) -> None:
        self._phase = phase
        self._block_model, self._wanted = block_model, wanted
        self._pruner, self._ranks, self._on_event = pruner, run.ranks, run.on_event
        self.forward = forward
        self._statistics_device = block_model.device
        self._dense: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._changed: set[str] = set()
        self._names: dict[str, list[str]] = {block: [] for block in block_model.blocks}
        for name in wanted.axes:
            target = block_model.targets.get(name)
            block = block_model.block_of(target.parameter) if target is not None else None
            if block is not None:
                self._names[block].append(name)

    def locate(self) -> None:
        """Find where the tensors are in the model, while no block is in memory.

        Raises:
            UnsupportedCheckpoint: one is taken apart or reordered when it is loaded.
        """
        for block, names in self._names.items():
            with memory_errors(self._block_model.device, self._block_model.dtype, block):
                self._block_model.locate(names)

    def run(self, group: BlockGroup, earlier: Mapping[str, Values | None]) -> None:
        """Prune the blocks of a group, then recompute their outputs."""
        for block in group.blocks:
            self._block_model.load(block)
        if self._wanted.with_dense:
            names = [name for block in group.blocks for name in self._names[block]]
            views = self._block_model.views(names)
            self._dense = {name: (view, view.clone()) for name, view in views.items()}
        steps = self._steps(group, earlier)
        size = sum(self._block_model.nbytes(block) for block in group.blocks)
        count = (len(steps) + 1 + self._wanted.with_dense) * self.forward.count
        reconstructs = self._wanted.reconstruct and bool(steps)
        if reconstructs:
            count += steps_for(self.forward)
        tell = _Teller(self._on_event, self._phase, size, count, group.blocks[0])
        for step in steps:
            step(tell)
        if self._wanted.with_dense:
            with self._dense_weights():
                for index in range(self.forward.count):
                    self.forward.record(group, index, dense=True)
                    tell()
        if reconstructs:
            self._reconstruct(group, tell)
        for index in range(self.forward.count):
            self.forward.record(group, index)
            tell()
        self._dense.clear()
        self._changed.clear()
        for block in group.blocks:
            self._block_model.unload(block)
        tell.finish()

    def _reconstruct(self, group: BlockGroup, tell: _Teller) -> None:
        """Fit the kept weights of a group to the dense outputs."""
        found = {name: self._pruner.movable(name) for name in self._dense}
        parts = {
            name: Part(self._dense[name][0], *movable)
            for name, movable in found.items()
            if movable is not None
        }
        if parts:
            fit = Reconstruction(self.forward, group, parts, self._ranks, tell).run()
            for name, part in parts.items():
                self._pruner.reconstructed(name, part.best, fit)

    @contextmanager
    def _dense_weights(self) -> Iterator[None]:
        """The dense weights in place of those that were pruned so far."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange the pruned and the dense weights, with room for one tensor more."""
        for name in self._changed:
            view, other = self._dense[name]
            held = view.clone()
            view.copy_(other)
            other.copy_(held)

    def _steps(
        self, group: BlockGroup, earlier: Mapping[str, Values | None]
    ) -> list[Callable[[_Teller], None]]:
        """The steps before the outputs: one measurement, or one for each distinct input."""
        names = [name for block in group.blocks for name in self._names[block]]
        views = self._block_model.views(names)
        known = {k: v for found in earlier.values() for k, v in (found or {}).items()}
        for name, value in known.items():
            views[name].copy_(value)
            self._changed.add(name)
        todo = {
            name: matrices(name, views[name], self._wanted.axes[name])
            for name in names
            if name not in known
        }
        if not todo:
            return []
        in_turn = [list(todo)]
        if self._wanted.with_dense:
            own = self._order_of_use(group, todo) if self._ranks.is_first else []
            in_turn = self._ranks.broadcast(own)
        return [
            partial(self._measure_and_prune, group, {name: todo[name] for name in names}, views)
            for names in in_turn
        ]

    def _order_of_use(self, group: BlockGroup, todo: Mapping[str, list[Matrix]]) -> list[list[str]]:
        """The tensors in order of use by the first batch; those that share an input in one list.

        The same tensors of all experts are in one list too.
        """
        statistics = self._statistics(gathers=False)
        self._collect_one(group, todo, statistics, 0)
        turns: list[list[str]] = []
        turn_of: dict[object, list[str]] = {}
        for key in statistics.order:
            for name in dict.fromkeys(one.name for one in key):
                alike = (statistics.leader[key], _EXPERT.sub("", name), name)
                turn = next((turn_of[one] for one in alike if one in turn_of), None)
                if turn is None:
                    turns.append(turn := [])
                if name not in turn_of:
                    turn.append(name)
                for one in alike:
                    turn_of.setdefault(one, turn)
        unseen: list[str] = []
        for name in todo:
            if name not in turn_of:
                turn_of.get(_EXPERT.sub("", name), unseen).append(name)
        return [*turns, *([unseen] if unseen else [])]

    def _measure_and_prune(
        self, group: BlockGroup, todo: Mapping[str, list[Matrix]], views: Values, tell: _Teller
    ) -> None:
        statistics = self._collect(group, todo, tell)
        seen = {
            name: [Captured(m, statistics.of(m), m in statistics.missed) for m in parts]
            for name, parts in todo.items()
        }
        for name, new in pruned(self._pruner, seen, self._ranks):
            if new is not None:
                views[name].copy_(new)
                self._changed.add(name)

    def _statistics(self, *, shared: bool = True, gathers: bool = True) -> Statistics:
        return Statistics(
            full=self._wanted.full,
            device=self._statistics_device,
            shared=shared,
            gathers=gathers,
            paired=self._wanted.with_dense and self._wanted.full,
            tokens=lambda: self.forward.rows,
        )

    def _collect(
        self, group: BlockGroup, todo: Mapping[str, list[Matrix]], tell: _Teller
    ) -> Statistics:
        """The statistics of all ranks' batches. When one rank has to fall back, all do."""
        shared = True
        while True:
            statistics = self._statistics(shared=shared)
            trouble = self._collect_own(group, todo, statistics, tell)
            of_ranks = list(self._ranks.all_gather([(trouble, statistics.tally())]))
            troubles, everyone = {one for one, _ in of_ranks}, [seen for _, seen in of_ranks]
            if _FULL in troubles:
                self._statistics_device = torch.device("cpu")  # for later blocks too
                text = "The device is full: the inputs' statistics are kept in the host's memory."
                self._on_event(Note(text, warning=True))
            if _NOT_SHARED in troubles or not agree(everyone):
                shared = False
            elif _FULL not in troubles:
                if self._ranks.count > 1:
                    watched = [one for parts in todo.values() for one in parts]
                    statistics.unite(everyone, watched, self._ranks.all_reduce)
                return statistics

    def _collect_own(
        self,
        group: BlockGroup,
        todo: Mapping[str, list[Matrix]],
        statistics: Statistics,
        tell: _Teller,
    ) -> str:
        """Gather the statistics of this rank's batches; returns why that failed, or ''."""
        is_once = False
        try:
            for index, number in enumerate(self.forward.numbers):
                if not (self._wanted.reconstruct and number in self.forward.held_out):
                    watcher = self._collect_one(group, todo, statistics, index, stops=is_once)
                    is_once |= not index and watcher.is_once
                tell()
        except NotShared:
            return _NOT_SHARED
        except RuntimeError as error:
            if self._statistics_device.type == "cpu" or not is_out_of_memory(error):
                raise
            return _FULL
        return ""

    def _collect_one(
        self,
        group: BlockGroup,
        todo: Mapping[str, list[Matrix]],
        statistics: Statistics,
        index: int,
        *,
        stops: bool = False,
    ) -> ProductWatcher:
        """Gather the statistics of one batch.

        Args:
            stops: end the forward when every matrix has been used once.
        """
        statistics.next_sample()
        watched = [one for parts in todo.values() for one in parts]
        if statistics.paired and statistics.gathers:
            with self._dense_weights(), ProductWatcher(watched, statistics.seen_dense, stops=stops):
                self.forward.run(group, index, dense=True)
        watcher = ProductWatcher(watched, statistics.seen, stops=stops)
        with watcher:
            self.forward.run(group, index)
        statistics.missed |= watcher.missed
        return watcher

    # --- what no sample reaches -----------------------------------------------------------------

    def unreached(self, groups: Sequence[BlockGroup]) -> list[str]:
        """Blocks with tensors to prune that no sample reaches, such as those of a vision tower."""
        reached = {block for group in groups for block in group.blocks}
        return [block for block, names in self._names.items() if names and block not in reached]

    def prune_unreached(self, block: str) -> None:
        """Prune a block's tensors without statistics."""
        self._block_model.load(block)
        seen = {
            name: [Captured(one, None) for one in matrices(name, view, self._wanted.axes[name])]
            for name, view in self._block_model.views(self._names[block]).items()
        }
        for _ in pruned(self._pruner, seen, self._ranks):
            pass  # no later block depends on the new values
        self._block_model.unload(block)


class _Teller:
    """Reports the steps of a group as bytes that sum to the group's size."""

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
