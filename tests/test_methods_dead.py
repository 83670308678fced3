"""Inputs that never fired, and weights that are zero already: what goes first, counted exactly."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods_reference import errors, keep, layer, precedence, second_moments

from prunectl.methods.admm import admm
from prunectl.methods.factor import SingularHessian
from prunectl.methods.goal import MatrixGoal, PerRow, PerTensor, choose_counts
from prunectl.methods.magnitude import magnitude
from prunectl.methods.sparsegpt import sparsegpt
from prunectl.methods.spec import Pruned
from prunectl.methods.wanda import wanda
from prunectl.pattern import NM

Method = Callable[[torch.Tensor, torch.Tensor, MatrixGoal], Pruned]


def by_norms(weight: torch.Tensor, hessian: torch.Tensor, target: MatrixGoal) -> Pruned:
    return wanda(weight, hessian.diagonal().sqrt(), target)


METHODS: dict[str, Method] = {"wanda": by_norms, "sparsegpt": sparsegpt, "admm": admm}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("target", [PerTensor(4096), PerTensor(2458), PerRow(77), PerRow(200)])
def test_the_weight_has_exactly_as_many_zeros(name: str, zeros: float, target: MatrixGoal) -> None:
    weight, x = layer(32, 256, 1, dead=80)
    weight.view(-1)[: int(zeros * weight.numel())] = 0.0  # the first rows are all zero
    hessian = second_moments(x)
    got = METHODS[name](weight, hessian, target)
    there, gone = weight == 0, got.weight == 0
    if isinstance(target, PerTensor):
        assert int(gone.sum()) == max(target.zeros, int(there.sum()))
    else:
        assert isinstance(target, PerRow)
        assert gone.sum(1).tolist() == [max(target.zeros, n) for n in there.sum(1).tolist()]
    assert gone[there].all()  # a zero stays one
    dead = hessian.diagonal() == 0
    still = got.mask & dead
    assert torch.equal(got.weight[still], weight[still])  # what is kept of dead inputs is as it was
    # Nothing that costs goes where what costs nothing would do.
    costs = ~(there | dead)
    for lost, kept in zip(*compared(gone & costs, ~gone & dead, target), strict=True):
        assert not (lost.any() and kept.any())


def compared(a: torch.Tensor, b: torch.Tensor, target: MatrixGoal) -> list[torch.Tensor]:
    return [a, b] if isinstance(target, PerRow) else [a.view(1, -1), b.view(1, -1)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [PerTensor(300), PerRow(17), NM(2, 4), NM(3, 8)], ids=str)
def test_where_no_input_fired_magnitudes_decide(name: str, target: MatrixGoal) -> None:
    weight = layer(20, 64, 2)[0]
    weight[3] = weight[2].abs()  # ties
    weight[5, ::2] = 0.0
    got, expected = METHODS[name](weight, torch.zeros(64, 64), target), magnitude(weight, target)
    assert torch.equal(got.mask, expected.mask)
    assert torch.equal(got.weight, expected.weight)
    assert got.dead == 64


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [PerTensor(500), PerRow(24), NM(2, 4)], ids=str)
def test_fewer_go_than_cost_nothing(name: str, target: MatrixGoal) -> None:
    """Then only these go, zeros first, then the smallest of dead inputs; no output changes."""
    weight, x = layer(16, 64, 3, dead=40)
    weight.masked_fill_(torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) < 0.1, -0.0)
    hessian = second_moments(x)
    got = METHODS[name](weight, hessian, target)
    if isinstance(target, NM):  # some groups have more live inputs than they may keep
        assert (got.mask.reshape(-1, 4).sum(1) == 2).all()
        assert (got.weight.reshape(-1, 4) != 0).sum(1).max() == 2
    else:
        scores = np.full(weight.shape, np.inf)
        dead = (hessian.diagonal() == 0).numpy()
        order = precedence(scores, weight.numpy(), dead)
        assert np.array_equal(got.mask.numpy(), keep(order, target))
        assert float(errors(weight, got.weight, hessian).sum()) < 1e-10
        if name != "admm":  # whose last step may round
            assert torch.equal(got.weight[got.mask], weight[got.mask] + 0.0)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    inputs=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    dead=st.integers(0, 40),
    density=st.floats(0, 1),
    share=st.floats(0, 1),
    block=st.integers(1, 16),
)
def test_sparsegpt_shares_counts_over_blocks_exactly(
    rows: int, inputs: int, seed: int, dead: int, density: float, share: float, block: int
) -> None:
    weight, x = layer(rows, inputs, seed, dead=min(dead, inputs))
    generator = torch.Generator().manual_seed(seed)
    weight.masked_fill_(torch.rand(weight.shape, generator=generator) > density, 0.0)
    hessian = second_moments(x)
    there = (weight == 0).sum(1).tolist()
    per_row, together = round(share * inputs), round(share * rows * inputs)
    got = sparsegpt(weight, hessian, PerRow(per_row), block=block)
    assert (got.mask.sum(1) == inputs - per_row).all()
    assert (got.weight == 0).sum(1).tolist() == [max(per_row, n) for n in there]
    got = sparsegpt(weight, hessian, PerTensor(together), block=block)
    assert int((~got.mask).sum()) == together
    assert int((got.weight == 0).sum()) == max(together, sum(there))
    assert not got.weight[weight == 0].any()


def test_a_count_for_each_row_is_a_stable_sort() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, -0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    for zeros in ([0, 5], [1, 2], [2, 0], [4, 3]):
        mask = choose_counts(scores, torch.tensor(zeros))
        for row, kept, count in zip(scores.numpy(), mask.numpy(), zeros, strict=True):
            assert np.array_equal(kept[None], keep(row[None], PerRow(count)))


def test_eigenvalues_that_are_not_found_are_a_matter_of_damping() -> None:
    weight = layer(8, 16, 4)[0]
    hessian = torch.full((16, 16), -1e30)
    hessian.diagonal().fill_(1e-30)
    with pytest.raises(SingularHessian, match="cannot be factorized"):
        admm(weight, hessian, PerRow(8))
