"""Scale the rows and columns of pruned matrices, to bring the model's logits near the dense ones.

    min over r, c of the mean over tokens of KL(p || q)   with W = diag(e^r) W' diag(e^c)

p and q are the distributions over the vocabulary at each token, by the dense and the pruned model,
and W' the pruned weights so far. A block's error counts what later blocks ignore as much as what
they use; the logits do not. There are few scales, [out] + [in] for a matrix, so few samples
determine them. (PERP, arXiv 2312.15230, retrains norms and biases in the same way; not all models
have those.)

The optimizer is Adam, with steps that fall as a cosine. After each pass over the batches, the
divergence on the batches held out is measured with the weights as they would be stored. The scales
with the smallest divergence are used; if no pass lowers it, the weights do not change.

One block at a time needs to be in memory: a step runs a batch through block after block, keeping
their outputs, and runs each block again for its gradients, from the last one to the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunectl.calibration.capture import FastLinear, as_matrices
from prunectl.calibration.forward import BlockGroup, Forward
from prunectl.calibration.matrix import DtypeRounding, inside
from prunectl.calibration.pruner import Fit
from prunectl.calibration.reconstruction import at, cosine, mean_held_out
from prunectl.parallel.ranks import Ranks
from prunectl.parallel.run import Run

STEPS = 60
"""At least this many, in whole passes over the batches that are not held out."""

RATE = 0.003
"""The first step of a scale's logarithm."""

_PHASE = "fitting the whole model"


@dataclass(frozen=True, slots=True, eq=False)
class TensorScales:
    """The scales of a tensor's matrices.

    Attributes:
        axis: its input axis.
        moves: bool [out, 1] for each matrix, True = the row may change.
        rows, columns: logarithms, fp32 [out] and [in] for each matrix.
    """

    axis: int | None
    moves: list[torch.Tensor]
    rows: list[torch.Tensor]
    columns: list[torch.Tensor]

    @classmethod
    def of(
        cls, shape: Sequence[int], axis: int | None, movable: Sequence[tuple[int, int]]
    ) -> TensorScales:
        """Scales of 1.

        Args:
            movable: the rows [start, stop) that may change, numbered across the matrices.
        """
        parts = as_matrices(torch.empty(tuple(shape), device="meta"), axis)
        moves = inside(movable, sum(map(len, parts)), torch.device("cpu"))
        return cls(
            axis,
            list(moves.split([len(part) for part in parts])),
            [torch.zeros(len(part)) for part in parts],
            [torch.zeros(part.shape[1]) for part in parts],
        )

    @property
    def logs(self) -> list[torch.Tensor]:
        """The logarithms of all row and column scales."""
        return [*self.rows, *self.columns]

    def applied(self, values: torch.Tensor) -> torch.Tensor:
        """``values``, of the stored shape and dtype, times the scales.

        Zeros stay, as do rows that may not change, and weights that the dtype cannot hold.
        """
        new = values.to(torch.promote_types(values.dtype, torch.float32), copy=True)
        kept = values != 0
        places = zip(
            as_matrices(new, self.axis), as_matrices(kept, self.axis),
            self.moves, self.rows, self.columns, strict=True,
        )  # fmt: skip
        for part, place, moves, rows, columns in places:
            part.mul_(rows.exp()[:, None].to(part)).mul_(columns.exp().to(part))
            place &= moves.to(place.device)
        new = DtypeRounding(values.dtype, 1.0).rounded(new, kept)
        return torch.where(kept & new.isfinite(), new, values)

    def add_gradient(self, gradient: torch.Tensor, weight: torch.Tensor) -> None:
        """Add the gradient with respect to the scaled weight, of the stored shape."""
        whole = gradient.float() * weight.float()
        for part, moves, rows, columns in zip(
            as_matrices(whole, self.axis), self.moves, self.rows, self.columns, strict=True
        ):
            part = part * moves.to(part.device)
            for log, found in ((rows, part.sum(1).cpu()), (columns, part.sum(0).cpu())):
                log.grad = found if log.grad is None else log.grad + found


