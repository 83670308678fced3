"""Masks against stable sorts, bit for bit."""

import numpy as np
import pytest
from full import drawn, few
from hypothesis import given
from hypothesis import strategies as st
from magnitude_reference import FLOATS, PRUNABLE, blocks, seeds, sizes, torch_values, weights

from prunectl.magnitude import masks
from prunectl.magnitude.codes import code_format
from prunectl.tensorspec import DTYPES, DType

dtypes = st.sampled_from(PRUNABLE)
layouts = st.sampled_from(["flat", "columns", "sliced"])


def magnitudes(codes: np.ndarray) -> np.ndarray:
    return codes & codes.dtype.type((1 << (8 * codes.dtype.itemsize - 1)) - 1)


def lowest_first(codes: np.ndarray, k: int) -> np.ndarray:
    """The same 1-D codes with the k smallest set to 0, lower index first."""
    out = codes.copy()
    out[np.argsort(magnitudes(codes), kind="stable")[:k]] = 0
    return out


def shaped(dtype: DType, layout: str, outer: int, axis: int, inner: int, seed: int) -> np.ndarray:
    """A writable block [outer, axis, inner] as callers make it."""
    if layout == "flat":
        return weights(dtype, outer * axis, seed, inf=True).reshape(outer, axis, 1)
    extra = 3 if layout == "sliced" else 0
    whole = weights(dtype, outer * axis * (inner + extra), seed, inf=True)
    return whole.reshape(outer, axis, inner + extra)[:, :, :inner]


@given(dtype=dtypes, size=sizes, seed=seeds, share=st.floats(0, 1))
def test_cut_zeroes_exactly_the_k_lowest(dtype: DType, size: int, seed: int, share: float) -> None:
    codes = weights(dtype, size, seed, inf=True)
    k = round(share * size)
    m = np.sort(magnitudes(codes))
    code = int(m[k - 1]) if k else 0
    quota = k - int((m < code).sum())
    parts, left, zeros = blocks(codes, seed), quota, 0
    for part in parts:
        z, used = masks.cut(part, code, left)
        zeros, left = zeros + z, left - used
    out = np.concatenate(parts)
    assert np.array_equal(out, lowest_first(codes, k))
    assert zeros == (magnitudes(out) == 0).sum()
    assert left == 0


