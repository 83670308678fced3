"""Analyses of real trained checkpoints against plain torch and numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_reference import BytesRead, exact_count, facts, finite_energy
from full import few
from safetensors.torch import load_file

from prunectl.analysis.result import Analysis, TensorStats
from prunectl.analysis.verb import analyze
from prunectl.measure.thresholds import NEAR_ZERO, QUANTILES
from prunectl.pattern import NM

pytestmark = pytest.mark.real

# name -> (prunable tensors, their weights, where roles come from, times the weights are read)
MODELS: dict[str, tuple[int, int | None, str | None, int]] = {
    "minilm": (36, 10_616_832, "modules", 2),
    "smollm2": (210, 106_168_320, "modules", 1),
    "rxnfp/bert_ft": (72, None, None, 2),
}


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors by torch's and safetensors' own loaders; files by name, then file order."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    if not tensors:
        for path in sorted(folder.glob("*.bin")):
            tensors |= torch.load(path, weights_only=True)
    return tensors


def magnitudes(tensor: torch.Tensor) -> np.ndarray:
    """|w| as float32, which holds fp32 and bf16 exactly."""
    return tensor.detach().abs().to(torch.float32).contiguous().numpy().reshape(-1)


def check_thresholds(analysis: Analysis, weights: dict[str, np.ndarray]) -> None:
    """Thresholds by sorting everything; ties go to the first tensors in file order."""
    everything = np.sort(np.concatenate(list(weights.values())))
    stats = {t.name: t for t in analysis.tensors}
    total = sum(float(np.square(w, dtype=np.float64).sum()) for w in weights.values())
    for i, row in list(enumerate(analysis.thresholds))[1::6]:
        k = exact_count(row.sparsity, everything.size)
        threshold = everything[k - 1]
        below = np.searchsorted(everything, threshold)
        upto = np.searchsorted(everything, threshold, side="right")
        assert (row.count, row.threshold) == (k, float(threshold))
        assert (row.ties, row.ties_pruned) == (upto - below, k - below)
        lost = np.square(everything[:k], dtype=np.float64).sum()
        assert abs(row.norm_kept - (1 - lost / total)) < 1e-9
        left = k - below
        for name, own in weights.items():
            quota = min(left, int((own == threshold).sum()))
            left -= quota
            zeros = int((own < threshold).sum()) + quota
            assert stats[name].sparsity[i] == zeros / own.size, name


def kept_by_2_4(tensor: torch.Tensor) -> float:
    groups = tensor.double().reshape(-1, 4)
    kept = groups.abs().topk(2, dim=1).values
    return float(kept.square().sum() / groups.square().sum())


@pytest.mark.parametrize("name", few(MODELS, "minilm"))
def test_real_model(
    real_model: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors_count, weights_count, origin, times = MODELS[name]
    folder = real_model(name)
    tensors = load(folder)
    read = BytesRead(monkeypatch)
    analysis = analyze(folder)
    floats = [t for t in analysis.tensors if t.measured]
    nbytes = sum(tensors[t.name].nbytes for t in floats)
    assert nbytes * (times - 1) < read.take() <= nbytes * times
    prunable = [t.name for t in analysis.tensors if t.prunable]
    assert len(prunable) == tensors_count
    assert analysis.source.prunable_weights == sum(tensors[n].numel() for n in prunable)
    assert weights_count in (None, analysis.source.prunable_weights)
    assert origin in (None, analysis.source.roles_from)
    check_thresholds(analysis, {n: magnitudes(tensors[n]) for n in prunable})
    for got in floats[:: max(1, len(floats) // 12)]:
        check_tensor(got, tensors[got.name])
    again = analyze(folder)
    assert read.take() == 0
    assert facts(again) == facts(analysis)


def check_tensor(got: TensorStats, tensor: torch.Tensor) -> None:
    ordered = np.sort(magnitudes(tensor))
    values = tensor.detach().double().numpy().reshape(-1)
    assert got.zeros == (ordered == 0).sum()
    assert [got.near_zero[f"{t:g}"] for t in NEAR_ZERO] == [(ordered <= t).sum() for t in NEAR_ZERO]
    assert got.near_zero["0.01*std"] == (ordered.astype(float) <= 0.01 * got.std).sum()
    assert (got.minimum, got.maximum) == (values.min(), values.max())
    assert got.mean == pytest.approx(values.mean(), abs=1e-12)
    assert got.std == pytest.approx(values.std(), rel=1e-9, abs=1e-9)
    assert got.norm_squared == pytest.approx(finite_energy(values), rel=1e-10)
    want = [ordered[max(0, -(-round(q * 100) * ordered.size // 100) - 1)] for q in QUANTILES]
    assert list(got.quantiles.values()) == [float(value) for value in want]
    if got.prunable:
        assert got.patterns["2:4"].norm_kept == pytest.approx(kept_by_2_4(tensor), abs=1e-12)


@pytest.mark.full
def test_the_same_weights_in_two_formats(real_model: Callable[[str], Path]) -> None:
    one, other = (analyze(real_model(n), patterns=[NM(1, 2)]) for n in ("smollm2", "smollm2-bin"))
    # Ties go in file order, and the order of the two files' tensors differs; nothing else may.
    assert [(r.count, r.threshold, r.ties) for r in one.thresholds] == [
        (r.count, r.threshold, r.ties) for r in other.thresholds
    ]
    by_name = [
        {t.name: (t.role, t.layer, t.zeros, t.quantiles, t.octaves, t.patterns) for t in a.tensors}
        for a in (one, other)
    ]
    assert by_name[0] == by_name[1]
