"""Statistics of every tensor, N:M fits and sums over tensors against plain numpy; memory."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny_models
import torch
from analysis_reference import facts, finite_energy, stored, values_of, write
from full import few
from hypothesis import given, settings
from hypothesis import strategies as st
from magnitude_reference import FLOATS, PRUNABLE, seeds, weights
from safetensors.torch import load_file

import prunectl
from prunectl.analysis.distribution import kind_of
from prunectl.analysis.result import Analysis, Cuts, Magnitudes, TensorStats, layer_label
from prunectl.analysis.verb import analyze
from prunectl.measure.thresholds import NEAR_ZERO, QUANTILES
from prunectl.pattern import NM, parse_nm
from prunectl.tensorspec import DTYPES, DType

LINEAR = "model.layers.{}.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
DTYPES_BY_LABEL = {dtype.label: dtype for dtype in DTYPES.values()}
NORM = "model.layers.0.input_layernorm.weight"


def check_statistics(got: TensorStats, values: np.ndarray) -> None:
    """Compare one tensor's numbers with sorting and comparing its values."""
    numbers, finite = values[~np.isnan(values)], values[np.isfinite(values)]
    magnitudes = np.sort(np.abs(numbers.reshape(-1)))
    assert got.measured
    assert got.numel == values.size
    assert got.zeros == (values == 0).sum()
    assert (got.nans, got.infs) == (np.isnan(values).sum(), np.isinf(values).sum())
    for tolerance in NEAR_ZERO:
        assert got.near_zero[f"{tolerance:g}"] == (magnitudes <= tolerance).sum()
    assert got.near_zero["0.01*std"] == (magnitudes <= 0.01 * got.std).sum()
    if numbers.size:
        assert (got.minimum, got.maximum) == (numbers.min(), numbers.max())
        ranks = [max(1, math.ceil(Fraction(repr(q)) * numbers.size)) for q in QUANTILES]
        want = {f"{q:g}": magnitudes[k - 1] for q, k in zip(QUANTILES, ranks, strict=True)}
        assert got.quantiles == want
    else:
        assert math.isnan(got.minimum)
        assert got.quantiles == {}
    # Sums of 32- and 64-bit types are added up one by one; the narrower ones follow from counts.
    precision = 1e-12 if DTYPES_BY_LABEL[got.dtype].bits <= 16 else 1e-10
    assert got.norm_squared == pytest.approx(finite_energy(values), rel=precision)
    if finite.size:
        scale = max(np.abs(finite).max(), 1e-300)
        small = finite / scale
        assert got.mean / scale == pytest.approx(math.fsum(small) / finite.size, abs=1e-10)
        assert got.std / scale == pytest.approx(np.std(small), rel=1e-9, abs=1e-5)
    exponents = np.frexp(finite[finite != 0])[1] - 1
    found, counts = np.unique(exponents, return_counts=True)
    assert got.octaves == dict(zip(found.tolist(), counts.tolist(), strict=True))


# --- one tensor ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    few(FLOATS, DTYPES["BF16"], DTYPES["F32"], DTYPES["F64"]),
    ids=str,
)
@given(
    size=st.integers(1, 3000) | st.just(600_000),
    seed=seeds,
    inf=st.booleans(),
    nan=st.booleans(),
)
@settings(max_examples=12)
def test_statistics(tmp_path_factory, dtype: DType, size, seed, inf, nan) -> None:
    tensor = (dtype.name, weights(dtype, size, seed, inf=inf, nan=nan))
    folder = write(tmp_path_factory.mktemp("model"), {EMBEDDING: tensor})
    analysis = analyze(folder, use_cache=False)
    check_statistics(analysis.tensors[0], values_of(tensor))
    facts(analysis)


@pytest.mark.parametrize("dtype", PRUNABLE, ids=str)
def test_tolerances_hit_exactly(tmp_path: Path, dtype: DType) -> None:
    rows = [stored(dtype.name, [t, -t])[1] for t in NEAR_ZERO]
    one = rows[0].dtype.type(1)
    codes = np.concatenate([code for row in rows for code in (row - one, row, row + one)])
    tensor = (dtype.name, codes)
    got = analyze(write(tmp_path, {NORM: tensor})).tensors[0]
    check_statistics(got, values_of(tensor))
    assert 0 < got.near_zero["1e-05"] < got.near_zero["0.001"] < codes.size


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_the_smallest_subnormals_are_no_zeros(tmp_path: Path, dtype: str) -> None:
    least = 2.0**-149 if dtype == "F32" else 2.0**-1074
    tensor = stored(dtype, [0.0, *(least * i for i in range(1, 100)), *[1.0] * 900])
    check_statistics(analyze(write(tmp_path, {NORM: tensor})).tensors[0], values_of(tensor))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("row", [[np.nan] * 3, [0.0], [-0.0] * 4, [1.0] * 50], ids=str)