class ScaleFit:
    """Fits the scales of all blocks; :meth:`Forward.record` has kept the dense model's outputs.

    Args:
        groups: of all blocks that the samples reach.
        tensors: of all blocks, by name; the fit is in their scales.
        read: the values of a tensor before they are scaled, of the stored dtype, on the CPU.
        keeps: keep all blocks in memory at once.
    """

    def __init__(
        self,
        forward: Forward,
        groups: Sequence[BlockGroup],
        tensors: Mapping[str, TensorScales],
        read: Callable[[str], torch.Tensor],
        *,
        keeps: bool,
    ) -> None:
        self._forward, self._model, self._groups = forward, forward.block_model, groups
        self._tensors, self._read, self._keeps = tensors, read, keeps
        self._names: dict[str, list[str]] = {block: [] for block in self._model.blocks}
        for name in tensors:
            block = self._model.block_of(self._model.targets[name].parameter)
            assert block is not None
            self._names[block].append(name)
        self._version, self._placed = 0, dict[str, int]()

    def run(self, run: Run) -> Fit | None:
        """Set the scales; None if the logits are not finite, before any is set."""
        logs = [log for one in self._tensors.values() for log in one.logs]
        optimizer = torch.optim.Adam(logs, lr=RATE)
        trained = self._forward.fitted
        passes = -(-STEPS // len(trained))
        steps = passes * len(trained)
        schedule = cosine(optimizer, steps)
        size = sum(self._model.nbytes(block) for group in self._groups for block in group.blocks)
        before = best = self._divergence_held_out(run.ranks)
        if not math.isfinite(before):
            return None
        found = [log.clone() for log in logs]
        with run.phase(_PHASE, steps * size) as advance:
            for _ in range(passes):
                for number in trained:
                    if self._set_gradients(number, run.ranks):
                        optimizer.step()
                    schedule.step()
                    self._version += 1
                    advance(size, self._groups[0].blocks[0])
                divergence = self._divergence_held_out(run.ranks)
                if divergence < best:
                    best, found = divergence, [log.clone() for log in logs]
        for log, value in zip(logs, found, strict=True):
            log.copy_(value)
        for block in self._placed:
            self._model.unload(block)
        return Fit(steps, before, best)

    # --- one step -------------------------------------------------------------------------------

    def _set_gradients(self, number: int, ranks: Ranks) -> bool:
        """Set the gradients of a batch, which one rank has, in all ranks; False if not finite."""
        logs = [log for one in self._tensors.values() for log in one.logs]
        for log in logs:
            log.grad = None
        if number in self._forward.numbers:
            self._backward(self._forward.numbers.index(number))
        for log in logs:
            if log.grad is None:
                log.grad = torch.zeros_like(log)
        if ranks.count > 1:
            whole = torch.cat([log.grad for log in logs])  # type: ignore[misc]
            ranks.all_reduce(whole)
            for log, part in zip(logs, whole.split([len(log) for log in logs]), strict=True):
                log.grad = part.clone()
        return all(bool(log.grad.isfinite().all()) for log in logs)  # type: ignore[union-attr]

    def _backward(self, index: int) -> None:
        """Add a batch's gradients to all scales."""
        with self._forward.autocast():
            states = self._states(index)
            last = _leaves(states.pop())
            divergence, _ = self._divergence(index, last)
        inputs = [leaf for stack in last for leaf in _floats(last[stack])]
        found = iter(torch.autograd.grad(divergence, inputs, allow_unused=True))
        gradients: dict[str, list[torch.Tensor | None]] = {
            stack: [next(found) for _ in _floats(last[stack])] for stack in last
        }
        for group, before in zip(reversed(self._groups), reversed(states), strict=True):
            gradients = self._through(group, index, before, gradients)

    def _through(
        self,
        group: BlockGroup,
        index: int,
        before: Mapping[str, Any],
        gradients: dict[str, list[torch.Tensor | None]],
    ) -> dict[str, list[torch.Tensor | None]]:
        """The gradients with respect to the outputs before a group, from those after it."""
        self._place(group)
        leaves = _leaves(before)
        names = [name for block in group.blocks for name in self._names[block]]
        views = self._model.views(names)
        owner_of = {
            name: self._model.model.get_parameter(self._model.targets[name].parameter)
            for name in names
        }
        parameters = list(dict.fromkeys(owner_of.values()))
        for parameter in parameters:
            parameter.requires_grad_(True)
        with self._forward.autocast():
            outputs = self._forward.run(group, index, grad=True, before=leaves)
        pairs = [
            (leaf, gradient.to(leaf.device))
            for stack, output in outputs.items()
            for leaf, gradient in zip(_floats(output), gradients[stack], strict=True)
            if gradient is not None and leaf.requires_grad
        ]
        inputs = [leaf for stack in leaves for leaf in _floats(leaves[stack])]
        found: Sequence[torch.Tensor | None] = [None] * (len(inputs) + len(parameters))
        if pairs:
            ends, of_ends = zip(*pairs, strict=True)
            found = torch.autograd.grad(ends, [*inputs, *parameters], of_ends, allow_unused=True)
        laid_out = {
            parameter: torch.empty_like(parameter).copy_(gradient)
            for parameter, gradient in zip(parameters, found[len(inputs) :], strict=True)
            if gradient is not None
        }
        for parameter in parameters:
            parameter.requires_grad_(False)
        for name, owner in owner_of.items():
            if owner in laid_out:
                place = at(laid_out[owner], views[name], owner)
                self._tensors[name].add_gradient(place, views[name])
        of_input = iter(found[: len(inputs)])
        later = {stack: gradients[stack] for stack in leaves if stack not in outputs}
        return {
            stack: [
                _sum(next(of_input), other)
                for other in later.get(stack, [None] * len(_floats(leaves[stack])))
            ]
            for stack in leaves
        }

    # --- forwards -------------------------------------------------------------------------------

    def _states(self, index: int) -> list[dict[str, Any]]:
        """The last outputs of each list of blocks, before every group and after the last one."""
        found: list[dict[str, Any]] = [{}]
        for group in self._groups:
            self._place(group)
            outputs = self._forward.run(group, index, before=found[-1])
            kept = pytree.tree_map_only(torch.Tensor, lambda one: one.detach().cpu(), outputs)
            found.append({**found[-1], **kept})
        return found

    def _divergence(self, index: int, last: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
        """The sum over a batch's tokens of KL(p || q), and the number of tokens."""
        inputs = self._forward.batches[index]
        with torch.no_grad():
            logits = self._forward.logits_of(inputs, self._forward.dense_outputs(index))
            dense = logits.float().log_softmax(-1)
        with torch.enable_grad():
            own = self._forward.logits_of(inputs, last, grad=True).float().log_softmax(-1)
            found = torch.nn.functional.kl_div(own, dense, reduction="sum", log_target=True)
        return found, dense.shape[:-1].numel()

    def _divergence_held_out(self, ranks: Ranks) -> float:
        """The mean of KL(p || q) over the tokens held out; Inf if it is not finite."""

        def measure(index: int) -> tuple[float, int]:
            with FastLinear():
                divergence, tokens = self._divergence(index, self._states(index)[-1])
            return float(divergence), tokens

        return max(mean_held_out(self._forward, ranks, measure), 0.0)  # rounding may put it below

    def _place(self, group: BlockGroup) -> None:
        """Have a group's blocks in memory, with their weights scaled as of now."""
        if not self._keeps:
            for block in [block for block in self._placed if block not in group.blocks]:
                self._model.unload(block)
                del self._placed[block]
        for block in group.blocks:
            if self._placed.get(block) != self._version:
                self._model.load(block)
                for name, view in self._model.views(self._names[block]).items():
                    view.copy_(self._tensors[name].applied(self._read(name).to(view.device)))
                self._placed[block] = self._version


def _floats(output: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(output)
    return [leaf for leaf in leaves if torch.is_tensor(leaf) and leaf.is_floating_point()]


def _leaves(states: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of blocks, for gradients with respect to them."""

    def leaf(one: torch.Tensor) -> torch.Tensor:
        return one.detach().requires_grad_(True) if one.is_floating_point() else one

    found: dict[str, Any] = pytree.tree_map_only(torch.Tensor, leaf, dict(states))
    return found


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other.to(one.device)
