"""Least squares on a mask, and ADMM: against exact solutions, and never worse than before."""

import pytest
import torch
from full import few
from hypothesis import given, settings
from hypothesis import strategies as st
from methods_reference import errors, layer, optimal, second_moments
from safetensors.torch import load_file

import prunectl.methods.refine as refine_module
from prunectl import demo
from prunectl.methods.admm import admm
from prunectl.methods.goal import MatrixGoal, PerRow, PerTensor
from prunectl.methods.loss import output_error
from prunectl.methods.magnitude import magnitude
from prunectl.methods.refine import refine
from prunectl.methods.sparsegpt import sparsegpt
from prunectl.methods.wanda import wanda
from prunectl.pattern import NM


@pytest.mark.parametrize("target", [PerRow(30), PerTensor(900), NM(2, 4), PerTensor(0)], ids=str)
@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_refine_finds_the_least_squares_solution(target: MatrixGoal, damping: float) -> None:
    weight, x = layer(24, 60, 0)
    hessian = second_moments(x)
    pruned = magnitude(weight, target)
    got = refine(weight, pruned.weight, pruned.mask, hessian, damping=damping)
    best = optimal(weight, pruned.mask, hessian, damping)
    before, reached, least = (
        output_error(weight, w, hessian) for w in (pruned.weight, got, best.float())
    )
    assert reached <= least * 1.01 + 1e-12
    assert target == PerTensor(0) or reached < 0.7 * before
    moved = (got.double() - best).norm() / best.norm()
    assert moved < 0.05


def test_refine_with_enough_steps_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine_module, "SMALLEST_GAIN", 0.0)
    weight, x = layer(10, 20, 1)
    hessian = second_moments(x)
    pruned = wanda(weight, hessian.diagonal().sqrt(), PerRow(10))
    got = refine(weight, pruned.weight, pruned.mask, hessian, iterations=100)
    best = optimal(weight, pruned.mask, hessian, 0.01)
    torch.testing.assert_close(got.double(), best, rtol=0, atol=1e-5)


@settings(deadline=None)
@given(
    rows=st.integers(1, 5),
    inputs=st.integers(1, 12),
    seed=st.integers(0, 2**20),
    rank=st.sampled_from([0, 0, 1, 2]),
    dead=st.integers(0, 3),
    density=st.floats(0, 1),
    damping=st.sampled_from([0.0, 0.01, 1.0]),
    noise=st.sampled_from([0.0, 0.1, 10.0]),
)
def test_refine_never_raises_the_error_of_a_row(
    rows: int,
    inputs: int,
    seed: int,
    rank: int,
    dead: int,
    density: float,
    damping: float,
    noise: float,
) -> None:
    weight, x = layer(rows, inputs, seed, rank=rank, dead=min(dead, inputs))
    hessian = second_moments(x)
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(weight.shape, generator=g) < density
    start = torch.where(mask, weight + noise * torch.randn(weight.shape, generator=g), 0.0)
    got = refine(weight, start, mask, hessian, damping=damping)
    before, after = errors(weight, start, hessian), errors(weight, got, hessian)
    scale = (start - weight).double().abs() @ hessian.double().abs()
    rounding = 1e-14 * (scale * (start - weight).double().abs()).sum(1)
    assert (after <= before + rounding).all()
    assert not got[~mask].view(torch.int32).any()
    assert torch.equal(got[:, hessian.diagonal() == 0], start[:, hessian.diagonal() == 0])


def test_refine_ignores_what_lies_outside_the_mask() -> None:
    weight, x = layer(6, 12, 2)
    hessian = second_moments(x)
    pruned = magnitude(weight, PerRow(6))
    one = refine(weight, pruned.weight, pruned.mask, hessian)
    assert torch.equal(one, refine(weight, weight, pruned.mask, hessian))
    assert torch.equal(one, refine(weight, pruned.weight, pruned.mask, hessian))
    assert torch.equal(
        refine(weight, pruned.weight, pruned.mask, hessian, iterations=0), pruned.weight
    )


def demo_layer() -> tuple[torch.Tensor, torch.Tensor]:
    """A trained matrix, and second moments of trained vectors of its width: the embeddings."""
    tensors = load_file(demo.model_folder() / "model.safetensors")
    x = tensors["model.embed_tokens.weight"].float()
    return tensors["model.layers.2.self_attn.q_proj.weight"].float(), second_moments(x)


@pytest.mark.parametrize("source", few(["demo", 0, 1, 2]))
@pytest.mark.parametrize("pattern", ["50%", "50% per row", "2:4", "4:8"])
def test_admm_is_below_sparsegpt_refined(source: str | int, pattern: str) -> None:
    if isinstance(source, str):
        weight, hessian = demo_layer()
    else:
        weight, x = layer(64, 96, source)
        hessian = second_moments(x)
    half = weight.numel() // 2
    targets: dict[str, MatrixGoal] = {
        "50%": PerTensor(half),
        "50% per row": PerRow(weight.shape[1] // 2),
        "2:4": NM(2, 4),
        "4:8": NM(4, 8),
    }
    target = targets[pattern]
    one, other = admm(weight, hessian, target), sparsegpt(weight, hessian, target)
    refined = refine(weight, other.weight, other.mask, hessian)
    ours, theirs, least = (
        output_error(weight, w, hessian) for w in (one.weight, other.weight, refined)
    )
    assert ours < 0.8 * theirs
    assert ours < least
    assert int((~one.mask).sum()) == half
    # On its own support there is next to nothing left to win.
    assert ours <= 1.02 * output_error(
        weight, optimal(weight, one.mask, hessian, 0.01).float(), hessian
    )


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    seed=st.integers(0, 2**20),
    rank=st.sampled_from([0, 1, 2]),
    dead=st.integers(0, 3),
    iterations=st.sampled_from([0, 1, 5, 300]),
)
def test_admm_is_never_worse_than_its_start(
    rows: int, groups: int, seed: int, rank: int, dead: int, iterations: int
) -> None:
    weight, x = layer(rows, 4 * groups, seed, rank=rank, dead=dead)
    hessian = second_moments(x)
    alive = hessian.diagonal()[hessian.diagonal() > 0]  # whose mean dead inputs get
    damped = (hessian.diagonal() + 0.01 * (alive.mean() if len(alive) else 1.0)).sqrt()
    norms = torch.where(hessian.diagonal() > 0, damped, 0.0)
    for target in (PerTensor(weight.numel() // 3), PerRow(2 * groups), NM(2, 4)):
        got = admm(weight, hessian, target, iterations=iterations)
        start = wanda(weight, norms, target)
        before = float(errors(weight, start.weight, hessian).sum())
        after = float(errors(weight, got.weight, hessian).sum())
        assert after <= before * (1 + 1e-6) + 1e-12
