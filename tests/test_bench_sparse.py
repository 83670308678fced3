"""Sparse execution: splitting, choosing, and the micro-benchmark.

torch's 2:4 kernels need CUDA; tests marked ``gpu`` run them. What is around them is tested with
another sparse form that torch does have on the CPU, CSR, which is a backend like any other here.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import prunectl
from prunectl.benchmarking.kernels import (
    Shape,
    agreement,
    measure_shape,
    observed_batches,
    relative_error,
    shapes_of,
    sparse_side,
)
from prunectl.benchmarking.limits import Rates, bytes_read, tensor_bytes, weight_bytes
from prunectl.benchmarking.models import LoadedSide, _side
from prunectl.benchmarking.running import Bench
from prunectl.benchmarking.settings import BenchSettings
from prunectl.benchmarking.sparse import (
    Backend,
    ChoosingLinear,
    SplitWeight,
    backends,
    replace_linears,
    rows_in_2_4,
    sparse_rows,
)
from prunectl.benchmarking.timing import WallClock
from prunectl.benchmarking.workloads import Workload
from prunectl.benchmarking.zeros import (
    block_matrices,
    fill_in_memory,
    keep_largest,
    prune_in_memory,
    zeros_in_memory,
)
from prunectl.checkpoint.model_kind import model_kind_of
from prunectl.pattern import NM

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]

Price = Callable[[int], float]
"""Input rows to seconds."""

RULES: Mapping[torch.dtype, SimpleNamespace] = {
    torch.float32: SimpleNamespace(sparse_min_rows=4, sparse_min_cols=8)
}
CSR = Backend("CSR", torch.Tensor.to_sparse_csr, RULES)
WRONG = Backend("wrong", lambda weight: (1.2 * weight).to_sparse_csr(), RULES)


def two_four(rows: int, columns: int, *, dense_rows: tuple[int, ...] = ()) -> torch.Tensor:
    """A weight in 2:4 but for some rows."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    pruned = weight.clone()
    keep_largest(pruned, NM(2, 4))
    for row in dense_rows:
        pruned[row] = weight[row]
    return pruned


# --- zeros --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [(torch.float32, NM(2, 4)), (torch.bfloat16, NM(1, 4)), (torch.float16, NM(4, 8))],
)
def test_pruning_in_memory_is_that_of_the_verb(
    tmp_path: Path, dtype: torch.dtype, pattern: NM
) -> None:
    model = tiny_models.build("llama", tmp_path / "dense", dtype)
    settings = prunectl.PruneSettings(pattern=pattern)
    prunectl.prune(tmp_path / "dense", tmp_path / "out", settings, use_cache=False)
    expected = prunectl.load_state_dict(tmp_path / "out")
    found = dict(prune_in_memory(model, pattern).named_parameters())
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_a_copy_shares_all_but_the_weights_of_blocks() -> None:
    model = tiny_models.make("llama")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    copied = dict(prune_in_memory(model, NM(2, 4)).named_parameters())
    own = {f"{matrix.name}.weight" for matrix in block_matrices(model)}
    assert len(own) == 14
    for name, tensor in model.named_parameters():
        assert (copied[name] is tensor) == (name not in own)
        assert torch.equal(tensor, before[name])


def test_zeros_are_counted_and_filled() -> None:
    model = tiny_models.make("gpt2")
    assert zeros_in_memory(model).zeros == 0
    pruned = prune_in_memory(model, NM(2, 4))
    found = zeros_in_memory(pruned)
    assert found.sparsity == 0.5
    assert found.matrices == found.follow_2_4 == 8
    assert zeros_in_memory(fill_in_memory(pruned)).zeros == 0


# --- splitting and choosing ---------------------------------------------------------------------


def test_rows_in_2_4_are_found() -> None:
    assert rows_in_2_4(two_four(8, 16, dense_rows=(2, 5))).tolist() == [0, 1, 3, 4, 6, 7]
    assert not len(rows_in_2_4(torch.zeros(4, 6)))
    assert not len(rows_in_2_4(torch.zeros(4)))


