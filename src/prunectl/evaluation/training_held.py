"""Weights that are zero before training, and stay so through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunectl.evaluation.loaded_model import Held

if TYPE_CHECKING:
    import torch


class Zeros:
    """What is pruned of each parameter that holds pruned weights.

    Kept by parameter and not by view: moving a model to another device or dtype gives its
    parameters new memory, which a view does not follow.

    Args:
        model: the module that the views are into.
        held: as :meth:`prunectl.evaluation.loaded_model.LoadedModel.held` finds them.
    """

    def __init__(self, model: torch.nn.Module, held: Sequence[Held]) -> None:
        import torch

        owners = list(model.parameters())
        self._gone: dict[torch.nn.Parameter, torch.Tensor] = {}
        for one in held:
            parameter = next(p for p in owners if _holds(p, one.weight))
            if parameter not in self._gone:
                self._gone[parameter] = torch.zeros_like(parameter, dtype=torch.bool)
            mask = self._gone[parameter]
            offset = one.weight.storage_offset() - parameter.storage_offset()
            mask.as_strided(one.weight.shape, one.weight.stride(), offset).copy_(one.gone)

    def moved(self) -> None:
        """Follow parameters that were moved to another device."""
        self._gone = {p: mask.to(p.device) for p, mask in self._gone.items()}

    def clear_gradients(self) -> None:
        """Pruned weights have no gradient, NaN and Inf included."""
        for parameter, mask in self._gone.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0.0)

    def clear_weights(self) -> None:
        """Pruned weights are +0.0."""
        for parameter, mask in self._gone.items():
            parameter.data.masked_fill_(mask, 0.0)


def _holds(parameter: torch.Tensor, view: torch.Tensor) -> bool:
    """Whether a view's first element is one of a (dense) parameter."""
    if parameter.untyped_storage().data_ptr() != view.untyped_storage().data_ptr():
        return False
    return 0 <= view.storage_offset() - parameter.storage_offset() < parameter.numel()
