"""The result of ``export``."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ExportedTensor:
    """One tensor of the output.

    Attributes:
        name, dtype, shape: as in the source.
        file: the weights file that holds it.
        layout: how it is stored; ``dense`` where no other layout fits or is smaller.
        pattern: the N:M that its layout uses, or None.
        zeros: weights that are +0.0 or -0.0.
        dense_bytes: size stored densely.
        stored_bytes: size of its parts.
        blake3: hash of its dense bytes.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    pattern: str | None
    zeros: int
    dense_bytes: int
    stored_bytes: int
    blake3: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LayoutTotal:
    """Count of the tensors stored in one layout, and their bytes before and after."""

    layout: str
    tensors: int
    dense_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The result of an export.

    Attributes:
        output: the folder.
        model: the source, as given.
        layout: as requested.
        tensors: in file order.
        source_bytes: of the source's weight files. dense_bytes: of all tensors, dense.
        nbytes: of the weight files written, headers included.
        shards: number of weight files.
        resumed_shards: finished by an interrupted run.
        seconds: wall time.
        warnings: sentences.
    """

    output: Path
    model: str
    layout: str
    tensors: tuple[ExportedTensor, ...]
    source_bytes: int
    dense_bytes: int
    nbytes: int
    shards: int
    resumed_shards: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def layouts(self) -> tuple[LayoutTotal, ...]:
        """Totals by layout, the largest first."""
        groups: dict[str, list[ExportedTensor]] = defaultdict(list)
        for tensor in self.tensors:
            groups[tensor.layout].append(tensor)
        totals = [
            LayoutTotal(
                layout,
                len(members),
                sum(tensor.dense_bytes for tensor in members),
                sum(tensor.stored_bytes for tensor in members),
            )
            for layout, members in groups.items()
        ]
        return tuple(sorted(totals, key=lambda total: (-total.dense_bytes, total.layout)))

    @property
    def ratio(self) -> float:
        """Bytes of the weight files / bytes of the tensors stored densely."""
        return self.nbytes / self.dense_bytes if self.dense_bytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        from prunectl.to_json import to_json

        return {
            "schema": "prunectl.export/1",
            **to_json(self),
            "layouts": to_json(self.layouts),
            "ratio": self.ratio,
        }


@dataclass(frozen=True, slots=True)
class MasksResult:
    """The file of ``export --masks-only``, with a mask for each of ``tensors`` tensors."""

    output: Path
    model: str
    tensors: int
    weights: int
    zeros: int
    nbytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        from prunectl.to_json import to_json

        return {"schema": "prunectl.masks/1", **to_json(self)}