def test_sparse_rows_are_a_multiple_that_the_kernel_takes() -> None:
    assert sparse_rows(two_four(8, 16, dense_rows=(2, 5)), CSR).tolist() == [0, 1, 3, 4]
    assert not len(sparse_rows(two_four(8, 12), CSR))  # 12 columns are no multiple of 8
    assert not len(sparse_rows(two_four(8, 16).double(), CSR))
    assert not len(sparse_rows(two_four(8, 16, dense_rows=tuple(range(5))), CSR))
    many = two_four(64, 16, dense_rows=tuple(range(52)))
    assert not len(sparse_rows(many, CSR)), "12 of 64 rows are too few"


@pytest.mark.parametrize("dense_rows", [(), (1,), (0, 7, 9, 15)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_split_weight_gives_the_product_in_order(
    dense_rows: tuple[int, ...], with_bias: bool
) -> None:
    weight = two_four(16, 32, dense_rows=dense_rows)
    split = SplitWeight(weight, sparse_rows(weight, CSR), CSR.convert)
    assert (split.dense is None) == (not dense_rows)
    inputs = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    bias = torch.arange(16.0) if with_bias else None
    torch.testing.assert_close(split(inputs, bias), functional.linear(inputs, weight, bias))


def test_a_layer_takes_the_form_that_won_for_the_nearest_number_of_rows() -> None:
    linear = nn.Linear(32, 16).requires_grad_(False)
    linear.weight.copy_(two_four(16, 32))
    rows = sparse_rows(linear.weight, CSR)
    # The sparse form is another weight here, so that the output tells which one was taken.
    other = SplitWeight(2 * linear.weight, rows, CSR.convert)
    layer = ChoosingLinear(linear, other, {1: False, 64: True, 1024: False})
    inputs = torch.randn(2048, 32)
    for count, is_sparse in {1: False, 7: False, 9: True, 64: True, 250: True, 260: False}.items():
        expected = functional.linear(
            inputs[:count], (2 if is_sparse else 1) * linear.weight, linear.bias
        )
        torch.testing.assert_close(layer(inputs[:count]), expected)
        assert layer.uses_sparse(count) == is_sparse
    assert layer.unused(1) == list(other.parameters())
    assert layer.unused(64) == [linear.weight]


def test_only_the_forms_that_are_used_are_kept() -> None:
    linear = nn.Linear(32, 16, bias=False).requires_grad_(False)
    split = SplitWeight(two_four(16, 32), torch.arange(16), CSR.convert)
    for choices, count in (({}, 1), ({8: True}, 1), ({8: True, 64: False}, 2)):
        layer = ChoosingLinear(linear, split, choices)
        assert len(list(layer.parameters())) == count
        assert isinstance(layer.weight, torch.Tensor)


def test_bytes_of_torchs_own_form_are_those_of_its_parts() -> None:
    weight = two_four(64, 128).half()
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
        form = SparseSemiStructuredTensorCUTLASS(
            weight.shape, packed, meta, None, None, None, requires_grad=False
        )
    # Half of the values, and two bits for each of them.
    assert tensor_bytes(form) == weight.nbytes // 2 + weight.numel() // 2 // 4
    assert weight_bytes(nn.ParameterDict({"w": nn.Parameter(form, requires_grad=False)})) == (
        tensor_bytes(form)
    )


def test_what_a_step_reads() -> None:
    model = tiny_models.make("llama")
    total = 4 * sum(one.numel() for one in model.parameters())
    assert bytes_read(model, 1) == total, "the embedding is the head, which is read"
    untied = tiny_models.make("llama_untied")
    total = 4 * sum(one.numel() for one in untied.parameters())
    assert bytes_read(untied, 1) == total - 4 * 61 * 32
    name = "model.layers.0.mlp.up_proj"
    linear = untied.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    split = SplitWeight(linear.weight, torch.arange(4), lambda weight: weight)
    replace_linears(untied, {name: ChoosingLinear(linear, split, {1: False, 64: True})})
    assert bytes_read(untied, 1) == bytes_read(untied, 64) == total - 4 * 61 * 32
    assert weight_bytes(untied) == total + linear.weight.nbytes


# --- the micro-benchmark ------------------------------------------------------------------------


def shape_of(weight: torch.Tensor) -> Shape:
    out, width = weight.shape
    return Shape((out, width), len(rows_in_2_4(weight)), ("a", "b"))


class Priced(TorchFunctionMode):
    """Products run as ever, and each moves a clock by what its kind of weight costs."""

    def __init__(self, dense: Price, sparse: Price) -> None:
        super().__init__()
        self.now = 0.0
        self.prices = {torch.strided: dense, torch.sparse_csr: sparse}
        self.clock = WallClock(lambda: self.now)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            self.now += self.prices[args[1].layout](args[0].shape[0])
        return func(*args, **(kwargs or {}))


def test_a_sparse_form_is_chosen_only_where_it_wins() -> None:
    weight = two_four(16, 32)
    with Priced(dense=lambda rows: 1.0 + 0.1 * rows, sparse=lambda rows: 2.0) as priced:
        found = measure_shape(
            shape_of(weight), weight, [1, 10, 20, 40], [CSR], priced.clock, always=False, seed=0
        )
    assert found.choices == {1: False, 10: False, 20: True, 40: True}
    ratios = [row.against.ratio for row in found.rows if row.against]
    assert ratios == pytest.approx([0.55, 1.0, 1.5, 2.5])
    for row in found.rows:
        assert (row.backend, row.matrices, row.split) == ("CSR", 2, 1.0)
        assert row.relative_error < 1e-5
        assert row.sparse_seconds == pytest.approx(2.0)


@pytest.mark.parametrize(("price", "winner"), [(0.5, "CSR"), (2.0, "same")])
def test_the_faster_of_two_kernels_is_taken(price: float, winner: str) -> None:
    weight = two_four(16, 32)
    same = Backend("same", lambda weight: weight.clone(), RULES)
    with Priced(dense=lambda rows: 1.0, sparse=lambda rows: price) as priced:
        found = measure_shape(
            shape_of(weight), weight, [4], [same, CSR], priced.clock, always=False, seed=0
        )
    assert found.backend is not None
    assert found.backend.name == winner


def test_a_kernel_with_wrong_outputs_or_errors_is_never_chosen() -> None:
    def broken(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such instruction\nand more")

    weight = two_four(64, 64)
    found = measure_shape(
        shape_of(weight), weight, [4], [WRONG, Backend("broken", broken, RULES)],
        WallClock(), always=True, seed=0,
    )  # fmt: skip
    assert found.backend is None
    (row,) = found.rows
    assert not row.chosen
    assert "wrong: outputs differ by 0.2" in row.error
    assert "broken: no such instruction" in row.error
    assert "more" not in row.error


def test_shapes_are_grouped_and_batches_are_seen() -> None:
    model = prune_in_memory(tiny_models.make("llama"), NM(2, 4))
    shapes = shapes_of(block_matrices(model), [CSR])
    assert {(one.shape, len(one.names)) for one in shapes} == {
        ((32, 32), 4),  # queries and outputs
        ((16, 32), 4),  # keys and values
        ((48, 32), 4),
        ((32, 48), 2),
    }
    names = [one.names[0] for one in shapes]
    calls = [lambda n=n: model(torch.zeros(n, 5, dtype=torch.int64)) for n in (1, 3)]
    assert observed_batches(model, names, calls) == (5, 15)
    many = [lambda n=n: model(torch.zeros(n, 1, dtype=torch.int64)) for n in range(1, 21)]
    seen = observed_batches(model, names, many)
    assert (len(seen), seen[0], seen[-1]) == (8, 1, 20)


# --- a whole side -------------------------------------------------------------------------------


def bench_of(model: nn.Module, kernels: str) -> tuple[Bench, LoadedSide]:
    loaded = LoadedSide(_side(model, "pruned", "pruned"), model)
    settings = replace(BenchSettings(), kernels=kernels)
    ticks = itertools.count()  # a second each, so that nothing is repeated to be long enough
    clock = WallClock(lambda: float(next(ticks)))
    bench = Bench(
        (loaded,), model_kind_of(model), torch.device("cpu"), clock, Rates(1, 1, 1, 1),
        settings, None,
    )  # fmt: skip
    return bench, loaded


@torch.inference_mode()
def test_a_sparse_side_says_what_the_dense_one_says() -> None:
    model = prune_in_memory(tiny_models.make("llama").requires_grad_(False), NM(2, 4))
    bench, loaded = bench_of(model, "sparse")
    workload = Workload(2, 6, 3)
    made, rows = sparse_side(bench, loaded, [workload], [CSR])
    assert made is not None
    assert made.side.converted == 14
    assert made.side.label == "pruned, sparse kernels"
    assert {row.batch for row in rows} == {2, 12}
    assert zeros_in_memory(loaded.model).matrices == 14, "the dense side is as it was"
    found = agreement(bench, made, loaded, [workload])
    assert found.ok
    assert found.relative_error < 1e-5


@torch.inference_mode()
def test_a_kernel_that_is_wrong_at_one_number_of_rows_is_no_agreement() -> None:
    model = prune_in_memory(tiny_models.make("llama").requires_grad_(False), NM(2, 4))
    bench, loaded = bench_of(model, "sparse")

    def side(choices: dict[int, bool]) -> LoadedSide:
        copied = prune_in_memory(model, NM(2, 4))
        name = "model.layers.0.mlp.up_proj"
        linear = copied.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        split = SplitWeight(linear.weight, torch.arange(48), lambda weight: 3 * weight)
        replace_linears(copied, {name: ChoosingLinear(linear, split, choices)})
        return LoadedSide(loaded.side, copied)

    workloads = [Workload(1, 4, 3), Workload(2, 8, 3)]
    for rows in (1, 2, 4, 16):
        only = {known: known == rows for known in (1, 2, 4, 16)}
        assert not agreement(bench, side(only), loaded, workloads).ok, rows
    assert agreement(bench, side({1: False}), loaded, workloads).ok


def test_kernels_are_offered_the_dtypes_that_they_are_2_4_in() -> None:
    for backend in backends():
        assert set(backend.constraints) == {torch.float16, torch.bfloat16}
        assert not len(sparse_rows(two_four(64, 128), backend)), "CUTLASS' float32 is 1:2"
        assert len(sparse_rows(two_four(64, 128).half(), backend)) == 64


@torch.inference_mode()
def test_other_outputs_are_no_agreement() -> None:
    model = prune_in_memory(tiny_models.make("llama").requires_grad_(False), NM(2, 4))
    bench, loaded = bench_of(model, "sparse")
    other = LoadedSide(loaded.side, tiny_models.make("llama_untied").requires_grad_(False))
    found = agreement(bench, other, loaded, [Workload(1, 4, 1)])
    assert not found.ok
    assert not replace(found, relative_error=float("nan")).ok


# --- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dense_rows", [(), tuple(range(0, 64, 2))])
def test_kernels_give_the_dense_product(dtype: torch.dtype, dense_rows: tuple[int, ...]) -> None:
    weight = two_four(256, 512, dense_rows=dense_rows).to("cuda", dtype)
    ran = []
    for backend in backends():
        rows = sparse_rows(weight, backend)
        try:
            split = SplitWeight(weight, rows, backend.convert)
            for batch in (1, 8, 130):
                inputs = torch.randn(batch, 512, device="cuda").to(dtype)
                _, error = relative_error(functional.linear(inputs, weight), split(inputs, None))
                assert error < 0.01
        except (RuntimeError, NotImplementedError):
            continue
        ran.append(backend.name)
    assert ran, "no kernel runs on this device"


@pytest.mark.gpu
def test_dense_pruned_and_sparse_run_side_by_side_on_cuda() -> None:
    settings = BenchSettings(
        batch_sizes=(1, 4), prompt_tokens=(64,), new_tokens=8, seconds=20, kernels="sparse",
        dtype="bfloat16", device="cuda",
    )  # fmt: skip
    found = prunectl.bench("demo", settings=settings)
    assert [side.label for side in found.sides] == [
        "demo",
        "demo, 2:4",
        "demo, 2:4, sparse kernels",
    ]
    assert found.ok
    assert found.sides[2].converted == 42
    assert found.sides[2].weight_bytes < 0.75 * found.sides[1].weight_bytes
    assert all(run.peak_memory for run in found.runs)


@pytest.mark.gpu
def test_the_automatic_choice_uses_no_kernel_that_loses_on_cuda() -> None:
    settings = BenchSettings(
        batch_sizes=(1,), prompt_tokens=(64,), new_tokens=4, seconds=20, device="cuda"
    )
    found = prunectl.bench("demo", settings=settings)
    assert found.kernels
    for row in found.kernels:
        assert not row.chosen or (row.against is not None and row.against.low > 1)
