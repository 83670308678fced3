"""Zeros of a model in memory: counted, made by an N:M pattern, or filled. Files stay unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunectl.pattern import NM

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 24
"""Weights that are sorted at a time."""


@dataclass(frozen=True, slots=True)
class Zeros:
    """The prunable weights of a model and their zeros.

    Attributes:
        matrices: linear layers in the model's blocks.
        weights, zeros: in the prunable tensors of its files; in ``matrices`` if it has no files.
        follow_2_4: ``matrices`` that follow 2:4.
    """

    matrices: int
    weights: int
    zeros: int
    follow_2_4: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer of a block; ``weight`` is a view with the inputs along its last axis."""

    name: str
    module: torch.nn.Module
    weight: torch.Tensor


def block_matrices(model: torch.nn.Module) -> list[Matrix]:
    """The linear layers inside lists of modules, which hold the repeated blocks.

    Weights that several modules share come once. Head and embeddings are in no list.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    found: dict[int, Matrix] = {}
    for name, module in model.named_modules():
        in_list = any(part.isdecimal() for part in name.split("."))
        if not in_list or not isinstance(module, torch.nn.Linear | Conv1D):
            continue
        weight = module.weight.detach()
        view = weight.t() if isinstance(module, Conv1D) else weight
        found.setdefault(id(module.weight), Matrix(name, module, view))
    return list(found.values())


def zeros_in_memory(model: torch.nn.Module) -> Zeros:
    """Count the zeros in the blocks of a model."""
    from prunectl.loading.semi_structured import follows_2_4

    matrices = block_matrices(model)
    zeros = follow = 0
    for matrix in matrices:
        count = matrix.weight.numel() - int(matrix.weight.count_nonzero())
        zeros += count
        if 2 * count >= matrix.weight.numel() and matrix.weight.shape[-1] % 4 == 0:
            follow += follows_2_4(matrix.weight)
    return Zeros(len(matrices), sum(m.weight.numel() for m in matrices), zeros, follow)


def prune_in_memory(model: torch.nn.Module, pattern: NM) -> torch.nn.Module:
    """A copy whose block matrices keep the N largest of every M; it shares everything else."""
    copied = _copy_with_own_blocks(model)
    for matrix in block_matrices(copied):
        if matrix.weight.shape[-1] % pattern.m == 0:
            for rows in _row_blocks(matrix.weight):
                keep_largest(rows, pattern)
    return copied


def keep_largest(weight: torch.Tensor, pattern: NM) -> None:
    """Zero all but the N largest magnitudes in groups of M along the last axis, in place.

    Ties keep the lower index, as in :mod:`prunectl.magnitude.masks`; -0.0 is no larger than 0.0.
    """
    import torch

    groups = weight.reshape(-1, pattern.m)
    order = groups.abs().sort(dim=1, descending=True, stable=True).indices
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(1, order[:, : pattern.n], True)
    weight.copy_(torch.where(kept, groups, torch.zeros_like(groups)).reshape(weight.shape))


def fill_in_memory(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose zeros are replaced by small numbers, so that no work can be skipped."""
    copied = _copy_with_own_blocks(model)
    for matrix in block_matrices(copied):
        for rows in _row_blocks(matrix.weight):
            rows.masked_fill_(rows == 0, 1e-3)
    return copied


def _copy_with_own_blocks(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares every tensor but the weights of block matrices."""
    own = {id(matrix.module.weight) for matrix in block_matrices(model)}
    shared: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in own:
            shared[id(tensor)] = tensor
    return deepcopy(model, shared)


def _row_blocks(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of a few rows each, which bounds the memory for computing on them."""
    step = max(1, _BLOCK // max(1, weight.shape[-1]))
    for start in range(0, weight.shape[0], step):
        yield weight[start : start + step]
