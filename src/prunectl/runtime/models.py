"""Models whose weights are compressed: in place, or one by one while they are loaded."""

from __future__ import annotations

from typing import Any

import torch

from prunectl.runtime.choice import kept
from prunectl.runtime.executions import AUTO, DENSE, check_execution
from prunectl.runtime.forms import reason_against
from prunectl.runtime.weight import CompressedStack, CompressedWeight


def compress_model(model: torch.nn.Module, execution: str = "compressed") -> torch.nn.Module:
    """Compress the weights of linear layers and embeddings of a model on the CPU, in place.

    A weight that several modules share stays shared. Weights that no kernel takes, or that a form
    would not make smaller, stay dense.

    Args:
        model: for inference only: a backward pass through a compressed weight raises.
        execution: ``compressed``; ``auto`` compresses where that is not slower; ``dense`` nothing.

    Returns:
        The model.

    Raises:
        InvalidOption: an unknown execution.
    """
    check_execution(execution)
    if execution == DENSE:
        return model
    made: dict[int, tuple[torch.Tensor, torch.nn.Parameter | None]] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not is_compressible(module, name):
                continue
            if id(weight) not in made:
                made[id(weight)] = weight, compressed(weight, module, execution)
            parameter = made[id(weight)][1]
            if parameter is not None:
                setattr(module, name, parameter)
    run_experts_one_by_one(model)
    return model


def is_compressible(module: torch.nn.Module, name: str) -> bool:
    """Whether a parameter is the matrix of a linear layer or an embedding, or those of experts."""
    if _is_stacked(module):
        parameter = module._parameters.get(name)
        return parameter is not None and parameter.dim() == 3
    return name == "weight" and (
        isinstance(module, torch.nn.Linear | torch.nn.Embedding) or _is_conv1d(module)
    )


def run_experts_one_by_one(model: Any) -> None:
    """Choose transformers' loop over experts where they are compressed.

    Its other ways multiply with all experts, or with copies of them, which would be decoded.
    """
    is_held = any(isinstance(one, CompressedStack) for one in model.parameters())
    if is_held and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def compressed(
    weight: torch.Tensor, module: torch.nn.Module, execution: str
) -> torch.nn.Parameter | None:
    """A module's weight as a parameter that stays compressed; None if it stays dense."""
    if weight.dim() == 3:
        return _stack(weight.detach(), module, execution)
    transposed = _is_conv1d(module)
    if isinstance(weight, CompressedWeight):
        if weight.transposed == transposed:
            return torch.nn.Parameter(weight.again(), requires_grad=False)
        weight = weight.decoded()
    dense = weight.detach()
    matrix = kept(dense.T.contiguous() if transposed else dense, execution)
    if matrix is None:
        return None
    return torch.nn.Parameter(CompressedWeight(matrix, transposed), requires_grad=False)


def _stack(weight: torch.Tensor, module: Any, execution: str) -> torch.nn.Parameter | None:
    """Compress each expert of a stack; None if one of them stays dense."""
    if isinstance(weight, CompressedStack):
        return torch.nn.Parameter(weight.again(), requires_grad=False)
    experts = []
    for one in weight:
        matrix = kept(one.T.contiguous() if module.is_transposed else one, execution)
        if matrix is None:
            return None
        experts.append(CompressedWeight(matrix, module.is_transposed))
    return torch.nn.Parameter(CompressedStack(tuple(experts)), requires_grad=False)


def decode_others(model: torch.nn.Module) -> None:
    """Decode compressed weights of modules that are neither linear layers nor embeddings."""
    made: dict[int, torch.nn.Parameter] = {}  # a weight that several modules share stays shared
    for module in model.modules():
        for name, one in list(module.named_parameters(recurse=False)):
            if isinstance(one, CompressedWeight) and not is_compressible(module, name):
                if id(one) not in made:
                    made[id(one)] = torch.nn.Parameter(one.decoded(), requires_grad=False)
                setattr(module, name, made[id(one)])


def weights_of(model: torch.nn.Module) -> dict[str, CompressedWeight]:
    """The compressed weights of a model by name, shared ones once."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if isinstance(parameter, CompressedWeight)
    }


def reasons_for_dense(model: torch.nn.Module, execution: str) -> dict[str, str]:
    """Why weights with two or more axes stayed dense, by name."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, one in module.named_parameters(recurse=False):
            if one.dim() < 2 or isinstance(one, CompressedWeight):
                continue
            if is_compressible(module, name):
                slower = ", or dense is faster" if execution == AUTO else ""
                why = _reason(one) or f"no form is smaller{slower}"
            else:
                why = "it is no matrix of a linear layer, an embedding or experts"
            found[f"{prefix}.{name}".removeprefix(".")] = why
    return found


def _reason(weight: torch.Tensor) -> str:
    return reason_against(weight[0] if weight.dim() == 3 else weight)


def leave_files(model: torch.nn.Module) -> None:
    """Copy the weights that stayed dense, if they are the smaller part of a model.

    They are views of the mapped weights file, which stays in memory whole as long as one of them
    is left.
    """
    held = weights_of(model)
    dense = [one for name, one in model.named_parameters() if name not in held]
    if sum(one.nbytes for one in dense) < sum(one.held_bytes for one in held.values()):
        for one in dense:
            one.data = one.data.clone()


def _is_stacked(module: Any) -> bool:
    """A module of experts in transformers, whose weights have an axis of experts."""
    return isinstance(getattr(module, "is_transposed", None), bool)


def _is_conv1d(module: Any) -> bool:
    """GPT-2's linear layer, whose weight is [inputs, outputs]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
