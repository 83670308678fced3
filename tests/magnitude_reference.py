"""Plain references and hypothesis strategies for magnitude tests: slow, obvious, torch/numpy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from prunectl.magnitude.codes import code_format
from prunectl.tensorspec import DTYPES, DType

FLOATS = [DTYPES[n] for n in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")]
PRUNABLE = [d for d in FLOATS if d.is_prunable]
TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def torch_values(dtype: DType, codes: np.ndarray) -> np.ndarray:
    """float64 values according to torch."""
    signed = codes.astype(f"u{dtype.bits // 8}").view(f"i{dtype.bits // 8}").copy()
    return torch.from_numpy(signed).view(TORCH[dtype.name]).to(torch.float64).numpy()


def weights(dtype: DType, size: int, seed: int, *, inf: bool = False, nan: bool = False):
    """Codes as of a trained tensor, with many ties, both zeros, subnormals, and extremes."""
    f = code_format(dtype)
    rng = np.random.default_rng(seed)
    real = torch.from_numpy(rng.standard_normal(size) * 10.0 ** rng.integers(-3, 2))
    codes = real.to(TORCH[dtype.name]).view(getattr(torch, f"int{f.bits}")).numpy().view(f.uint)
    codes = codes.copy()
    if seed % 2 and size:  # few distinct values: ties everywhere
        codes = rng.choice(codes[: 1 + seed % 5], size)
    sign = f.mask + 1
    top = f.floor_code(1e100)  # the largest finite one but in fp64, where squares would overflow
    top -= top >= f.inf_code
    special = [0, 0, sign, 1, sign | 1, top, top | sign]
    special += [f.inf_code, f.inf_code | sign] if inf and f.inf_code < f.nan_code else []
    special += [f.nan_code, f.mask | sign] if nan else []
    where = rng.random(size) < rng.choice([0.0, 0.1, 0.7])
    codes[where] = rng.choice(np.array(special, f.uint), int(where.sum()))
    return codes


sizes = st.integers(0, 9000) | st.sampled_from([1, 4095, 4096, 4097, 8192, 70_000])
seeds = st.integers(0, 10_000)


def blocks(codes: np.ndarray, seed: int) -> list[np.ndarray]:
    """The same codes cut at random places."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, codes.size + 1, rng.integers(0, 4)))
    return [b.copy() for b in np.split(codes, cuts)]
