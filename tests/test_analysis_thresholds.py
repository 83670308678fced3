"""The threshold table against concatenating and sorting; passes over the weights; determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from analysis_reference import BytesRead, check_thresholds, facts, stored, values_of, write
from full import few
from hypothesis import given, settings
from hypothesis import strategies as st
from magnitude_reference import FLOATS, PRUNABLE, seeds, weights
from safetensors.torch import load_file

from prunectl import open_checkpoint
from prunectl.analysis.verb import analyze
from prunectl.errors import InvalidPattern, NaNWeights, UnsupportedCheckpoint
from prunectl.measure.cache import store_measured
from prunectl.measure.measured import Measured, measure
from prunectl.parallel.run import PLAIN_RUN
from prunectl.pattern import NM
from prunectl.plan.settings import PruneSettings
from prunectl.pruning.verb import prune
from prunectl.tensorspec import DTYPES, DType

LINEAR = "model.layers.{}.mlp.{}.weight"
EMBEDDING = "model.embed_tokens.weight"


def linears(kinds: list[tuple[DType, int, int]], seed: int, *, inf: bool = False):
    """Two matrices a layer, in file order, of the given (dtype, rows, columns)."""
    return {
        LINEAR.format(i // 2, ("up_proj", "down_proj")[i % 2]): (
            dtype.name,
            weights(dtype, rows * cols, seed + i, inf=inf).reshape(rows, cols),
        )
        for i, (dtype, rows, cols) in enumerate(kinds)
    }


def check(folder: Path, tensors, **options) -> None:
    analysis = analyze(write(folder, tensors), use_cache=False, **options)
    check_thresholds(
        analysis, {n: values_of(t) for n, t in tensors.items() if t[1].size and "layers" in n}
    )


# --- the table --------------------------------------------------------------------------------

side = st.sampled_from([1, 2, 3, 7, 16, 60])


@pytest.mark.parametrize("dtype", few(FLOATS, DTYPES["BF16"], DTYPES["F32"]), ids=str)
@given(sides=st.lists(st.tuples(side, side), min_size=1, max_size=5), seed=seeds, inf=st.booleans())
@settings(max_examples=15)
def test_one_dtype(tmp_path_factory, dtype, sides, seed, inf) -> None:
    tensors = linears([(dtype, *shape) for shape in sides], seed, inf=inf)
    check(tmp_path_factory.mktemp("model"), tensors, patterns=())


@given(
    kinds=st.lists(st.tuples(st.sampled_from(FLOATS), side, side), min_size=2, max_size=7),
    seed=seeds,
    inf=st.booleans(),
)
def test_mixed_dtypes(tmp_path_factory, kinds, seed, inf) -> None:
    tensors = linears(kinds, seed, inf=inf)
    check(tmp_path_factory.mktemp("model"), tensors, patterns=(NM(1, 2),))


def test_ties_across_bf16_fp32_and_fp16(tmp_path: Path) -> None:
    grid = np.random.default_rng(3).integers(-4, 5, (40, 50)) / 8  # exact in all three
    tensors = {
        LINEAR.format(i, name): stored(dtype, np.roll(grid, i))
        for i, (name, dtype) in enumerate(
            [("up_proj", "BF16"), ("up_proj", "F32"), ("down_proj", "F16"), ("up_proj", "F64")]
        )
    }
    check(tmp_path, tensors)
    row = analyze(tmp_path).thresholds[3]
    assert row.ties > row.ties_pruned > 0


def test_thresholds_between_the_values_of_narrower_types(tmp_path: Path) -> None:
    near = 1 + np.arange(24).reshape(4, 6) * 2.0**-20  # distinct in fp32, all 1 in bf16 and fp8
    tensors = {
        LINEAR.format(0, "up_proj"): stored("BF16", near),
        LINEAR.format(0, "down_proj"): stored("F32", near),
        LINEAR.format(1, "up_proj"): stored("F64", near - 2.0**-40),
        LINEAR.format(1, "down_proj"): stored("F8_E4M3", near),
    }
    check(tmp_path, tensors)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_zeros_of_both_signs_subnormals_and_infinities(tmp_path: Path, dtype: DType) -> None:
    least = 2.0 ** {"F64": -1074, "F32": -149, "F16": -24, "BF16": -133}.get(dtype.name, -9)
    inf = 1.0 if dtype.name == "F8_E4M3" else np.inf
    row = [0.0, -0.0, least, -least, 2 * least, 3 * least, 1.0, inf, -inf, -0.0]
    tensors = {
        LINEAR.format(0, "up_proj"): stored(dtype.name, [row, row[::-1]]),
        LINEAR.format(1, "up_proj"): stored(dtype.name, [[0.0] * 10, [-0.0] * 10]),
    }
    check(tmp_path, tensors)
    assert analyze(tmp_path).thresholds[0].count == 26  # more are zero already than are to be


@pytest.mark.parametrize(
    ("dtype", "shape"), [*((dtype, (1, 1)) for dtype in PRUNABLE), (DTYPES["F32"], (3, 3))], ids=str
)
def test_models_so_small_that_nothing_goes(tmp_path: Path, dtype: DType, shape) -> None:
    size = shape[0] * shape[1]
    values = np.arange(1, size + 1, dtype=float).reshape(shape)
    tensors = {LINEAR.format(0, "up_proj"): stored(dtype.name, values)}
    check(tmp_path, tensors)
    first = analyze(tmp_path).thresholds[0]
    assert (first.count, first.threshold, first.ties, first.norm_kept) == (0, 0.0, 0, 1.0)


@pytest.mark.parametrize("dtype", ["F32", "F64", "BF16"])
def test_all_equal_and_all_zero(tmp_path: Path, dtype: str) -> None:
    for value in (0.0, 0.5):
        tensors = {LINEAR.format(i, "up_proj"): stored(dtype, [[value] * 9] * 5) for i in (0, 1)}
        check(tmp_path / str(value), tensors)


@pytest.mark.parametrize("dtype", few(["BF16", "F32"]))
def test_tensors_of_many_blocks(tmp_path: Path, dtype: str) -> None:
    kinds = [(DTYPES[dtype], 700, 1300), (DTYPES[dtype], 3, 5), (DTYPES[dtype], 1201, 1000)]
    check(tmp_path, linears(kinds, 42))


def test_huge_fp64_values_overflow_squares_and_nothing_else(tmp_path: Path) -> None:
    tensors = {LINEAR.format(0, "up_proj"): stored("F64", [[1e300, 2e300, -1e308, 1.0] * 5])}
    analysis = analyze(write(tmp_path, tensors))
    assert [row.threshold for row in analysis.thresholds[::6]] == [1.0, 1e300, 2e300, 1e308]
    assert '"norm_squared": "Infinity"' in facts(analysis)


# --- how often the weights are read ------------------------------------------------------------


def nbytes(folder: Path) -> int:
    return sum(t.nbytes for f in folder.glob("*.safetensors") for t in load_file(f).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_read_once(tmp_path: Path, monkeypatch, dtype) -> None:
    tiny_models.build("llama", tmp_path, dtype)
    read = BytesRead(monkeypatch)
    first = analyze(tmp_path)
    assert read.take() == nbytes(tmp_path)
    again = analyze(tmp_path)
    assert read.take() == 0
    assert (first.from_cache, again.from_cache) == (False, True)
    assert facts(first) == facts(again)


def test_fp32_is_read_twice(tmp_path: Path, monkeypatch) -> None:
    tiny_models.build("bert", tmp_path)
    read = BytesRead(monkeypatch)
    analyze(tmp_path)
    assert nbytes(tmp_path) < read.take() <= 2 * nbytes(tmp_path)
    analyze(tmp_path)
    assert read.take() == 0


def test_only_wide_tensors_are_read_again(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        LINEAR.format(0, "up_proj"): stored("BF16", rng.standard_normal((90, 80))),
        "model.layers.0.input_layernorm.weight": stored("F32", rng.standard_normal(640)),
    }
    write(tmp_path, tensors)
    read = BytesRead(monkeypatch)
    analyze(tmp_path)
    assert read.take() == 90 * 80 * 2 + 2 * 640 * 4


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.float32, PruneSettings(sparsity=0.4)),
        (torch.bfloat16, PruneSettings(pattern=NM(2, 4))),
        (torch.float32, PruneSettings(sparsity=0.4, pattern=NM(2, 4))),
    ],
)
def test_prune_after_analyze_reads_once(tmp_path: Path, monkeypatch, dtype, wanted) -> None:
    source = tmp_path / "in"
    tiny_models.build("llama", source, dtype)
    analyze(source)
    read = BytesRead(monkeypatch)
    prune(source, tmp_path / "out", wanted)
    assert read.take() == nbytes(source)


def test_another_pattern_reads_prunable_tensors_only(tmp_path: Path, monkeypatch) -> None:
    tiny_models.build("llama", tmp_path, torch.bfloat16)
    analyze(tmp_path, patterns=())
    read = BytesRead(monkeypatch)
    analysis = analyze(tmp_path, patterns=(NM(2, 4),))
    assert read.take() == 2 * analysis.source.prunable_weights
    assert not analysis.from_cache


# --- determinism -------------------------------------------------------------------------------


def test_threads_and_runs_do_not_show(tmp_path: Path) -> None:
    tiny_models.build("llama", tmp_path, torch.bfloat16)
    kinds = [(DTYPES["F32"], 900, 1100), (DTYPES["BF16"], 33, 47), (DTYPES["F64"], 600, 700)] * 2
    write(tmp_path, linears(kinds, 7), "other.safetensors")
    one, four, again = (facts(analyze(tmp_path, jobs=jobs, use_cache=False)) for jobs in (1, 4, 4))
    assert one == four == again


# --- what cannot be measured --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_in_a_prunable_tensor(tmp_path: Path, dtype: DType) -> None:
    tensors = linears([(DTYPES["BF16"], 4, 4), (dtype, 8, 8)], 2)
    name = list(tensors)[1]
    tensors[name] = stored(dtype.name, [[1.0, np.nan, 2.0, -np.nan]])
    write(tmp_path, tensors)
    for _ in range(2):  # what the first run left behind does not hide it
        with pytest.raises(NaNWeights) as error:
            analyze(tmp_path)
        assert (error.value.tensor, error.value.count) == (name, 2)


def test_nan_elsewhere_is_reported(tmp_path: Path) -> None:
    tensors = {EMBEDDING: stored("BF16", [[1.0, np.nan]])} | linears([(DTYPES["F32"], 6, 8)], 4)
    check(tmp_path, tensors)
    analysis = analyze(tmp_path)
    assert f"Tensor '{EMBEDDING}' holds NaN." in analysis.warnings
    assert analysis.tensors[0].nans == 1


def test_inf_is_warned_of(tmp_path: Path) -> None:
    name = LINEAR.format(0, "up_proj")
    analysis = analyze(write(tmp_path, {name: stored("F16", [[1.0, np.inf]])}))
    assert f"Tensor '{name}' holds Inf." in analysis.warnings


def test_quantized_checkpoints_are_refused(tmp_path: Path, monkeypatch) -> None:
    tensors = linears([(DTYPES["BF16"], 4, 4)], 2)
    tensors["model.layers.0.mlp.up_proj.qweight"] = ("I32", np.zeros((4, 4), np.uint32))
    write(tmp_path, tensors)
    read = BytesRead(monkeypatch)
    with pytest.raises(UnsupportedCheckpoint, match="quantized"):
        analyze(tmp_path)
    assert read.take() == 0


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_fp8_is_analyzed_even_where_it_is_quantization(tmp_path: Path, dtype: str) -> None:
    tensors = linears([(DTYPES[dtype], 12, 8), (DTYPES[dtype], 8, 12)], 8)
    scale = {n.replace(".weight", ".weight_scale_inv"): stored("F32", [1.0]) for n in tensors}
    others = {
        EMBEDDING: stored(dtype, [[1.0, 2.0]]),
        "model.layers.0.input_layernorm.weight": stored(dtype, [1.0, 1.0]),
        "model.layers.1.mlp.up_proj.weight": (dtype, np.zeros((0, 4), np.uint8)),
    }
    folder = write(tmp_path, tensors | scale | others)
    assert open_checkpoint(folder).quantization
    analysis = analyze(folder)
    check_thresholds(analysis, {n: values_of(t) for n, t in tensors.items()})
    assert any("cannot be pruned" in text for text in analysis.warnings)


def test_nothing_prunable(tmp_path: Path) -> None:
    analysis = analyze(write(tmp_path, {EMBEDDING: stored("BF16", [[1.0, 2.0]])}))
    assert analysis.thresholds == ()
    assert analysis.source.prunable_weights == 0
    assert "--include" in analysis.advice
    facts(analysis)


# --- what is kept, and what is not done again --------------------------------------------------


def test_an_analysis_that_only_refines_is_not_from_the_cache(tmp_path: Path, monkeypatch) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m", linears([(DTYPES["F32"], 40, 60)] * 2, 5)))
    measured = Measured()
    names = [tensor.name for tensor in checkpoint.tensors]
    measure(checkpoint, names, {}, {}, into=measured, run=PLAIN_RUN)
    store_measured(checkpoint, measured)
    measured.close()
    read = BytesRead(monkeypatch)
    first = analyze(checkpoint, patterns=())
    assert read.take() > 0
    assert not first.from_cache
    second = analyze(checkpoint, patterns=())
    assert read.take() == 0
    assert second.from_cache


def test_patterns_may_be_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", linears([(DTYPES["BF16"], 4, 8)], 5))
    assert facts(analyze(folder, patterns=["2:4"])) == facts(analyze(folder, patterns=[NM(2, 4)]))
    with pytest.raises(InvalidPattern):
        analyze(folder, patterns=["4:2"])
