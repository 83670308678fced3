"""Pruning with statistics: moments, targets, Wanda, SparseGPT, against plain references."""

import numpy as np
import pytest
import torch
from full import few
from hypothesis import given
from hypothesis import strategies as st
from methods_reference import (
    aimed,
    errors,
    keep,
    layer,
    precedence,
    second_moments,
    sparsegpt_reference,
)

from prunectl.methods.admm import admm
from prunectl.methods.factor import SingularHessian
from prunectl.methods.goal import MatrixGoal, PerRow, PerTensor, choose
from prunectl.methods.loss import output_error, row_errors
from prunectl.methods.magnitude import magnitude
from prunectl.methods.refine import refine
from prunectl.methods.sparsegpt import sparsegpt
from prunectl.methods.statistics import Gram
from prunectl.methods.wanda import wanda
from prunectl.pattern import NM

TARGETS = [PerTensor(0), PerTensor(331), PerRow(17), NM(2, 4), NM(4, 8), NM(6, 8), NM(1, 32)]


def zeros_follow(mask: torch.Tensor, target: MatrixGoal) -> None:
    if isinstance(target, PerTensor):
        assert int((~mask).sum()) == target.zeros
    elif isinstance(target, PerRow):
        assert ((~mask).sum(1) == target.zeros).all()
    else:
        assert (mask.reshape(len(mask), -1, target.m).sum(2) == target.n).all()


def positive_zeros_outside(weight: torch.Tensor, mask: torch.Tensor) -> None:
    assert weight.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert not weight[~mask].view(torch.int32).any()


# --- statistics -----------------------------------------------------------------------------


def test_an_aim_is_the_least_squares_fit_to_outputs_half_of_the_way_to_the_dense_ones() -> None:
    """``W A`` against the weights that ``methods_reference.aimed`` fits row by row, in fp64."""
    weight, x = layer(12, 40, 3)
    dense = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    dense[7] *= 1000  # a huge activation
    gram = Gram(40, paired=True)
    gram.add(x, dense)
    aim = gram.aim(0.01)
    assert aim is not None
    expected = aimed(weight, x, dense)
    assert float((expected - weight).abs().max()) > 0.01
    torch.testing.assert_close(weight @ aim, expected, rtol=1e-4, atol=1e-5)


