"""Histograms of magnitudes, and what a threshold takes from each cell, against plain numpy."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from analysis_reference import finite_energy, stored, values_of, write
from hypothesis import given, settings
from hypothesis import strategies as st
from magnitude_reference import PRUNABLE, seeds, weights
from safetensors.torch import load_file

import prunectl
from prunectl.analysis.distribution import kind_of
from prunectl.analysis.result import Analysis, Cuts, Magnitudes, layer_label
from prunectl.analysis.verb import analyze
from prunectl.tensorspec import DTYPES, DType

UP = "model.layers.{}.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"


def check_histograms(found: Magnitudes, analysis: Analysis, values: dict[str, np.ndarray]) -> None:
    """Count each group's values between the edges with numpy."""
    assert list(found.edges) == sorted(set(found.edges))
    groups: dict[str, dict[str, list[np.ndarray]]] = {"roles": {}, "components": {}, "layers": {}}
    for tensor in analysis.tensors:
        own = np.abs(values[tensor.name].reshape(-1))
        own = own[~np.isnan(own) & (own > 0)]
        groups["roles"].setdefault(tensor.role, []).append(own)
        if tensor.prunable:
            groups["components"].setdefault(kind_of(tensor.component), []).append(own)
            groups["layers"].setdefault(layer_label(tensor), []).append(own)
    for kind, members in groups.items():
        want = {}
        for label, parts in members.items():
            places = np.searchsorted(found.edges, np.concatenate(parts), side="right")
            want[label] = tuple(np.bincount(places, minlength=len(found.edges) + 1).tolist())
        assert getattr(found, kind) == want


def check_cuts(found: Cuts, analysis: Analysis, values: dict[str, np.ndarray]) -> None:
    """Compare every threshold's zeros with those of comparing each weight with it."""
    prunable = [t for t in analysis.tensors if t.prunable]
    everything = np.abs(np.concatenate([values[t.name].reshape(-1) for t in prunable]))
    with np.errstate(over="ignore"):
        energy = finite_energy(everything)
    assert found.thresholds[0] == 0
    assert found.zeros[0] == (everything == 0).sum()
    assert all(a < b for a, b in itertools.pairwise(found.zeros))
    assert found.zeros[-1] < everything.size or len(found.zeros) == 1
    for i, threshold in enumerate(found.thresholds):
        gone = (everything < threshold) | (everything == 0)
        assert found.zeros[i] == gone.sum()
        if math.isfinite(energy):
            kept = finite_energy(everything[~gone]) / energy if energy else 1.0
            assert found.norm_kept[i] == pytest.approx(kept, abs=1e-12)
        zeros: Counter[tuple[str, int | None, str]] = Counter()
        for t in prunable:
            own = np.abs(values[t.name])
            count = int(((own < threshold) | (own == 0)).sum())
            zeros[t.stack, t.layer, kind_of(t.component)] += count
        assert {(c.stack, c.layer, c.component): c.zeros[i] for c in found.cells} == zeros
    sizes: Counter[tuple[str, int | None, str]] = Counter()
    tensors: Counter[tuple[str, int | None, str]] = Counter()
    for t in prunable:
        key = t.stack, t.layer, kind_of(t.component)
        sizes[key], tensors[key] = sizes[key] + t.numel, tensors[key] + 1
    assert {(c.stack, c.layer, c.component): c.weights for c in found.cells} == sizes
    assert {(c.stack, c.layer, c.component): c.tensors for c in found.cells} == tensors


@pytest.mark.parametrize("dtype", PRUNABLE, ids=str)
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=3), seed=seeds, inf=st.booleans())
@settings(max_examples=10)
def test_any_bits(tmp_path_factory, dtype: DType, sizes, seed, inf) -> None:
    tensors = {
        UP.format(i): (dtype.name, weights(dtype, size, seed + i, inf=inf).reshape(1, size))
        for i, size in enumerate(sizes)
    }
    tensors[EMBEDDING] = (dtype.name, weights(dtype, 50, seed, inf=inf).reshape(5, 10))
    folder = write(tmp_path_factory.mktemp("model"), tensors)
    analysis = analyze(folder, use_cache=False, patterns=())
    values = {name: values_of(tensor) for name, tensor in tensors.items()}
    check_histograms(analysis.magnitudes, analysis, values)
    check_cuts(analysis.cuts, analysis, values)


