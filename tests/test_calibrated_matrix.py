"""One matrix as it is stored: no zero too many, no overflow, and never worse by rounding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods_reference import errors, layer, second_moments

from prunectl.calibration.matrix import Done, DtypeRounding, MatrixPruner, unit_of
from prunectl.calibration.targets import ByRowBlocks, Goal
from prunectl.methods.goal import MatrixGoal, PerRow, PerTensor
from prunectl.methods.statistics import Gram
from prunectl.pattern import NM
from prunectl.plan.settings import Method

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UPDATING = (Method.SPARSEGPT, Method.ADMM)


def gram_of(x: torch.Tensor) -> Gram:
    gram = Gram(x.shape[1])
    gram.add(x)
    return gram


def prune(
    source: torch.Tensor, x: torch.Tensor, goal: Goal, method: Method, *, refine: bool = False
) -> tuple[Done, torch.Tensor]:
    return MatrixPruner(method, refine, 0.01, full=True).prune(source, gram_of(x), goal)


@pytest.mark.parametrize(("tokens", "damping"), [(4, 0.2), (160, 0.1), (8000, 0.01)])
def test_fewer_tokens_are_damped_more(tokens: int, damping: float) -> None:
    """Zeros among the inputs are no tokens."""
    weight, x = layer(4, 8, 0)
    x = torch.cat([x.repeat(250, 1)[:tokens], torch.zeros(7, 8)])
    for method in UPDATING:
        pruner = MatrixPruner(method, refine=False, damping=None, full=True)
        done, new = pruner.prune(weight, gram_of(x), PerTensor(16))
        assert done.damping == damping
        _, expected = replace(pruner, damping=damping).prune(weight, gram_of(x), PerTensor(16))
        assert torch.equal(new, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", UPDATING)
@pytest.mark.parametrize("factor", [1e-7, 1.0])
@pytest.mark.parametrize("goal", [PerTensor(500), PerRow(31), NM(2, 4)], ids=str)
def test_no_survivor_is_rounded_to_zero(
    dtype: torch.dtype, method: Method, factor: float, goal: MatrixGoal
) -> None:
    """In fp16, weights of 1e-8 round to zero; exactly as many are zero as were asked for."""
    weight, x = layer(16, 64, 0)
    source = (weight * factor).to(dtype)
    source = torch.where(source == 0, torch.full_like(source, 1e-7), source)
    done, new = prune(source, x, goal, method)
    assert new.dtype == dtype
    if isinstance(goal, PerRow):
        assert ((new == 0).sum(1) == goal.zeros).all()
    if isinstance(goal, NM):
        assert ((new != 0).reshape(-1, goal.m).sum(1) == goal.n).all()
    assert not new[new == 0].signbit().any()
    if isinstance(goal, PerTensor):
        assert int((new == 0).sum()) == goal.zeros
    assert done.overflowed == 0


@pytest.mark.parametrize("method", UPDATING)
@pytest.mark.parametrize("refine", [False, True])
def test_rows_that_the_dtype_cannot_hold_stay_as_they_were(method: Method, refine: bool) -> None:
    weight, x = layer(16, 64, 1)
    weight[:8] = weight[:8].sign() * 65_000  # fp16 ends at 65,504
    source = weight.half()
    done, new = prune(source, x, PerRow(32), method, refine=refine)
    assert 0 < done.overflowed <= 8
    assert new.isfinite().all()
    assert ((new == 0).sum(1) == 32).all()
    same = (new == torch.where(new != 0, source, 0)).all(1)
    assert done.overflowed == int(same[:8].sum()) or refine
    assert not same[8:].any()
    assert done.error is not None
    assert math.isfinite(done.error)


@pytest.mark.parametrize("method", [*UPDATING, Method.WANDA, Method.MAGNITUDE])
@pytest.mark.parametrize("factor", [2.0**100, 2.0**-100])
@pytest.mark.parametrize("goal", [PerTensor(500), NM(2, 4), ByRowBlocks(NM(2, 4), 600)], ids=str)
def test_a_matrix_far_from_one_is_pruned_as_one_of_usual_size(
    method: Method, factor: float, goal: Goal
) -> None:
    """Squares of 1e30 are not in fp32; a power of 2 changes nothing but the exponent."""
    weight, x = layer(32, 64, 2)
    one, plain = prune(weight, x, goal, method, refine=True)
    other, far = prune(weight * factor, x, goal, method, refine=True)
    assert torch.equal(far, plain * factor)
    assert (one.error, one.rows) == (other.error, other.rows)
    assert one.error is not None
    assert 0 < one.error < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", list(Method))
def test_refine_raises_no_rows_error_by_rounding(dtype: torch.dtype, method: Method) -> None:
    """Errors are those of what is stored, before and after; a row that loses by it stays."""
    weight, x = layer(64, 48, 3)
    # Very few weights go, so that what fitting wins is about as much as rounding takes.
    source, hessian, goal = weight.to(dtype), second_moments(x), PerTensor(20)
    before = prune(source, x, goal, method)[1]
    done, after = prune(source, x, goal, method, refine=True)
    dense = source.double()
    old, new = errors(dense, before, hessian), errors(dense, after, hessian)
    assert (new <= old * (1 + 1e-9) + 1e-12).all()
    assert method is Method.ADMM or (new < old).any()
    still = errors(dense, torch.zeros_like(dense), hessian).sum()
    assert done.error == pytest.approx(float(new.sum() / still), rel=1e-3)
    assert done.error_before_refine == pytest.approx(float(old.sum() / still), rel=1e-3)


@given(value=st.floats(2**-148, 2**127, width=32), dtype=st.sampled_from(DTYPES[2:]))
def test_the_unit_is_exact(value: float, dtype: torch.dtype) -> None:
    weight = torch.tensor([[value, -value]])
    unit = unit_of(weight)
    assert math.frexp(unit)[0] == 0.5
    inside = float((weight / unit).abs().max())
    assert 2**-24 <= inside <= 2**8 or value < 2**-126
    back = DtypeRounding(dtype, unit).rounded(weight / unit, torch.ones(1, 2, dtype=torch.bool))
    assert torch.equal(back.float(), weight)
