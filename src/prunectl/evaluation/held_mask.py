"""Pruned weights held at zero while a model is trained, by hooks of torch.

A gradient is set to 0 where it arrives, so that its norm and its overflow do not count the pruned
weights. Weights are set to 0 after each step, since an optimizer's moments and decay move them too.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from prunectl.errors import UsageError
from prunectl.evaluation.loaded_model import Held

Parameter = torch.nn.Parameter


class HeldMask:
    """The pruned weights of a model, which training leaves at zero until :meth:`remove`.

    In a ``with`` block, they are held until its end.
    """

    def __init__(self, pruned: Mapping[Parameter, torch.Tensor]) -> None:
        self._pruned = dict(pruned)
        self._hooks = [
            one.register_post_accumulate_grad_hook(self._clear_gradient)
            for one in self._pruned
            if one.requires_grad
        ]
        self._hooks.append(register_optimizer_step_post_hook(self._after_step))

    def restore(self) -> None:
        """Set the pruned weights to +0.0 now.

        For changes that no optimizer of torch makes, such as merging adapters.
        """
        for parameter in self._pruned:
            parameter.data.masked_fill_(self._pruned_in(parameter), 0.0)

    def remove(self) -> None:
        """Stop holding the weights, and free the mask."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._pruned.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _clear_gradient(self, parameter: torch.Tensor) -> None:
        """Set the gradients of pruned weights to 0, also where they are NaN or Inf."""
        assert isinstance(parameter, Parameter)
        assert parameter.grad is not None
        parameter.grad.masked_fill_(self._pruned_in(parameter), 0.0)

    def _after_step(self, *step: Any) -> None:
        for parameter in self._pruned:
            if parameter.requires_grad:
                parameter.data.masked_fill_(self._pruned_in(parameter), 0.0)

    def _pruned_in(self, parameter: Parameter) -> torch.Tensor:
        """The mask on the parameter's device: the model may have been moved since."""
        pruned = self._pruned[parameter]
        if pruned.device != parameter.device:
            pruned = self._pruned[parameter] = pruned.to(parameter.device)
        return pruned


def hold_mask(model: torch.nn.Module) -> HeldMask:
    """Hold the zeros of a pruned model while it is trained, in a loop of your own or by a Trainer.

    Every weight that is zero now, in any floating-point parameter of two or more dimensions, gets
    no gradient, and is set back to +0.0 after each step of any optimizer of torch. A parameter that
    several modules share is held once. Adapters of PEFT are not held. The mask takes a byte for
    each weight.

    Args:
        model: with its zeros, before new layers are added. Parameters that will be trained must
            already require gradients: only theirs are set to 0.

    Returns:
        A handle. The zeros are held until its ``with`` block ends, its ``remove()`` is called, or
        the model no longer exists.

    Raises:
        UsageError: the model has no zeros.
    """
    adapters = {
        id(parameter)
        for module in model.modules()
        for name in getattr(module, "adapter_layer_names", ())
        if hasattr(module, name)
        for parameter in getattr(module, name).parameters()
    }
    pruned = {
        one: zero
        for one in model.parameters()
        if one.ndim > 1 and one.is_floating_point() and one.element_size() > 1
        if id(one) not in adapters and (zero := one.detach() == 0).any()
    }
    if not pruned:
        raise UsageError(
            "the model has no zeros that could be held",
            hint="load the pruned checkpoint, and call hold_mask before the first step",
        )
    held = HeldMask(pruned)
    weakref.finalize(model, held.remove)
    return held


def masks_by_parameter(
    model: torch.nn.Module, held: Sequence[Held]
) -> dict[Parameter, torch.Tensor]:
    """The pruned positions of each parameter, in its own layout, which its gradient has too.

    Args:
        model: the module whose parameters the weights of ``held`` are views of.
        held: see :meth:`prunectl.evaluation.loaded_model.LoadedModel.held`.
    """
    found: dict[Parameter, torch.Tensor] = {}
    for one in held:
        parameter = next(p for p in model.parameters() if _holds(p, one.weight))
        if parameter not in found:
            found[parameter] = torch.zeros_like(parameter, dtype=torch.bool)
        pruned = found[parameter]
        offset = one.weight.storage_offset() - parameter.storage_offset()
        pruned.as_strided(one.weight.shape, one.weight.stride(), offset).copy_(one.gone)
    return found


def _holds(parameter: torch.Tensor, view: torch.Tensor) -> bool:
    """Whether the first element of a view is in a (dense) parameter's memory."""
    if parameter.untyped_storage().data_ptr() != view.untyped_storage().data_ptr():
        return False
    return 0 <= view.storage_offset() - parameter.storage_offset() < parameter.numel()
