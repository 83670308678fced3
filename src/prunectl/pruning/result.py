"""The result of ``prune``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunectl.methods.table import DEFAULT


@dataclass(frozen=True, slots=True)
class PoolOutcome:
    """One pool.

    Attributes:
        label: ``default`` or the recipe rule's selectors. pattern, scope: as text.
        requested: sparsity asked for; None if an N:M pattern alone was.
        achieved: zeros / weights. weights, zeros: of its prunable tensors.
        threshold: the global threshold; None for other scopes and N:M.
        budget: whether N:M went to only some matrices or rows.
        pruned_tensors, dense_tensors: of its prunable tensors.
        note: why achieved differs visibly from requested, '' if it does not.
        row_block: rows that take the pattern together; None for whole matrices.
    """

    label: str
    pattern: str
    scope: str
    requested: float | None
    achieved: float
    weights: int
    zeros: int
    threshold: float | None
    budget: bool
    pruned_tensors: int
    dense_tensors: int
    note: str = ""
    row_block: int | None = None


@dataclass(frozen=True, slots=True)
class TensorOutcome:
    """One tensor of the output.

    Attributes:
        action: ``prune`` or ``copy``; reason: why it was copied.
        requested: sparsity requested of this tensor alone (scope tensor or row), else None.
        input_axis: the axis along which N:M groups and rows lie; None where it has none.
        norm_lost: share of its squared norm that was pruned, if measured, else None.
        calibrated: facts about its calibration (docs/manifest.md), else None.
        pattern_rows: rows [start, stop) that follow the pattern; None where all do.
        tied_to: the tensor that it repeats under another name; both count once.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    numel: int
    prunable: bool
    action: str
    pattern: str | None
    zeros: int
    zeros_before: int
    threshold: float | None
    reason: str
    blake3: str
    tied_to: str | None = None
    requested: float | None = None
    input_axis: int | None = None
    norm_lost: float | None = None
    calibrated: Mapping[str, Any] | None = None
    pattern_rows: tuple[tuple[int, int], ...] | None = None

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel if self.numel else 0.0


@dataclass(frozen=True, slots=True)
class PruneResult:
    """The whole outcome.

    Attributes:
        output: the folder. model: the source as given.
        pools, tensors: in order. prunable_weights, prunable_zeros: tied tensors count once.
        weights, zeros: of all float tensors. prunable_zeros_before, zeros_before: in the source.
        nbytes: of the weight files written. source_bytes: of the source's. shards: files.
        resumed_shards: finished by an interrupted run.
        seconds: wall time. warnings: sentences.
        predicted_bytes: of all tensors by layout: ``dense``, ``bitmask``, ``nm`` where a tensor
            follows N:M (these are exact), and ``packed`` (an estimate).
        method: how weights were chosen; ``mask`` where a file of masks did.
        refined: whether the kept weights were fitted to the layers' outputs; reconstructed: by
            gradient steps to the outputs of blocks, and to the logits if there are any.
    """

    output: Path
    model: str
    pools: tuple[PoolOutcome, ...]
    tensors: tuple[TensorOutcome, ...]
    prunable_weights: int
    prunable_zeros: int
    prunable_zeros_before: int
    weights: int
    zeros: int
    zeros_before: int
    nbytes: int
    source_bytes: int
    shards: int
    resumed_shards: int
    seconds: float
    warnings: tuple[str, ...]
    predicted_bytes: dict[str, int] = field(default_factory=dict)
    method: str = str(DEFAULT)
    refined: bool = False
    reconstructed: bool = False

    @property
    def sparsity(self) -> float:
        """Zeros / prunable weights."""
        return self.prunable_zeros / self.prunable_weights if self.prunable_weights else 0.0

    @property
    def overall_sparsity(self) -> float:
        """Zeros / all weights."""
        return self.zeros / self.weights if self.weights else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        from prunectl.to_json import to_json

        return {
            "schema": "prunectl.prune/1",
            **to_json(self),
            "sparsity": self.sparsity,
            "overall_sparsity": self.overall_sparsity,
        }
