"""Products in fp32 on CPUs where torch's own are slow.

torch multiplies fp32 by MKL, which does not use AVX-512 on AMD's processors. oneDNN, which comes
with torch too, does, and takes less than half of the time there (measured on Zen 5).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from prunectl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: [..., in] and [out, in] -> [..., out], of one dtype and device.

    No gradient is recorded where oneDNN computes it.
    """
    if not _suits(x, weight, bias):
        return torch.nn.functional.linear(x, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(
        x.contiguous(), weight.contiguous(), bias, "none", [], ""
    )
    return found


def add_moments(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a.T @ b`` to ``total`` [n, m], of [rows, n] and [rows, m], in place.

    Only where oneDNN computes it is there another matrix of that size for a moment.
    """
    if _suits(a.T, b.T, None):
        total += linear(a.T, b.T)
    else:
        total.addmm_(a.T, b)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    operands = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(type(one) in (torch.Tensor, torch.nn.Parameter) for one in operands)
        and all(one.dtype == torch.float32 and one.device.type == "cpu" for one in operands)
        and not (torch.is_grad_enabled() and any(one.requires_grad for one in operands))
        and not torch.is_autocast_enabled("cpu")
        and min(x.numel(), weight.numel()) > 0
        and weight.ndim == 2
        and _is_slow_in_mkl()
    )


@cache
def _is_slow_in_mkl() -> bool:
    from prunectl.cpu import is_amd_with_avx512

    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_both and is_amd_with_avx512()
