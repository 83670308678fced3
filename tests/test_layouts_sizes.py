"""How small real and random tensors become: near the entropy of their weights, one by one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import zstandard
from full import few
from layouts_reference import survey
from layouts_shipped import decode, encode
from safetensors import safe_open

from prunectl.layouts.table import LAYOUTS
from prunectl.magnitude import masks
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES, DType

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SKIPPED = r"embed_tokens|layers\.([4-9]|\d\d)\."
"""Of SmolLM2, four of 30 blocks are enough."""
CLOSE = 1.015
"""Packed bytes over entropy, at most."""


def codes_of(tensor: torch.Tensor, dtype: DType) -> np.ndarray:
    raw = torch.int32 if dtype.bits == 32 else torch.int16
    return tensor.to(TYPES[dtype.name]).view(raw).numpy().view(f"u{dtype.bits // 8}").copy()


def entropy_of(counts: list[float]) -> float:
    """Bits of a sequence with these counts of its values."""
    total = sum(counts)
    return sum(-n * math.log2(n / total) for n in counts if n)


def least_bytes(codes: np.ndarray, dtype: DType, pattern: NM | None) -> float:
    """Entropy of the mask (or the set of each group) and of the top 8 bits of magnitudes."""
    kept = codes[codes != 0]
    magnitudes = kept & codes.dtype.type((1 << (dtype.bits - 1)) - 1)
    symbols = np.unique(magnitudes >> codes.dtype.type(dtype.bits - 9), return_counts=True)[1]
    bits = entropy_of(symbols.tolist()) + kept.size * (dtype.bits - 8)
    if pattern is None:
        return (bits + entropy_of([kept.size, codes.size - kept.size])) / 8
    return (bits + codes.size / pattern.m * math.log2(math.comb(pattern.m, pattern.n))) / 8


def pruned(tensors: dict[str, np.ndarray], how: str) -> Iterator[tuple[np.ndarray, NM | None]]:
    """The tensors, with the matrices of the blocks pruned."""
    blocks = {k for k, c in tensors.items() if c.ndim == 2 and "layer" in k}
    limit = 0
    if how == "40%":
        magnitudes = np.concatenate([tensors[k].reshape(-1) << 1 >> 1 for k in blocks])
        limit = int(
            np.partition(magnitudes, int(0.4 * magnitudes.size))[int(0.4 * magnitudes.size)]
        )
    for name, dense in tensors.items():
        codes = dense.copy()
        if name in blocks and how == "40%":
            masks.cut(codes.reshape(-1), limit, 0)
        if name in blocks and how == "2:4":
            masks.nm(codes.reshape(1, -1, 1), 2, 4)
        yield codes, NM(2, 4) if name in blocks and how == "2:4" else None


@pytest.mark.real
@pytest.mark.parametrize("how", few(["dense", "40%", "2:4"], "2:4"))
@pytest.mark.parametrize(
    ("model", "name"),
    few(
        [("smollm2", "BF16"), ("smollm2", "F16"), ("minilm", "F32")],
        ("smollm2", "BF16"),
    ),
)  # fmt: skip
def test_trained_tensors_are_packed_to_their_entropy(real_model, model, name, how) -> None:
    dtype = DTYPES[name]
    with safe_open(real_model(model) / "model.safetensors", "pt") as file:
        tensors = {
            key: codes_of(tensor, dtype)
            for key in file.keys()  # noqa: SIM118  (it is no dict)
            if not re.search(SKIPPED, key) and (tensor := file.get_tensor(key)).is_floating_point()
        }
    least = packed = estimated = zstd = 0.0
    for codes, pattern in pruned(tensors, how):
        found = encode("packed", codes, dtype, codes.shape, pattern=pattern)
        assert np.array_equal(decode(found, dtype, codes.shape), codes)
        packed += found.nbytes
        least += least_bytes(codes, dtype, pattern)
        estimated += LAYOUTS["packed"].nbytes(survey(codes, dtype, pattern=pattern))
        zstd += len(zstandard.ZstdCompressor(level=3).compress(codes.tobytes()))
    assert packed <= CLOSE * least
    assert packed < zstd
    # The estimate takes low bytes for noise, which those of weights cast from another type are not.
    assert packed < 1.01 * estimated
    assert name != "BF16" or estimated < 1.01 * packed


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    "pattern",
    few([None, NM(1, 2), NM(2, 4), NM(4, 8), NM(8, 16)], NM(2, 4)),
    ids=str,
)
def test_random_normal_tensors_are_packed_to_their_entropy(name, pattern) -> None:
    dtype = DTYPES[name]
    generator = torch.Generator().manual_seed(0)
    codes = codes_of(torch.randn(1024, 1024, generator=generator) * 0.02, dtype)
    if pattern is None:
        masks.cut(codes.reshape(-1), int(np.quantile(codes << 1 >> 1, 0.4)), 0)
    else:
        masks.nm(codes.reshape(1, -1, 1), pattern.n, pattern.m)
    found = encode("packed", codes, dtype, codes.shape, pattern=pattern)
    assert found.nbytes <= CLOSE * least_bytes(codes, dtype, pattern)
    estimate = LAYOUTS["packed"].nbytes(survey(codes, dtype, pattern=pattern))
    assert abs(estimate - found.nbytes) < 0.01 * found.nbytes


def test_low_bytes_that_are_constant_take_nothing() -> None:
    half = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide = codes_of(half.float(), DTYPES["F32"])  # as fp32: two bytes of each are zero
    narrow = codes_of(half, DTYPES["BF16"])
    large = encode("packed", wide, DTYPES["F32"], wide.shape).nbytes
    small = encode("packed", narrow, DTYPES["BF16"], narrow.shape).nbytes
    assert large < small * 1.01


def test_a_tensor_of_few_zeros_is_not_charged_for_a_mask() -> None:
    codes = codes_of(
        torch.randn(256, 256, generator=torch.Generator().manual_seed(0)), DTYPES["F16"]
    )
    codes[0, 0] = 0
    found = encode("packed", codes, DTYPES["F16"], codes.shape)
    assert found.extra["mask"] == "none"