@pytest.mark.parametrize("name", ["llama", "albert", "gpt_oss", "mixtral", "t5"])
def test_models(tmp_path: Path, name: str) -> None:
    tiny_models.build(name, tmp_path, torch.float32)
    analysis = analyze(tmp_path)
    values = {n: t.double().numpy() for n, t in load_file(tmp_path / "model.safetensors").items()}
    check_histograms(analysis.magnitudes, analysis, values)
    check_cuts(analysis.cuts, analysis, values)
    cells = [(c.stack, c.layer, c.component) for c in analysis.cuts.cells]
    assert len(set(cells)) == len(cells)
    # Values are read off the same after a second pass, which refined the histograms.
    again = analyze(tmp_path)
    assert again.from_cache
    assert (again.magnitudes, again.cuts.cells) == (analysis.magnitudes, analysis.cuts.cells)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_thresholds_are_near_every_hundredth(tmp_path: Path, dtype: str) -> None:
    normal = np.random.default_rng(5).normal(0, 0.05, (200, 500))
    analysis = analyze(write(tmp_path, {UP.format(0): stored(dtype, normal)}))
    found = np.array(analysis.cuts.zeros) / normal.size
    wanted = np.arange(100) / 100
    # A bin of the fp64 histogram may hold a hundredth of a normal distribution.
    apart = 0.008 if dtype == "F64" else 0.003
    assert np.abs(found[:, None] - wanted).min(axis=0).max() < apart
    assert len(found) == 100 or dtype == "F64"


def test_prune_makes_the_zeros_that_a_cut_tells(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path / "model", torch.bfloat16)
    analysis = analyze(tmp_path / "model")
    at = 40
    asked = analysis.cuts.zeros[at] / analysis.source.prunable_weights
    prunectl.prune(tmp_path / "model", tmp_path / "out", prunectl.PruneSettings(sparsity=asked))
    pruned = load_file(tmp_path / "out" / "model.safetensors")
    zeros: Counter[tuple[str, int | None, str]] = Counter()
    for t in analysis.tensors:
        if t.prunable:
            key = t.stack, t.layer, kind_of(t.component)
            zeros[key] += int((pruned[t.name] == 0).sum())
    assert {(c.stack, c.layer, c.component): c.zeros[at] for c in analysis.cuts.cells} == zeros


def test_pruned_constant_and_absent_weights(tmp_path: Path) -> None:
    half = np.where(np.arange(4000) % 2, np.random.default_rng(1).normal(0, 1, 4000), 0.0)
    pruned = {UP.format(0): stored("F32", half.reshape(40, 100))}
    cuts = analyze(write(tmp_path / "half", pruned)).cuts
    assert cuts.zeros[0] == 2000
    assert len(cuts.zeros) == 50  # one for 0, which is 50% here, and one for each of 51% .. 99%
    assert cuts.norm_kept[0] == 1

    ones = analyze(write(tmp_path / "ones", {UP.format(0): stored("BF16", np.ones((8, 8)))}))
    assert (ones.cuts.zeros, ones.cuts.thresholds) == ((0,), (0.0,))
    assert sum(ones.magnitudes.layers["model.layers.0"]) == 64

    nothing = analyze(write(tmp_path / "zero", {UP.format(0): stored("BF16", np.zeros((8, 8)))}))
    assert nothing.cuts.zeros == (64,)
    assert nothing.magnitudes == Magnitudes()

    norm = analyze(write(tmp_path / "norm", {NORM: stored("F32", [1.0, math.nan, -0.5])}))
    assert norm.cuts == Cuts()
    assert sum(norm.magnitudes.roles["norm"]) == 2
    assert norm.magnitudes.components == norm.magnitudes.layers == {}


def test_few_outliers_do_not_widen_the_histogram(tmp_path: Path) -> None:
    spread = np.random.default_rng(2).normal(0, 0.05, 100_000)
    spread[:10] = 1e-30
    spread[10:12] = 1e30
    found = analyze(write(tmp_path, {UP.format(0): stored("F32", spread.reshape(100, -1))}))
    edges, counts = found.magnitudes.edges, found.magnitudes.layers["model.layers.0"]
    assert 1e-6 < edges[0] < 0.05 < edges[-1]
    assert counts[0] >= 10
    assert counts[-1] == 2
    assert sum(counts) == spread.size


@pytest.mark.parametrize("name", [d.name for d in DTYPES.values() if d.is_prunable])
def test_the_ends_of_the_range(tmp_path: Path, name: str) -> None:
    codes = weights(DTYPES[name], 64, 9, inf=False)
    top = codes.copy()
    top[:] = (1 << (DTYPES[name].bits - 1)) - 1
    top &= ~np.array(1 << DTYPES[name].mantissa_bits, top.dtype)  # the largest finite number
    top[::2] = 1  # and the smallest
    analysis = analyze(write(tmp_path, {UP.format(0): (name, top.reshape(8, 8))}))
    values = {UP.format(0): values_of((name, top.reshape(8, 8)))}
    assert np.isfinite(values[UP.format(0)]).all()
    check_histograms(analysis.magnitudes, analysis, values)
    check_cuts(analysis.cuts, analysis, values)
