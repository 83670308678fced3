"""Block reconstruction: fit the kept weights of a block to the outputs of the dense block.

    min over W with the mask's zeros of the mean over tokens of |f(x; W) - y|^2 / |y|^2

f is the block on the pruned model's inputs x, and y the dense block's output on the dense model's
inputs, so that the block also compensates for errors of earlier blocks. Each token's error is
divided by its own size: without that, a few tokens with huge activations would decide everything.
The optimizer is Adam, with steps that fall as a cosine (after BRECQ, arXiv 2102.05426, and EBFT,
arXiv 2402.12419). Where the device multiplies bf16 faster than fp32, gradients are computed by
autocast to bf16; the weights that are moved, and the errors that decide, are fp32.

A part of the samples is held out. The weights with the smallest error on it are taken, as they are
stored, and a block stays as it was where none has a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from prunectl.calibration.capture import storage_of
from prunectl.calibration.errors import in_short, not_finite
from prunectl.calibration.forward import BlockGroup, Forward, hidden_states
from prunectl.calibration.matrix import DtypeRounding
from prunectl.calibration.pruner import Fit
from prunectl.device import is_out_of_memory
from prunectl.errors import CalibrationFailed
from prunectl.parallel.ranks import Ranks

STEPS = 160
"""At least this many, in whole passes over the batches that are not held out."""

RATE = 0.004
"""The first step of a weight, as a share of the root mean square of its tensor's kept weights."""

LEAST_BATCHES = 32
"""Batches to make of the samples, if there are as many: each is a step."""


@dataclass(slots=True)
class Part:
    """A tensor that is fitted.

    Attributes:
        view: in the model's memory, of the stored shape.
        best: the values with the smallest error so far, in the stored dtype and shape.
        moves: bool mask of the same shape, True = may change. No such weight becomes zero.
    """

    view: torch.Tensor
    best: torch.Tensor
    moves: torch.Tensor