def test_degenerate_tensors(tmp_path: Path, dtype: DType, row) -> None:
    tensor = stored(dtype.name, row)
    analysis = analyze(write(tmp_path, {NORM: tensor, EMBEDDING: stored("BF16", [[2.0]])}))
    check_statistics(analysis.tensors[0], values_of(tensor))
    assert math.copysign(1, analysis.tensors[0].minimum) == 1 or np.isnan(row).any()
    largest = {label: group.largest for label, group in analysis.roles.items()}
    assert largest == {"norm": np.nan_to_num(max(np.abs(row))), "embedding": 2.0}
    facts(analysis)


def test_integers_booleans_and_empty_tensors_are_listed(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.attn.bias": ("BOOL", np.ones((3, 3), np.uint8)),
        "position_ids": ("I64", np.arange(7, dtype=np.int64)),
        "empty.weight": ("BF16", np.zeros((0, 4), np.uint16)),
        LINEAR.format(0): stored("BF16", np.ones((4, 4))),
    }
    analysis = analyze(write(tmp_path, tensors))
    assert [t.name for t in analysis.tensors] == list(tensors)
    assert [t.measured for t in analysis.tensors] == [False, False, True, True]
    assert [t.numel for t in analysis.tensors] == [9, 7, 0, 16]
    assert [t.prunable for t in analysis.tensors] == [False, False, False, True]
    assert all(t.reason for t in analysis.tensors[:3])
    assert analysis.tensors[0].near_zero == analysis.tensors[0].octaves == {}
    assert analysis.source.weights == 16
    assert analysis.source.tensor_bytes == 9 + 56 + 32
    assert analysis.source.dtypes == {"bf16": 16}


# --- N:M ----------------------------------------------------------------------------------------


def fit(values: np.ndarray, axis: int, pattern: NM) -> tuple[float, int]:
    """(squared norm kept, zeros after), with the input axis moved to the end."""
    groups = np.moveaxis(values, axis, -1).reshape(-1, pattern.m)
    losers = np.argsort(-np.abs(groups), axis=1, kind="stable")[:, pattern.n :]
    after = groups.copy()
    np.put_along_axis(after, losers, 0.0, axis=1)
    total = finite_energy(values)
    return (finite_energy(after) / total if total else 1.0), int((after == 0).sum())


def check_pattern(analysis: Analysis, tensors: dict[str, np.ndarray], axes, pattern: NM) -> None:
    """Compare one pattern's fits and sums; ``axes`` are those of the prunable tensors."""
    text = str(pattern)
    (summary,) = (s for s in analysis.patterns if s.pattern == text)
    kept = total = zeros = eligible = 0.0
    by_layer: dict[str, list[float]] = {}
    for tensor in analysis.tensors:
        assert (text in tensor.patterns) == (tensor.name in axes)
        if tensor.name not in axes:
            continue
        values, got = tensors[tensor.name], tensor.patterns[text]
        length = values.shape[axes[tensor.name]]
        energy = finite_energy(values)
        if length % pattern.m:
            why = "not divisible by" if length > pattern.m else "smaller than"
            assert (got.norm_kept, got.zeros) == (None, (values == 0).sum())
            assert got.reason == f"input dimension {length} is {why} {pattern.m}"
            share = 1.0
        else:
            share, after = fit(values, axes[tensor.name], pattern)
            assert got.reason == ""
            assert got.norm_kept == pytest.approx(share, abs=1e-12)
            assert got.zeros == after
            eligible += 1
        kept, total, zeros = kept + share * energy, total + energy, zeros + got.zeros
        layer = by_layer.setdefault(f"{tensor.stack}.{tensor.layer}", [0.0, 0.0])
        layer[0], layer[1] = layer[0] + share * energy, layer[1] + energy
    assert (summary.eligible, summary.ineligible) == (eligible, len(axes) - eligible)
    assert sum(summary.reasons.values()) == summary.ineligible
    assert summary.norm_kept == pytest.approx(kept / total if total else 1.0, abs=1e-12)
    assert summary.zeros == zeros
    assert summary.sparsity == zeros / analysis.source.prunable_weights
    want = {label: a / b if b else 1.0 for label, (a, b) in by_layer.items()}
    assert summary.by_layer == pytest.approx(want, abs=1e-12)


