"""Values at the edges of every dtype that is pruned, from file to file.

The output's bits and the manifest's counts are the reference's. Values are made as codes, so that
no edge is rounded away.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from full import few
from reference import Tensors

from prunectl import NM, PruneSettings, Scope, prune, verify

# Bits of a code, and of its mantissa.
DTYPES = {
    torch.bfloat16: (16, 7),
    torch.float16: (16, 10),
    torch.float32: (32, 23),
    torch.float64: (64, 52),
}
KINDS = ("plain", "any", "ties", "subnormal", "inf", "few", "zero", "one", "wide")

CHOICES = [
    PruneSettings(sparsity=0.5),
    PruneSettings(sparsity=0.97),  # beyond what is finite in "inf"
    PruneSettings(sparsity=0.37, scope=Scope.TENSOR),
    PruneSettings(sparsity=0.9, scope=Scope.TENSOR),
    PruneSettings(sparsity=0.37, scope=Scope.ROW),
    PruneSettings(pattern=NM(2, 4)),
    PruneSettings(pattern=NM(1, 4)),
    PruneSettings(pattern=NM(4, 8)),
]


def edge(kind: str, dtype: torch.dtype, *, wide: int = 70_008) -> torch.Tensor:
    """Weights of a kind, half of them negative; 16 x 64, or two rows of ``wide``.

    ``any``: all exponents. ``ties``: three neighbours. ``subnormal``: and zeros, and the smallest
    normal. ``inf``: and the largest finite. ``few``: zeros, the smallest and the largest.
    """
    rng = np.random.default_rng(KINDS.index(kind))
    bits, mantissa = DTYPES[dtype]
    sign = 1 << (bits - 1)
    inf = sign - (1 << mantissa)
    shape = {"one": (1, 1), "wide": (2, wide)}.get(kind, (16, 64))
    one = int(torch.tensor(0.05, dtype=dtype).view(getattr(torch, f"int{bits}")))
    if kind in ("plain", "one", "wide"):
        return torch.from_numpy(rng.normal(0, 0.05, shape)).to(dtype)
    codes = {
        "any": lambda: rng.integers(0, inf, shape, endpoint=True),
        "ties": lambda: rng.integers(one, one + 3, shape),
        "subnormal": lambda: rng.integers(0, 1 << mantissa, shape, endpoint=True),
        "inf": lambda: rng.choice([inf, inf - 1, inf - 2, one], shape),
        "few": lambda: rng.choice([0, 0, 0, 1, inf - 1], shape),
        "zero": lambda: np.zeros(shape, np.int64),
    }[kind]()
    signed = codes.astype(np.uint64) + np.uint64(sign) * rng.integers(0, 2, shape, np.uint64)
    return torch.from_numpy(signed.astype(f"u{bits // 8}").view(f"i{bits // 8}")).view(dtype)


def block(weights: list[torch.Tensor]) -> Tensors:
    """Prunable matrices, and one tensor that is not."""
    named = {f"model.layers.{i}.mlp.up_proj.weight": one for i, one in enumerate(weights)}
    return named | {"model.norm.weight": torch.tensor([0.0, -0.0, 1e-40])}


def expected(source: Tensors, choice: PruneSettings) -> Tensors:
    names = [name for name in source if "_proj" in name]
    if isinstance(choice.pattern, NM):
        n, m = choice.pattern.n, choice.pattern.m
        fit = [name for name in names if source[name].shape[1] % m == 0]
        return source | {name: reference.nm(source[name], n, m) for name in fit}
    assert choice.sparsity is not None
    if choice.scope is Scope.GLOBAL:
        return reference.together(source, names, choice.sparsity)
    pruned = reference.alone if choice.scope is Scope.TENSOR else reference.rows
    return source | {name: pruned(source[name], choice.sparsity) for name in names}


def check(folder: Path, weights: list[torch.Tensor], choice: PruneSettings) -> None:
    """Prune to a file, and compare its bits and the manifest's counts with the reference."""
    folder.mkdir()
    given = reference.save(folder / "source", block(weights))
    prune(given, folder / "out", choice)
    source = reference.stored(given)
    want = expected(source, choice)
    reference.assert_same(reference.stored(folder / "out"), want)
    manifest = json.loads((folder / "out" / "prunectl.json").read_bytes())
    counts = {one["name"]: (one["zeros_before"], one["zeros"]) for one in manifest["tensors"]}
    assert counts == {
        name: (reference.zeros([source[name]]), reference.zeros([want[name]])) for name in want
    }
    total = manifest["totals"]["prunable"]
    assert total["zeros"] == sum(zeros for name, (_, zeros) in counts.items() if "_proj" in name)
    assert verify(folder / "out").ok


@pytest.mark.parametrize("dtype", few(DTYPES), ids=str)
def test_edges_of_a_dtype_together(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = [edge(kind, dtype) for kind in KINDS]
    for number, choice in enumerate(CHOICES):
        check(tmp_path / str(number), weights, choice)


@pytest.mark.parametrize("sparsity", few([0.2, 0.5, 0.8]))
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.float16, torch.float32, torch.bfloat16),
    ],
    ids=len,
)
def test_dtypes_in_one_scope_are_compared_by_value(
    dtypes: tuple[torch.dtype, ...], sparsity: float, tmp_path: Path
) -> None:
    # Equal values in all of them (bf16 holds few digits, fp16 few exponents), and their own edges.
    shared = edge("plain", torch.bfloat16).clamp(min=-0.25, max=0.25)
    shared[shared.abs() < 2**-6] = 2**-6
    weights = [shared.to(dtype) for dtype in dtypes]
    assert all(torch.equal(one.double(), shared.double()) for one in weights)
    weights += [edge(kind, dtype) for kind in ("subnormal", "inf", "plain") for dtype in dtypes]
    check(tmp_path / "one", weights, PruneSettings(sparsity=sparsity))


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_edge_alone(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    weights = [edge(kind, dtype, wide=600_008)]  # a row is longer than a block of 1 MiB
    nm = [choice for choice in CHOICES if isinstance(choice.pattern, NM) and kind != "one"]
    unstructured = [
        PruneSettings(sparsity=sparsity, scope=scope)
        for scope in Scope
        for sparsity in (0.001, 0.25, 0.5, 0.751, 0.999)
    ]
    for number, choice in enumerate([*unstructured, *nm]):
        check(tmp_path / str(number), weights, choice)
