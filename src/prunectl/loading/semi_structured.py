"""2:4 weights on CUDA in torch's semi-structured form, where its kernels support them.

Before converting, torch checks neither the device nor whether a weight follows 2:4, and drops
surplus weights; both are checked here. Whether the form is faster depends on shape and batch size;
small batches are often slower.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from prunectl.errors import InvalidOption

if TYPE_CHECKING:
    import torch

MODES = ("never", "auto", "always")


def check_mode(mode: str) -> None:
    """Refuse a mode that is not one of ``MODES``.

    Raises:
        InvalidOption: an unknown mode.
    """
    if mode not in MODES:
        raise InvalidOption(
            f"semi_structured '{mode}' is not known", hint=f"one of {', '.join(MODES)}"
        )


def convert(model: torch.nn.Module, mode: str) -> tuple[str, ...]:
    """Convert weights of linear layers to torch's semi-structured form, in place.

    Args:
        model: on its devices.
        mode: ``never`` changes nothing. ``auto`` converts every weight that follows 2:4, is on a
            CUDA device, and has a dtype and shape that torch's kernels support. ``always`` does so
            too, and raises if no weight could be converted.

    Returns:
        The names of the modules with converted weights.

    Raises:
        InvalidOption: an unknown mode; ``always``, and no weight can be converted.
    """
    check_mode(mode)
    if mode == "never":
        return ()
    import torch
    from torch.sparse import to_sparse_semi_structured

    converted: list[str] = []
    tied = _tied_weights(model)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or id(module.weight) in tied:
            continue
        if not reason_against(module.weight):
            with warnings.catch_warnings():  # torch warns of a prototype each time
                warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
                weight = to_sparse_semi_structured(module.weight.detach())
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
            converted.append(name)
    if mode == "always" and not converted:
        raise InvalidOption(
            "semi_structured='always': no linear layer can be converted"
            + ("" if torch.cuda.is_available() else ", since torch sees no CUDA device"),
            hint="use 'auto', or prune with --pattern 2:4 and load with device_map='cuda'",
        )
    return tuple(converted)


def reason_against(weight: torch.Tensor) -> str:
    """Why a weight cannot be converted; '' if it can."""
    if weight.device.type != "cuda":
        return f"it is on {weight.device.type}, not on CUDA"
    if why := shape_reason(tuple(weight.shape), weight.dtype):
        return why
    return "" if follows_2_4(weight) else "it does not follow 2:4"


def shape_reason(shape: tuple[int, ...], dtype: Any) -> str:
    """Why torch's kernels do not support a shape or dtype, by torch's rules; '' if they do."""
    import torch
    from torch.sparse import (
        SparseSemiStructuredTensorCUSPARSELT,
        SparseSemiStructuredTensorCUTLASS,
    )
    from torch.sparse.semi_structured import SparseSemiStructuredTensor

    kind: Any = SparseSemiStructuredTensorCUSPARSELT
    if SparseSemiStructuredTensor._FORCE_CUTLASS:
        kind = SparseSemiStructuredTensorCUTLASS
    if len(shape) != 2:
        return "it is not a matrix"
    rules = kind._DTYPE_SHAPE_CONSTRAINTS.get(dtype)
    # the float32 form of CUTLASS is 1:2, and silently drops weights of 2:4
    if rules is None or dtype not in (torch.float16, torch.bfloat16):
        return f"{dtype} has no kernel"
    rows, columns = rules.sparse_min_rows, rules.sparse_min_cols
    if shape[0] % rows or shape[1] % columns or not shape[0] or not shape[1]:
        return f"its dimensions are not multiples of {rows} and {columns}"
    return ""


def follows_2_4(weight: torch.Tensor) -> bool:
    """Whether at most two of every four weights along the rows are nonzero."""
    groups = weight.detach().reshape(-1, 4) != 0
    return bool((groups.sum(dim=1) <= 2).all())


def _tied_weights(model: torch.nn.Module) -> set[int]:
    """Ids of parameters that several modules share: converting a copy would untie them."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