PATTERNS = [parse_nm(text) for text in ("2:4", "1:2", "4:8", "1:4", "3:7", "5:16", "6:8", "20:40")]
SOME = PATTERNS[:3]


@pytest.mark.parametrize("dtype", few(FLOATS, DTYPES["BF16"]), ids=str)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from([1, 5, 30]), st.sampled_from([2, 6, 7, 40, 56, 560])),
        min_size=1,
        max_size=4,
    ),
    seed=seeds,
    inf=st.booleans(),
)
@settings(max_examples=4)
def test_patterns(tmp_path_factory, dtype: DType, shapes, seed, inf) -> None:
    tensors = {
        LINEAR.format(i): (
            dtype.name,
            weights(dtype, math.prod(shape), seed + i, inf=inf).reshape(shape),
        )
        for i, shape in enumerate(shapes)
    }
    folder = write(tmp_path_factory.mktemp("model"), tensors)
    analysis = analyze(folder, patterns=PATTERNS, use_cache=False)
    values = {name: values_of(tensor) for name, tensor in tensors.items()}
    for pattern in PATTERNS:
        check_pattern(analysis, values, dict.fromkeys(tensors, 1), pattern)


@pytest.mark.parametrize(
    ("name", "matrix_axis", "stacked_axis"),
    few(
        [("gpt2", 0, None), ("gpt_oss", 1, 1), ("llama4", 1, 1), ("granitemoe", 1, 2)],
        ("gpt2", 0, None),
        ("granitemoe", 1, 2),
    ),
)
def test_input_axes(tmp_path: Path, name, matrix_axis, stacked_axis) -> None:
    tiny_models.build(name, tmp_path, torch.bfloat16)
    tensors = {n: t.double().numpy() for n, t in load_file(tmp_path / "model.safetensors").items()}
    analysis = analyze(tmp_path, patterns=SOME)
    axes = {
        t.name: stacked_axis if len(t.shape) == 3 else matrix_axis
        for t in analysis.tensors
        if t.prunable
    }
    assert (stacked_axis in axes.values()) or stacked_axis is None
    assert len(axes) >= 8
    for pattern in SOME:
        check_pattern(analysis, tensors, axes, pattern)


def test_groups_across_blocks_of_a_large_tensor(tmp_path: Path) -> None:
    dtype = DTYPES["BF16"]
    tensor = (dtype.name, weights(dtype, 1201 * 1400, 6).reshape(1201, 1400))
    analysis = analyze(write(tmp_path, {LINEAR.format(0): tensor}), patterns=SOME)
    for pattern in SOME:
        check_pattern(
            analysis, {LINEAR.format(0): values_of(tensor)}, {LINEAR.format(0): 1}, pattern
        )


# --- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", few(["llama", "albert", "t5", "whisper", "gpt_oss"], "llama", "gpt_oss")
)
def test_sums_over_tensors(tmp_path: Path, name: str) -> None:
    tiny_models.build(name, tmp_path, torch.float16)
    weights_of = {
        n: t.double().numpy() for n, t in load_file(tmp_path / "model.safetensors").items()
    }
    analysis = analyze(tmp_path)
    for tensor in analysis.tensors:
        check_statistics(tensor, weights_of[tensor.name])
    sums = [
        (analysis.roles, lambda t: t.role),
        (analysis.components, lambda t: t.component if t.prunable else None),
        (analysis.layers, lambda t: None if t.layer is None else f"{t.stack}.{t.layer}"),
    ]
    for groups, key in sums:
        labels = [key(t) for t in analysis.tensors]
        assert list(groups) == [label for label in dict.fromkeys(labels) if label is not None]
        for label, group in groups.items():
            part = [t for t, own in zip(analysis.tensors, labels, strict=True) if own == label]
            values = np.concatenate([weights_of[t.name].reshape(-1) for t in part])
            assert (group.tensors, group.weights) == (len(part), values.size)
            assert group.nbytes == 2 * values.size
            assert group.zeros == (values == 0).sum()
            assert group.largest == np.abs(values).max()
            assert group.prunable_weights == sum(t.numel for t in part if t.prunable)
            assert group.near_zero["0.001"] == (np.abs(values) <= 1e-3).sum()
            assert group.near_zero["0.01*std"] == sum(t.near_zero["0.01*std"] for t in part)
            assert group.std == pytest.approx(values.std(), rel=1e-9)
            assert group.norm_squared == pytest.approx(finite_energy(values), rel=1e-12)
    prunable = np.concatenate(
        [weights_of[t.name].reshape(-1) for t in analysis.tensors if t.prunable]
    )
    found, counts = np.unique(np.frexp(prunable[prunable != 0])[1] - 1, return_counts=True)
    assert analysis.octaves == dict(zip(found.tolist(), counts.tolist(), strict=True))
    assert list(analysis.octaves) == sorted(analysis.octaves)
    assert analysis.prunable_zeros == (prunable == 0).sum()
    assert analysis.source.prunable_weights == prunable.size
    assert analysis.source.weights == sum(v.size for v in weights_of.values())