@given(dtype=dtypes, size=sizes, seed=seeds, share=st.floats(-0.1, 1.1))
def test_cut_quota_inside_ties(dtype: DType, size: int, seed: int, share: float) -> None:
    codes = weights(dtype, size, seed | 1)
    code = int(magnitudes(codes)[size // 3]) if size else 5
    ties = np.flatnonzero(magnitudes(codes) == code)
    quota = max(0, round(share * ties.size))
    want = codes.copy()
    want[magnitudes(codes) < code] = 0
    want[ties[:quota]] = 0
    out = codes.copy()
    assert masks.cut(out, code, quota) == (
        (magnitudes(want) == 0).sum(),
        min(quota, ties.size),
    )
    assert np.array_equal(out, want)


@given(
    dtype=dtypes,
    layout=layouts,
    outer=st.integers(1, 4),
    axis=st.sampled_from([1, 2, 7, 64, 300, 5000]),
    inner=st.integers(1, 5),
    sparsity=st.floats(0.001, 0.999),
    seed=seeds,
)
def test_cut_rows(dtype, layout, outer, axis, inner, sparsity, seed) -> None:
    codes = shaped(dtype, layout, outer, axis, inner, seed)
    want = codes.copy()
    k = int(np.floor(sparsity * axis + 0.5))
    for o in range(codes.shape[0]):
        for i in range(codes.shape[2]):
            row = codes[o, :, i]
            if (magnitudes(row) == 0).sum() < k:
                want[o, :, i] = lowest_first(row, k)
    zeros = masks.cut_rows(codes, sparsity)
    assert np.array_equal(codes, want)
    assert zeros == (magnitudes(want) == 0).sum()


def nm_reference(codes: np.ndarray, n: int, m: int) -> np.ndarray:
    outer, axis, inner = codes.shape
    groups = codes.reshape(outer, axis // m, m, inner).copy()
    descending = ~magnitudes(groups)  # a stable ascending sort of it keeps lower indices first
    losers = np.argsort(descending, axis=2, kind="stable")[:, :, n:]
    np.put_along_axis(groups, losers, codes.dtype.type(0), axis=2)
    return groups.reshape(codes.shape)


# Types and patterns, each with kernels of its own.
kinds = drawn(
    [(dtype, *nm) for dtype in PRUNABLE for nm in ((2, 4), (4, 8), (1, 4), (6, 8), (2, 3))],
    (DTYPES["BF16"], 2, 4), (DTYPES["BF16"], 6, 8), (DTYPES["F32"], 1, 4),
)  # fmt: skip


@given(
    kind=kinds,
    layout=layouts,
    outer=st.integers(1, 3),
    groups=st.sampled_from([1, 3, 40, 600]),
    inner=st.sampled_from([1, 2, 5, 17]),
    seed=seeds,
)
def test_nm(kind, layout, outer, groups, inner, seed) -> None:
    dtype, n, m = kind
    codes = shaped(dtype, layout, outer, groups * m, inner, seed)
    want = nm_reference(codes, n, m)
    counts = (magnitudes(codes) != 0).reshape(outer, groups, m, -1).sum(2)
    assert masks.nm_violations(codes, n, m) == (counts > n).sum()
    zeros = masks.nm(codes, n, m)
    assert np.array_equal(codes, want)
    assert zeros == (magnitudes(want) == 0).sum()
    assert masks.nm_violations(codes, n, m) == 0


@pytest.mark.parametrize(("kind", "inner"), few([(np.uint16, 1), (np.uint32, 2), (np.uint64, 1)]))
def test_nm_of_64(kind: type, inner: int) -> None:
    codes = np.random.default_rng(0).integers(0, 200, (3, 64 * 600, inner)).astype(kind)
    want = nm_reference(codes, 63, 64)
    assert masks.nm(codes, 63, 64) == (want == 0).sum()
    assert np.array_equal(codes, want)


def test_a_pruned_minus_zero_becomes_plus_zero_and_a_kept_one_stays() -> None:
    sign = 0x8000
    codes = np.array([sign, sign, 5, sign | 6], np.uint16)
    out = codes.copy()
    assert masks.cut(out, 0, 1) == (2, 1)
    assert out.tolist() == [0, sign, 5, sign | 6]
    group = np.array([5, sign, 0, sign], np.uint16).reshape(1, 4, 1)
    assert masks.nm(group, 2, 4) == 3
    assert group.ravel().tolist() == [5, sign, 0, 0]


@given(dtype=dtypes, size=sizes, seed=seeds, share=st.floats(0, 0.5), broken=st.booleans())
def test_compare(dtype: DType, size: int, seed: int, share: float, broken: bool) -> None:
    source = weights(dtype, size, seed, inf=True, nan=True)
    rng = np.random.default_rng(seed)
    output = source.copy()
    output[rng.random(size) < share] = 0
    if broken:
        flips = rng.random(size) < 0.01
        output[flips] ^= output.dtype.type(1 << int(rng.integers(0, dtype.bits)))
    gone = (output == 0) & (source != 0)
    kept = (output == source) & (magnitudes(output) != 0)
    got = masks.compare(source, output)
    assert got == masks.Comparison(
        zeros=(magnitudes(output) == 0).sum(),
        changed=((output != source) & (output != 0)).sum(),
        pruned=gone.sum(),
        largest_pruned=int(magnitudes(source)[gone].max()) if gone.any() else None,
        smallest_kept=int(magnitudes(output)[kept].min()) if kept.any() else None,
    )
    half = size // 2
    first = masks.compare(source[:half], output[:half])
    assert first + masks.compare(source[half:], output[half:]) == got


@given(dtype=st.sampled_from(FLOATS), size=sizes, seed=seeds)
def test_counting_zeros_and_odd_codes(dtype: DType, size: int, seed: int) -> None:
    codes = weights(dtype, size, seed, inf=True, nan=True)
    values = torch_values(dtype, codes)
    assert masks.count_zeros(codes) == (values == 0).sum()
    if dtype.is_prunable:
        want = (np.isnan(values).sum(), np.isinf(values).sum())
        assert masks.odd_codes(codes, code_format(dtype)) == want


def test_bad_arguments() -> None:
    codes = np.zeros((2, 6, 1), np.uint16)
    with pytest.raises(ValueError, match="multiple of 4"):
        masks.nm(codes, 2, 4)
    with pytest.raises(ValueError, match="multiple of 4"):
        masks.nm_violations(codes, 2, 4)
    with pytest.raises(ValueError, match="u16, u32 or u64"):
        masks.cut(codes.astype(np.uint8).ravel(), 1, 0)
    with pytest.raises(ValueError, match="u16, u32 or u64"):
        masks.nm(codes.astype(np.int16), 1, 2)
    with pytest.raises(ValueError, match="differ"):
        masks.compare(codes.ravel(), codes.ravel()[1:])
