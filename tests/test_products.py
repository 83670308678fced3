"""Products by oneDNN are those of torch, whatever the operands look like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from prunectl.methods import products


@pytest.mark.parametrize("prefers", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda x: x[..., ::2],
        lambda x: x.to(torch.float64),
        lambda x: x.to(torch.bfloat16),
        lambda x: x[:0],
        lambda x: x.requires_grad_(),
    ],
    ids=["plain", "transposed", "strided", "fp64", "bf16", "empty", "gradient"],
)
def test_products_are_those_of_torch(
    change: Callable[[torch.Tensor], torch.Tensor],
    prefers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_is_slow_in_mkl", lambda: prefers)
    torch.manual_seed(0)
    x, weight = change(torch.randn(3, 5, 8)), change(torch.randn(7, 8))
    for bias in (None, torch.randn(len(weight), dtype=x.dtype)):
        expected = torch.nn.functional.linear(x, weight, bias)
        found = products.linear(x, weight, bias)
        torch.testing.assert_close(found, expected)
        assert found.requires_grad == expected.requires_grad


@pytest.mark.parametrize("prefers", [True, False])
def test_moments_are_added_in_place(prefers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_slow_in_mkl", lambda: prefers)
    torch.manual_seed(0)
    total, a, b = torch.ones(7, 8), torch.randn(5, 7), torch.randn(5, 8)
    products.add_moments(total, a, b)
    torch.testing.assert_close(total, 1 + a.T @ b)