def test_predicted_bytes(tmp_path: Path) -> None:
    ones = {LINEAR.format(0): stored("BF16", np.ones((16, 32))), NORM: stored("F32", [1.0] * 32)}
    got = analyze(write(tmp_path, ones), patterns=[NM(2, 4), NM(4, 8)]).predicted_bytes
    dense = 16 * 32 * 2 + 32 * 4
    zeros = 205  # floor(0.4 * 512 + 0.5)

    def packed(mask: float, kept: int) -> int:
        """Sign and mantissa of each weight that is kept; all exponents are the same."""
        return round((mask + kept * 8) / 8 * 1.005) + round(32 * 24 / 8 * 1.005)

    def entropy(zero: int) -> float:
        return -sum(n * math.log2(n / 512) for n in (zero, 512 - zero))

    assert got == {
        "dense": dense,
        "packed": packed(0, 512),
        "packed@0.3": packed(entropy(154), 512 - 154),
        "packed@0.4": packed(entropy(zeros), 512 - zeros),
        "packed@0.5": packed(entropy(256), 256),
        "packed@2:4": packed(512 / 4 * math.log2(6), 256),
        "packed@4:8": packed(512 / 8 * math.log2(70), 256),
        "bitmask@0.3": dense - (154 * 16 - 512) // 8,
        "bitmask@0.4": dense - (zeros * 16 - 512) // 8,
        "bitmask@0.5": dense - (256 * 16 - 512) // 8,
        "nm@2:4": dense - 16 * 32 // 4 * (2 * 16 - 2 * 2) // 8,
        "nm@4:8": dense - 16 * 32 // 8 * (4 * 16 - 4 * 3) // 8,
    }


# --- memory -------------------------------------------------------------------------------------

_PEAK = """
import resource, sys
import accelerate, numba, torch, transformers
from prunectl.analysis.verb import analyze
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
analysis = analyze(sys.argv[1], jobs=2)
print(len(analysis.tensors), analysis.thresholds[7].count, peak() - before)
"""


def peak_mebibytes(folder: Path) -> tuple[int, int, float]:
    """(tensors, zeros at 40%, MiB that an analysis adds to what the imports take)."""
    source = Path(analyze.__code__.co_filename).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(folder)],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    tensors, zeros, peak = done.stdout.split()
    return int(tensors), int(zeros), float(peak)


def write_sparse(folder: Path, dtype: str, shape: tuple[int, int]) -> None:
    """One huge tensor of zeros that takes no room on the disk."""
    name, size = LINEAR.format(0), math.prod(shape) * DTYPES[dtype].bits // 8
    write(folder, {"x": (dtype, np.zeros(0, np.uint8))})
    header = f'{{"{name}":{{"dtype":"{dtype}","shape":{list(shape)},"data_offsets":[0,{size}]}}}}'
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_huge_tensor_needs_no_memory(tmp_path: Path, dtype: str) -> None:
    columns = 1 << 14
    rows = 600 * 2**20 // columns // (DTYPES[dtype].bits // 8)
    write_sparse(tmp_path, dtype, (rows, columns))
    tensors, zeros, peak = peak_mebibytes(tmp_path)
    assert (tensors, zeros) == (1, rows * columns)
    assert peak < 200


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Names in a file are sorted as text, where 10 comes before 2."""
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in sorted(range(12), key=str)]
    reference.save(tmp_path, {name: torch.randn(8, 4) for name in names})
    found = analyze(tmp_path)
    assert [tensor.name for tensor in found.tensors] == names
    assert list(found.layers) == [f"model.layers.{layer}" for layer in range(12)]


# --- histograms and cuts ------------------------------------------------------------------------


UP = "model.layers.{}.mlp.up_proj.weight"


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
