"""Checkpoints with chosen bits, and what an analysis must say of them: concatenate and sort."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from magnitude_reference import TORCH, torch_values

from prunectl.analysis.result import SPARSITIES, Analysis, TensorStats
from prunectl.checkpoint.reader import WeightReader
from prunectl.tensorspec import DTYPES

Stored = tuple[str, np.ndarray]
"""Dtype name and raw codes in the tensor's shape."""


def write(folder: Path, tensors: Mapping[str, Stored], file: str = "model.safetensors") -> Path:
    """A safetensors file in the given order, made by hand: any bits, any dtype."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, codes) in tensors.items():
        place = [at, at + codes.nbytes]
        header[name] = {"dtype": dtype, "shape": list(codes.shape), "data_offsets": place}
        at += codes.nbytes
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / file).open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, codes in tensors.values():
            out.write(np.ascontiguousarray(codes).tobytes())
    return folder


def stored(dtype: str, values: Any) -> Stored:
    """Numbers as a tensor of ``dtype``."""
    tensor = torch.tensor(values, dtype=torch.float64).to(TORCH[dtype])
    bits = DTYPES[dtype].bits
    codes = tensor.view(getattr(torch, f"int{bits}")).numpy().view(f"u{bits // 8}")
    return dtype, codes.reshape(tensor.shape)


def values_of(tensor: Stored) -> np.ndarray:
    """The float64 values of a tensor, in its shape."""
    dtype, codes = tensor
    return torch_values(DTYPES[dtype], codes.reshape(-1)).reshape(codes.shape)


def finite_energy(values: np.ndarray) -> float:
    real = values[np.isfinite(values)]
    return math.fsum(real * real)


def exact_count(sparsity: float, weights: int) -> int:
    return math.floor(Fraction(repr(sparsity)) * weights + Fraction(1, 2))


def check_thresholds(analysis: Analysis, weights: Mapping[str, np.ndarray]) -> None:
    """Compare every row of the table with one stable sort of ``weights``, in file order."""
    everything = np.concatenate([np.abs(values).reshape(-1) for values in weights.values()])
    owner = np.repeat(np.arange(len(weights)), [values.size for values in weights.values()])
    order = np.argsort(everything, kind="stable")
    stats = {t.name: t for t in analysis.tensors}
    places = [stats[name] for name in weights]
    assert [t.name for t in analysis.tensors if t.prunable] == list(weights)
    assert [row.sparsity for row in analysis.thresholds] == list(SPARSITIES)
    total = finite_energy(everything)
    for i, row in enumerate(analysis.thresholds):
        k = exact_count(row.sparsity, everything.size)
        gone = np.zeros(everything.size, bool)
        gone[order[:k]] = True
        threshold = everything[order[k - 1]] if k else 0.0
        assert row.threshold == threshold
        assert row.ties == ((everything == threshold).sum() if k else 0)
        assert row.ties_pruned == (gone & (everything == threshold)).sum()
        gone |= everything == 0
        assert row.count == gone.sum()
        kept = finite_energy(everything[~gone]) / total if total else 1.0
        assert abs(row.norm_kept - kept) <= 1e-12
        zeros = np.bincount(owner[gone], minlength=len(weights))
        want = [z / t.numel for z, t in zip(zeros, places, strict=True)]
        assert [t.sparsity[i] for t in places] == want
        assert row.roles == shares_by([t.role for t in places], zeros, places)
        assert row.layers == shares_by([f"{t.stack}.{t.layer}" for t in places], zeros, places)


def shares_by(
    labels: Sequence[str], zeros: np.ndarray, tensors: Sequence[TensorStats]
) -> dict[str, float]:
    return {
        label: sum(int(z) for z, own in zip(zeros, labels, strict=True) if own == label)
        / sum(t.numel for t, own in zip(tensors, labels, strict=True) if own == label)
        for label in dict.fromkeys(labels)
    }


def facts(analysis: Analysis) -> str:
    """Everything in the result but how it was come by, as strict JSON text."""
    values = analysis.to_json()
    del values["seconds"], values["from_cache"]
    return json.dumps(values, allow_nan=False)


class BytesRead:
    """Counts what goes through :meth:`WeightReader.read`."""

    def __init__(self, monkeypatch: Any) -> None:
        self.count = 0
        original = WeightReader.read

        def read(reader: WeightReader, tensor: Any, start: int, out: Any) -> None:
            self.count += len(out)
            original(reader, tensor, start, out)

        monkeypatch.setattr(WeightReader, "read", read)

    def take(self) -> int:
        """Bytes since the last call."""
        count, self.count = self.count, 0
        return count