def steps_for(forward: Forward) -> int:
    """Steps to fit a block: whole passes over the batches, two at least."""
    batches = len(forward.fitted)
    return max(2, -(-STEPS // batches)) * batches


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Lets the optimizer's steps fall as a cosine, to zero after ``steps``."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )


class Reconstruction:
    """Fits the blocks of a group; the dense model's outputs have been recorded.

    Args:
        parts: by name; their best values are in the model's memory.
        tell: called after each step, for progress.
    """

    def __init__(
        self,
        forward: Forward,
        group: BlockGroup,
        parts: Mapping[str, Part],
        ranks: Ranks,
        tell: Callable[[], None],
    ) -> None:
        self._forward, self._group, self._ranks, self._tell = forward, group, ranks, tell
        modules = [forward.block_model.model.get_submodule(block) for block in group.blocks]
        owners = {storage_of(p): p for module in modules for p in module.parameters()}
        self._masks: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._exact: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._parts: list[tuple[Part, torch.Tensor]] = []  # with its exact values, in fp32
        for part in parts.values():
            owner = owners[storage_of(part.view)]
            if owner not in self._masks:
                self._masks[owner] = torch.zeros_like(owner, dtype=torch.bool)
                self._exact[owner] = owner.detach().to(torch.float32, copy=True)
            part.best, part.moves = (one.to(owner.device) for one in (part.best, part.moves))
            at(self._masks[owner], part.view, owner).copy_(part.moves)
            exact = at(self._exact[owner], part.view, owner)
            exact.copy_(part.best)
            self._parts.append((part, exact))
        self._own = forward.numbers
        self._trained = forward.fitted

    def run(self) -> Fit:
        """Move the parts' best values, and the model's memory with them."""
        exact = list(self._exact.values())
        for one in exact:
            one.grad = torch.zeros_like(one)
        groups = [
            {"params": [one], "lr": RATE * _rms(one, mask)}
            for one, mask in zip(exact, self._masks.values(), strict=True)
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        steps = steps_for(self._forward)
        schedule = cosine(optimizer, steps)
        before = best = self._error()
        if not math.isfinite(before):
            raise not_finite(self._group.blocks[-1])
        for _ in range(steps // len(self._trained)):
            for number in self._trained:
                if self._set_gradients(number):
                    optimizer.step()
                schedule.step()
                self._put_exact()
                self._tell()
            best = self._keep_if_better(best)
        for part, _ in self._parts:
            part.view.copy_(part.best)
        return Fit(steps, before, best)

    def _set_gradients(self, number: int) -> bool:
        """Set the gradients of a batch, which one rank has, in all ranks; False if not finite."""
        parameters = list(self._masks)
        found: Sequence[torch.Tensor | None] = [None] * len(parameters)
        if number in self._own:
            found = self._gradients(self._own.index(number), parameters)
        are_finite = True
        for gradient, parameter in zip(found, parameters, strict=True):
            own = self._exact[parameter].grad  # laid out as Adam expects, unlike some gradients
            assert own is not None
            own.zero_()
            if gradient is not None:
                own.copy_(gradient).mul_(self._masks[parameter])
            if self._ranks.count > 1:
                whole = own.contiguous()
                self._ranks.all_reduce(whole)
                own.copy_(whole)
            are_finite &= bool(own.isfinite().all())
        return are_finite

    def _gradients(
        self, index: int, parameters: list[torch.nn.Parameter]
    ) -> Sequence[torch.Tensor | None]:
        """The gradients of a batch's error, times a number against underflow in fp16."""
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            error, _, size = self._error_of(index, grad=True)
            if not error.requires_grad:  # nothing that may move was reached
                return [None] * len(parameters)
            return torch.autograd.grad(error * math.sqrt(size), parameters, allow_unused=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise CalibrationFailed(
                f"block {self._group.blocks[-1]} has no gradients: {in_short(error)}",
                hint="leave --reconstruct out",
            ) from error
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def _keep_if_better(self, best: float) -> float:
        """Take the weights as they would be stored, if their error is the smallest so far."""
        stored = []
        for part, exact in self._parts:
            rounded = DtypeRounding(part.best.dtype, 1.0).rounded(exact, part.moves)
            stored.append(torch.where(part.moves, rounded, part.best))
            part.view.copy_(stored[-1])
        error = self._error()
        if error < best:
            best = error
            for (part, _), values in zip(self._parts, stored, strict=True):
                part.best = values
        self._put_exact()
        return best

    def _put_exact(self) -> None:
        for parameter, exact in self._exact.items():
            parameter.data.copy_(exact)

    def _error(self) -> float:
        """The mean error of the tokens held out; Inf if it is not finite."""

        def measure(index: int) -> tuple[float, int]:
            error, tokens, _ = self._error_of(index)
            return float(error) * tokens, tokens

        return mean_held_out(self._forward, self._ranks, measure)

    def _error_of(self, index: int, *, grad: bool = False) -> tuple[torch.Tensor, int, int]:
        """The mean error of a batch's tokens, and the numbers of tokens and of outputs.

        The error of a token is that of each block's first output, its hidden states: squared, and
        relative to the dense output's square.
        """
        errors, tokens, size = [], 0, 0
        with self._forward.autocast(enabled=grad):
            outputs = self._forward.run(self._group, index, grad=grad)
        for stack, output in outputs.items():
            wanted = self._forward.output(stack, index, dense=True)
            one, dense = hidden_states(output), hidden_states(wanted)
            assert one is not None
            assert dense is not None
            dense = dense.to(one.device).float()
            lost = (one.float() - dense).square().mean(-1)
            errors.append((lost / dense.square().mean(-1).clamp(min=_SMALLEST)).mean())
            tokens += lost.numel()
            size += one.numel()
        return torch.stack(errors).mean(), tokens, size


_SMALLEST = 1e-12


def mean_held_out(
    forward: Forward, ranks: Ranks, measure: Callable[[int], tuple[float, int]]
) -> float:
    """The mean over the batches held out, of all ranks; Inf if it is not finite.

    Args:
        measure: takes the index of a batch among this rank's; gives a sum, and of how many.
    """
    total = torch.zeros(2, dtype=torch.float32)
    for number in forward.held_out:
        if number in forward.numbers:
            total += torch.tensor(measure(forward.numbers.index(number)))
    ranks.all_reduce(total)
    mean = float(total[0] / total[1])
    return mean if math.isfinite(mean) else math.inf


def at(other: torch.Tensor, view: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """The part of another tensor, laid out as ``owner`` is, where ``view`` lies in its owner."""
    offset = view.storage_offset() - owner.storage_offset()
    return other.as_strided(view.shape, view.stride(), int(offset))


def _rms(tensor: torch.Tensor, mask: torch.Tensor) -> float:
    return float(((tensor * mask).square().sum() / mask.sum().clamp(min=1)).sqrt())
