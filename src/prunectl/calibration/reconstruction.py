"""Blocks fitted as a whole: the kept weights move until the block puts out what it did when dense.

    min over W with the mask's zeros of the mean over tokens of |f(x; W) - y|^2 / |y|^2

f is the block on the pruned model's inputs x, and y the dense block's output on the dense model's
inputs, so that what earlier blocks lost is made good where it can be. Each token's error is divided
by its own size: without that, a few tokens with huge activations would decide everything. Adam with
steps that fall as a cosine (after BRECQ, arXiv 2102.05426, and EBFT, arXiv 2402.12419).

A part of the samples is held out. The weights with the smallest error on it are taken, as they are
stored, and a block stays as it was where none has a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.utils import _pytree as pytree

from prunectl.calibration.forward import BlockGroup, Forward
from prunectl.calibration.matrix import DtypeRounding
from prunectl.parallel.ranks import Ranks

STEPS = 160
"""At least this many, in whole passes over the samples that are not held out."""

RATE = 0.004
"""The first step of a weight, as a share of the root mean square of its tensor's kept weights."""

LEAST_BATCHES = 32
"""Batches to make of the samples, if there are as many: each is a step."""

HELD_OUT = 8
"""One of this many batches is held out."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What fitting a block did.

    Attributes:
        steps: of Adam.
        before, after: the error on the samples held out; see the module.
    """

    steps: int
    before: float
    after: float


@dataclass(slots=True)
class _Part:
    """A tensor that is fitted.

    Attributes:
        view: in the model's memory. kept: bool of its shape.
        dtype: in which it is stored.
        best: its values with the smallest error so far.
    """

    view: torch.Tensor
    kept: torch.Tensor
    dtype: torch.dtype
    best: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.best = self.view.clone()


class Reconstruction:
    """Fits the blocks of a group.

    Args:
        views: the pruned tensors in the model's memory, by name.
        dtypes: in which they are stored, by name.
    """

    def __init__(
        self,
        forward: Forward,
        group: BlockGroup,
        views: Mapping[str, torch.Tensor],
        dtypes: Mapping[str, torch.dtype],
        ranks: Ranks,
    ) -> None:
        self._forward, self._group, self._ranks = forward, group, ranks
        self._parts = {name: _Part(view, view != 0, dtypes[name]) for name, view in views.items()}
        modules = [forward.block_model.model.get_submodule(block) for block in group.blocks]
        owners = {p.untyped_storage().data_ptr(): p for m in modules for p in m.parameters()}
        self._masks: dict[torch.nn.Parameter, torch.Tensor] = {}
        for part in self._parts.values():
            owner = owners[part.view.untyped_storage().data_ptr()]
            mask = self._masks.setdefault(owner, torch.zeros_like(owner, dtype=torch.bool))
            _at(mask, part.view, owner).copy_(part.kept)
        total = sum(ranks.all_gather([forward.count]))
        self._own = range(ranks.number, total, ranks.count)  # this rank's batches, of all
        self._held_out = {i for i in range(total) if i % HELD_OUT == HELD_OUT - 1} or {total - 1}
        self._trained = [i for i in range(total) if i not in self._held_out] or [0]

    def run(self) -> tuple[Fit, dict[str, torch.Tensor]]:
        """Fit the block; returns the new values of its tensors, as they are stored, in its memory.

        None of them is new if the error on the samples held out did not fall.
        """
        masters = [parameter.detach().clone().float() for parameter in self._masks]
        groups = [
            {"params": [m], "lr": RATE * _rms(m, mask)}
            for m, mask in zip(masters, self._masks.values(), strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        passes = max(2, -(-STEPS // len(self._trained)))
        total = passes * len(self._trained)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))
        )
        before = best = self._error()
        steps = 0
        for _ in range(passes):
            for number in self._trained:
                self._gradients(number, masters)
                optimizer.step()
                schedule.step()
                steps += 1
                self._put(masters)
            best = self._keep_if_better(best, masters)
        for part in self._parts.values():
            part.view.copy_(part.best)
        values = {}
        if best < before:
            values = {name: part.best.to(part.dtype) for name, part in self._parts.items()}
        return Fit(steps, before, best), values

    def _gradients(self, number: int, masters: list[torch.Tensor]) -> None:
        """Set the gradients of a batch, which one rank has, in all ranks."""
        for master in masters:
            master.grad = torch.zeros_like(master)
        if number in self._own:
            index = self._own.index(number)
            parameters = list(self._masks)
            for parameter in parameters:
                parameter.requires_grad_(True)
            try:
                error = self._error_of(index, grad=True)
                found = torch.autograd.grad(error, parameters, allow_unused=True)
            finally:
                for parameter in parameters:
                    parameter.requires_grad_(False)
            for gradient, mask, master in zip(found, self._masks.values(), masters, strict=True):
                if gradient is not None:
                    master.grad = gradient.float() * mask
        if self._ranks.count > 1:
            for master in masters:
                assert master.grad is not None
                self._ranks.all_reduce(master.grad)

    def _keep_if_better(self, best: float, masters: list[torch.Tensor]) -> float:
        """Take the weights as they would be stored, if their error is the smallest so far."""
        for part in self._parts.values():
            rounded = DtypeRounding(part.dtype, 1.0).rounded(part.view.float(), part.kept)
            part.view.copy_(rounded)
        error = self._error()
        if error < best:
            best = error
            for part in self._parts.values():
                part.best = part.view.clone()
        self._put(masters)
        return best

    def _put(self, masters: list[torch.Tensor]) -> None:
        for parameter, master in zip(self._masks, masters, strict=True):
            parameter.data.copy_(master)

    def _error(self) -> float:
        """The mean error of the batches held out; Inf if it is not finite."""
        found = torch.zeros(2, dtype=torch.float32)
        for number in self._held_out:
            if number in self._own:
                found += torch.tensor([float(self._error_of(self._own.index(number))), 1.0])
        if self._ranks.count > 1:
            self._ranks.all_reduce(found)
        error = float(found[0] / found[1])
        return error if math.isfinite(error) else math.inf

    def _error_of(self, index: int, *, grad: bool = False) -> torch.Tensor:
        """The mean over tokens of the squared error relative to the dense output's square."""
        errors = []
        outputs = self._forward.run(self._group, index, grad=grad)
        for stack, output in outputs.items():
            wanted = self._forward.output(stack, index, dense=True)
            for one, dense in zip(*map(pytree.tree_leaves, (output, wanted)), strict=True):
                if torch.is_tensor(one) and one.is_floating_point() and one.ndim > 1:
                    dense = dense.to(one.device).float()
                    size = dense.square().mean(-1)
                    lost = (one.float() - dense).square().mean(-1)
                    errors.append((lost / size.clamp(min=_SMALLEST)).mean())
        return torch.stack(errors).mean()


_SMALLEST = 1e-12


def _at(mask: torch.Tensor, view: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """The part of a mask, of the shape of ``owner``, where ``view`` lies in its owner."""
    offset = view.storage_offset() - owner.storage_offset()
    return mask.as_strided(view.shape, view.stride(), int(offset))


def _rms(tensor: torch.Tensor, mask: torch.Tensor) -> float:
    return float((tensor.square().sum() / mask.sum().clamp(min=1)).sqrt())
