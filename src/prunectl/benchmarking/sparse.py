"""Linear layers that use torch's 2:4 kernels for some rows of their weight and for some batches.

A weight of which only some rows follow 2:4 is split into a sparse and a dense product, whose
outputs are put back into order. :mod:`prunectl.benchmarking.kernels` measures which of the two ways
is faster for a batch; the weight is kept in the forms that are used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    import torch

Convert = Callable[["torch.Tensor"], "torch.Tensor"]

LEAST_SPARSE_ROWS = 0.25
"""The least share of rows in 2:4 from which a split weight is tried."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One of torch's 2:4 kernels: its name, its conversion of weights, and the shapes it takes."""

    name: str
    convert: Convert
    constraints: Mapping[torch.dtype, Any]

    def takes(self, rows: int, columns: int, dtype: torch.dtype) -> bool:
        """Whether a weight of that shape can be converted."""
        rule = self.constraints.get(dtype)
        return bool(
            rule
            and rows
            and columns
            and rows % rule.sparse_min_rows == 0
            and columns % rule.sparse_min_cols == 0
        )

    def least_rows(self, dtype: torch.dtype) -> int:
        """The number of rows must be a multiple of this."""
        return int(self.constraints[dtype].sparse_min_rows)


def _quiet(convert: Convert) -> Convert:
    """A conversion without torch's warning that its interface is a prototype."""

    def converted(weight: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
            return convert(weight)

    return converted


def backends() -> tuple[Backend, ...]:
    """The kernels that torch knows; this build or device may lack them."""
    from torch.sparse import (
        SparseSemiStructuredTensorCUSPARSELT as Cusparselt,
    )
    from torch.sparse import (
        SparseSemiStructuredTensorCUTLASS as Cutlass,
    )

    return tuple(
        Backend(
            name,
            _quiet(kind.from_dense),
            {dtype: kind._DTYPE_SHAPE_CONSTRAINTS[dtype] for dtype in _two_four_dtypes()},
        )
        for name, kind in (("cuSPARSELt", Cusparselt), ("CUTLASS", Cutlass))
    )


def _two_four_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes in which torch's form is 2:4 and works in a Linear without further changes.

    CUTLASS' float32 is 1:2, and would drop weights; int8 and float8 need scales and activations
    in the same dtype.
    """
    import torch

    return torch.float16, torch.bfloat16


def rows_in_2_4(weight: torch.Tensor) -> torch.Tensor:
    """Indices of the rows with at most two nonzeros in every four weights; int64, ascending."""
    import torch

    if weight.ndim != 2 or weight.shape[1] % 4:
        return torch.empty(0, dtype=torch.int64, device=weight.device)
    groups = (weight.detach().reshape(weight.shape[0], -1, 4) != 0).sum(dim=2)
    return (groups <= 2).all(dim=1).nonzero().squeeze(1)


def sparse_rows(weight: torch.Tensor, backend: Backend) -> torch.Tensor:
    """The rows for a kernel: all that follow 2:4, up to its multiple of rows; or none."""
    rows = rows_in_2_4(weight)
    if weight.ndim != 2 or weight.dtype not in backend.constraints:
        return rows[:0]
    usable = len(rows) - len(rows) % backend.least_rows(weight.dtype)
    if usable < LEAST_SPARSE_ROWS * weight.shape[0]:
        return rows[:0]
    return rows[:usable] if backend.takes(usable, weight.shape[1], weight.dtype) else rows[:0]


class SplitWeight(nn.Module):
    """A weight as sparse rows and, where some do not follow 2:4, dense ones."""

    def __init__(self, weight: torch.Tensor, rows: torch.Tensor, convert: Convert) -> None:
        """Split a weight [out, in]; ``rows`` are the indices of the rows that are converted."""
        import torch

        super().__init__()
        is_sparse = torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
        is_sparse[rows] = True
        whole = bool(is_sparse.all())
        picked = weight if whole else weight[rows]
        self.sparse = nn.Parameter(convert(picked.detach().contiguous()), requires_grad=False)
        rest = (~is_sparse).nonzero().squeeze(1)
        self.dense = None if whole else nn.Parameter(weight[rest].detach(), requires_grad=False)
        # The place of each output after the sparse and the dense outputs are concatenated.
        order = None if whole else torch.cat([rows, rest]).argsort()
        self.order: torch.Tensor | None
        self.register_buffer("order", order)

    def forward(self, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The product, shape (..., out)."""
        import torch

        inputs = inputs.contiguous()  # torch's sparse product views them
        if self.dense is None:
            return functional.linear(inputs, self.sparse, bias)
        parts = [functional.linear(inputs, self.sparse), functional.linear(inputs, self.dense)]
        found = torch.cat(parts, dim=-1)[..., self.order]
        return found if bias is None else found + bias


class ChoosingLinear(nn.Module):
    """A linear layer that chooses the form of its weight by the number of input rows.

    Args:
        linear: the layer to replace.
        split: its weight in the sparse form.
        choices: number of input rows -> whether the sparse form won. Other numbers take the choice
            of the nearest one on a logarithmic scale; an empty mapping means always sparse.
    """

    def __init__(self, linear: nn.Linear, split: SplitWeight, choices: Mapping[int, bool]) -> None:
        super().__init__()
        self.bias = linear.bias
        self.split = split
        self.choices = dict(choices)
        self.keeps_dense = not all(self.choices.values())
        # Models ask layers for the dtype of their weight, so the name must exist.
        self.weight: torch.Tensor = linear.weight if self.keeps_dense else split.sparse

    def uses_sparse(self, rows: int) -> bool:
        """Whether a product with ``rows`` input rows takes the sparse form."""
        if not self.choices:
            return True
        nearest = min(self.choices, key=lambda known: abs(math.log(known) - math.log(max(rows, 1))))
        return self.choices[nearest]

    def unused(self, rows: int) -> list[torch.Tensor]:
        """The parameters that a product with ``rows`` input rows does not read."""
        if not self.keeps_dense:
            return []
        return [self.weight] if self.uses_sparse(rows) else list(self.split.parameters())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.numel() // max(1, inputs.shape[-1])
        if self.uses_sparse(rows):
            found: torch.Tensor = self.split(inputs, self.bias)
            return found
        return functional.linear(inputs, self.weight, self.bias)


def replace_linears(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Replace modules by their full names."""
    for name, module in replacements.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)