def test_without_pairs_there_is_no_aim() -> None:
    x = layer(1, 40, 3)[1]
    gram = Gram(40, paired=True)
    gram.add(x, x)
    gram.add(x)
    assert gram.aim(0.01) is None
    gram = Gram(40, paired=True)
    gram.add(x, torch.zeros_like(x))  # rows of zeros stand for none: x in their place
    aim = gram.aim(0.01)
    assert aim is not None
    assert torch.equal(aim, torch.eye(40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("full", [True, False])
def test_gram_is_the_second_moments_in_double_precision(dtype: torch.dtype, full: bool) -> None:
    x = layer(1, 40, 0)[1].to(dtype)
    gram = Gram(40, full=full)
    for part in (x[:7], x[7:100].reshape(3, 31, 40), x[100:], x[:0], x[3]):
        gram.add(part)
    all_x = torch.cat([x, x[3:4]]).double()
    expected = 2 / len(all_x) * all_x.T @ all_x
    assert (gram.tokens, gram.skipped) == (len(all_x), 0)
    assert gram.diagonal().dtype == gram.norms().dtype == torch.float32
    torch.testing.assert_close(gram.diagonal().double(), expected.diagonal(), rtol=2e-6, atol=0)
    torch.testing.assert_close(gram.norms().double(), all_x.norm(dim=0), rtol=2e-6, atol=0)
    if full:
        h = gram.hessian()
        torch.testing.assert_close(h.double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(h, h.T)
        assert torch.equal(h.diagonal(), gram.diagonal())
    else:
        with pytest.raises(ValueError, match="only the diagonal"):
            gram.hessian()


def test_gram_does_not_depend_on_the_order() -> None:
    x = layer(1, 24, 1)[1]
    one, other = Gram(24), Gram(24)
    for part in x.split(5):
        one.add(part)
    for part in reversed(x.split(13)):
        other.add(part)
    torch.testing.assert_close(one.hessian(), other.hessian(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("full", [True, False])
def test_gram_leaves_bad_rows_out(bad: float, full: bool) -> None:
    x = layer(1, 8, 2)[1]
    broken = x.clone()
    broken[3, 5] = broken[9, 0] = bad
    gram, clean = Gram(8, full=full), Gram(8, full=full)
    gram.add(broken)
    clean.add(x[[i for i in range(len(x)) if i not in (3, 9)]])
    assert (gram.tokens, gram.skipped) == (len(x) - 2, 2)
    assert torch.equal(gram.norms(), clean.norms())


def test_gram_without_tokens_and_with_wrong_ones() -> None:
    gram = Gram(4)
    assert not gram.norms().any()
    with pytest.raises(ValueError, match=r"inputs are \[\.\.\., 4\], not \[2, 3\]"):
        gram.add(torch.ones(2, 3))
    with pytest.raises(ValueError, match="floats"):
        gram.add(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one"):
        Gram(0)
    assert not gram.hessian().any()
    with pytest.raises(ValueError, match="nothing can be added"):
        gram.add(torch.ones(2, 4))


@pytest.mark.parametrize("full", [True, False])
def test_rows_of_zeros_are_no_tokens(full: bool) -> None:
    """As where an expert is given zeros for the tokens that are not its own."""
    x = layer(1, 8, 3)[1][:20]
    gram, alone = Gram(8, full=full), Gram(8, full=full)
    for part in (torch.zeros(3, 8), x[:9], -torch.zeros(1, 8), x[9:], torch.full((2, 8), 1e-30)):
        gram.add(part)
    alone.add(x[:9])
    alone.add(x[9:])
    assert (gram.tokens, gram.skipped) == (20, 0)
    assert torch.equal(gram.diagonal(), alone.diagonal())


def test_sums_of_large_inputs_stay_finite() -> None:
    """Squares of 9e18 are in fp32, and a hundred of them are not."""
    gram = Gram(4)
    gram.add(torch.full((100, 4), 9e18))
    gram.add(torch.full((100, 4), 5e11))
    assert (gram.tokens, gram.skipped) == (100, 100)
    torch.testing.assert_close(gram.norms(), torch.full((4,), 5e12))
    assert gram.hessian().isfinite().all()


def test_the_hessian_is_made_in_place_of_the_sum() -> None:
    x = torch.randn(50, 2500, generator=torch.Generator().manual_seed(0))
    gram = Gram(2500)
    gram.add(x)
    norms, products = gram.norms(), x.T @ x
    hessian = gram.hessian()
    assert hessian.data_ptr() == gram.hessian().data_ptr()
    torch.testing.assert_close(hessian, 2 / 50 * products, rtol=1e-4, atol=1e-5)
    assert torch.equal(hessian, hessian.T)
    assert torch.equal(gram.norms(), norms)
    assert torch.equal(gram.diagonal(), hessian.diagonal())


# --- targets --------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 5),
    m=st.sampled_from([2, 3, 4, 8, 16, 20, 32]),
    seed=st.integers(0, 2**20),
    levels=st.sampled_from([1, 2, 5, 10_000]),
    share=st.floats(0, 1),
)
def test_choose_is_a_stable_sort(
    rows: int, groups: int, m: int, seed: int, levels: int, share: float
) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, (rows, groups * m)).astype(np.float32)
    scores[scores == 1] = -0.0
    scores[scores == 4] = np.inf
    per_row = round(share * groups * m)
    for target in (
        PerTensor(round(share * scores.size)),
        PerRow(per_row),
        NM(1 + seed % (m - 1), m),
    ):
        mask = choose(torch.from_numpy(scores), target)
        assert np.array_equal(mask.numpy(), keep(scores, target)), target
        zeros_follow(mask, target)


@pytest.mark.parametrize("target", [PerTensor(1), PerRow(1), NM(2, 4)])
def test_choose_refuses_nan(target: MatrixGoal) -> None:
    scores = torch.ones(2, 4)
    scores[1, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        choose(scores, target)


@pytest.mark.parametrize("target", [PerTensor(9), PerTensor(-1), PerRow(5), NM(2, 3)])
def test_choose_refuses_what_does_not_fit(target: MatrixGoal) -> None:
    with pytest.raises(ValueError, match=r"zeros do not fit|cannot follow"):
        choose(torch.ones(2, 4), target)


# --- magnitude and Wanda --------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_wanda_and_magnitude_are_their_loops(target: MatrixGoal) -> None:
    weight, x = layer(20, 64, 3, dead=5)
    norms = x.double().norm(dim=0).float()
    dead = norms.numpy() == 0
    scores = np.empty(weight.shape, np.float32)
    for i in range(20):
        for j in range(64):
            scores[i, j] = np.float32(abs(weight[i, j].item())) * np.float32(norms[j].item())
    for got, expected in (
        (wanda(weight, norms, target), keep(precedence(scores, weight.numpy(), dead), target)),
        (magnitude(weight, target), keep(weight.abs().numpy(), target)),
    ):
        assert np.array_equal(got.mask.numpy(), expected)
        assert torch.equal(got.weight[got.mask], weight[got.mask])
        positive_zeros_outside(got.weight, got.mask)
        assert (got.damping, got.raised) == (0.0, 0)
    assert wanda(weight, norms, target).dead == 5


# --- SparseGPT ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("block", [128, 20])
@pytest.mark.parametrize(
    ("dead", "zeros"), few([(0, 0), (6, 0), (0, 0.2), (6, 0.2), (30, 0.4)], (6, 0.2))
)
def test_sparsegpt_is_its_definition(
    target: MatrixGoal, block: int, dead: int, zeros: float
) -> None:
    weight, x = layer(20, 64, 4, dead=dead)
    weight[:, ::3].masked_fill_(
        torch.rand(20, 22, generator=torch.Generator().manual_seed(5)) < 3 * zeros / 2, -0.0
    )
    hessian = second_moments(x)
    got = sparsegpt(weight, hessian, target, block=block)
    expected, mask = sparsegpt_reference(weight, hessian, target, block, 0.01)
    assert np.array_equal(got.mask.numpy(), mask)
    torch.testing.assert_close(got.weight.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
    zeros_follow(got.mask, target)
    positive_zeros_outside(got.weight, got.mask)
    assert (got.damping, got.raised, got.dead) == (0.01, 0, dead)


def test_sparsegpt_beats_wanda_and_does_not_depend_on_units() -> None:
    weight, x = layer(48, 64, 5, dead=20)
    hessian = second_moments(x)
    for target in (PerTensor(48 * 32), PerRow(32), NM(2, 4)):
        got = sparsegpt(weight, hessian, target)
        other = wanda(weight, hessian.diagonal().sqrt(), target)
        assert output_error(weight, got.weight, hessian) < output_error(
            weight, other.weight, hessian
        )
        scaled = sparsegpt(weight, hessian / 2**20, target)
        assert torch.equal(scaled.mask, got.mask)
        torch.testing.assert_close(scaled.weight, got.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [sparsegpt, admm])
def test_damping_is_raised_until_it_works(method) -> None:  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(6)
    weight, vectors = torch.randn(8, 16, generator=g), torch.randn(16, 16, generator=g)
    values = torch.linspace(0.5, 1.5, 16)
    values[0] = -0.05  # no second moments, but what rounding can leave of them
    basis = torch.linalg.qr(vectors).Q
    indefinite = (basis * values) @ basis.T
    got = method(weight, (indefinite + indefinite.T) / 2, PerRow(8))
    assert (got.damping, got.raised) == (pytest.approx(0.1), 1)
    assert got.weight.isfinite().all()
    with pytest.raises(SingularHessian, match="cannot be factorized") as caught:
        method(weight, torch.eye(16) - 3e5 * (1 - torch.eye(16)), PerRow(8))
    assert caught.value.hint
    assert caught.value.damping == pytest.approx(1e4)


# --- all methods on hard layers -------------------------------------------------------------


def hard_layers() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    weight, x = layer(12, 32, 7)
    flat = layer(12, 32, 7, rank=1)[1]
    return {
        "all-zero weight": (torch.zeros(12, 32), second_moments(x)),
        "half-zero weight": (torch.where(weight > 0, weight, 0.0), second_moments(x)),
        "rank 1": (weight, second_moments(flat)),
        "few tokens": (weight, second_moments(x[:3])),
        "all inputs dead": (weight, torch.zeros(32, 32)),
        "most inputs dead": (weight, second_moments(layer(12, 32, 7, dead=28)[1])),
        "one row": (weight[:1], second_moments(x)),
        "tiny": (weight * 1e-6, second_moments(x) * 1e-9),
        "huge": (weight * 1e4, second_moments(x) * 1e9),
    }


@pytest.mark.parametrize("name", hard_layers())
@pytest.mark.parametrize("damping", few([0.01, 0.0]))
def test_hard_layers_are_pruned_exactly_and_the_same_twice(name: str, damping: float) -> None:
    weight, hessian = hard_layers()[name]
    everything = weight.numel()
    targets = [PerTensor(0), PerTensor(everything // 2), PerTensor(everything), PerRow(0)]
    for target in [*targets, PerRow(9), PerRow(32), NM(2, 4), NM(31, 32)]:
        for method in (sparsegpt, admm):
            got = method(weight, hessian, target, damping=damping)
            again = method(weight, hessian, target, damping=damping)
            assert torch.equal(got.weight, again.weight)
            assert torch.equal(got.mask, again.mask)
            zeros_follow(got.mask, target)
            positive_zeros_outside(got.weight, got.mask)
            assert got.weight.isfinite().all()
            assert got.dead == int((hessian.diagonal() == 0).sum())
            stays = got.mask & ((hessian.diagonal() == 0) | (weight == 0))
            assert torch.equal(got.weight[stays], weight[stays])
            if target in (PerTensor(0), PerRow(0)):
                assert output_error(weight, got.weight, hessian) < 1e-10
            refined = refine(weight, got.weight, got.mask, hessian, damping=damping)
            positive_zeros_outside(refined, got.mask)


def test_zeros_that_are_there_count_first() -> None:
    weight, hessian = hard_layers()["half-zero weight"]
    norms = hessian.diagonal().sqrt()
    there = int((weight == 0).sum())
    for got in (
        wanda(weight, norms, PerTensor(there)),
        magnitude(weight, PerTensor(there)),
        sparsegpt(weight, hessian, PerTensor(there), block=1024),
    ):
        assert torch.equal(got.mask, weight != 0)
        assert torch.equal(got.weight, weight)


# --- loss -----------------------------------------------------------------------------------


def test_loss_is_the_error_of_the_outputs() -> None:
    weight, x = layer(9, 24, 8)
    hessian = second_moments(x)
    pruned = magnitude(weight, PerRow(12)).weight
    outputs, changes = x.double() @ weight.double().T, x.double() @ (pruned - weight).double().T
    per_row = 2 / len(x) * changes.square().sum(0)
    torch.testing.assert_close(
        row_errors(weight, pruned, hessian).double(), per_row, rtol=1e-5, atol=0
    )
    expected = float(changes.square().sum() / outputs.square().sum())
    assert output_error(weight, pruned, hessian) == pytest.approx(expected, rel=1e-5)
    assert output_error(weight, weight, hessian) == 0.0
    assert output_error(torch.zeros(9, 24), pruned, hessian) == 0.0
    assert torch.equal(row_errors(weight, weight, hessian), torch.zeros(9))
    assert float(errors(weight, pruned, hessian).sum()) > 0


# --- bad inputs -----------------------------------------------------------------------------

W, H, M = torch.ones(2, 4), torch.eye(4), torch.ones(2, 4, dtype=torch.bool)
NAN_W, NAN_H = W * float("nan"), H * float("inf")
T = PerRow(2)
BAD = {
    "wanda: 1-D": (lambda: wanda(W[0], H[0], T), "must be"),
    "wanda: NaN": (lambda: wanda(NAN_W, H[0], T), "weight holds NaN"),
    "wanda: norms": (lambda: wanda(W, H[0, :3], T), r"norms is of shape \[4\]"),
    "wanda: negative": (lambda: wanda(W, -H[0] - 1, T), "negative"),
    "wanda: NaN norms": (lambda: wanda(W, NAN_H[0], T), "norms holds NaN"),
    "magnitude: integers": (lambda: magnitude(W.int(), T), "floats"),
    "magnitude: NaN": (lambda: magnitude(NAN_W, T), "weight holds NaN"),
    "sparsegpt: shape": (lambda: sparsegpt(W, torch.eye(3), T), r"shape \[4, 4\], not \[3, 3\]"),
    "sparsegpt: Inf": (lambda: sparsegpt(W, NAN_H, T), "hessian holds NaN"),
    "sparsegpt: negative": (lambda: sparsegpt(W, -H, T), "negative"),
    "sparsegpt: block": (lambda: sparsegpt(W, H, T, block=0), "block"),
    "sparsegpt: target": (lambda: sparsegpt(W, H, PerRow(5)), "do not fit"),
    "sparsegpt: damping": (lambda: sparsegpt(W, H, T, damping=-1), "damping"),
    "admm: shape": (lambda: admm(W, torch.eye(3), T), r"shape \[4, 4\], not \[3, 3\]"),
    "admm: NaN": (lambda: admm(NAN_W, H, T), "weight holds NaN"),
    "admm: damping": (lambda: admm(W, H, T, damping=float("nan")), "damping"),
    "admm: target": (lambda: admm(W, H, NM(2, 3)), "cannot follow"),
    "refine: shape": (lambda: refine(W, W[:1], M, H), "not have the weight's shape"),
    "refine: mask": (lambda: refine(W, W, M[:1], H), "mask"),
    "refine: floats": (lambda: refine(W, W, W, H), "a mask is bool"),
    "refine: NaN": (lambda: refine(W, NAN_W, M, H), "weight holds NaN"),
    "loss: NaN": (lambda: output_error(W, NAN_W, H), "weight holds NaN"),
    "loss: shape": (lambda: row_errors(W, W[:1], H), "not have the weight's shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, why = BAD[name]
    with pytest.raises(ValueError, match=why):
        call()
