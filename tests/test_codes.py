"""Codes against torch's own conversions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from magnitude_reference import FLOATS, torch_values

from prunectl.magnitude.codes import code_format, common_format, widen
from prunectl.tensorspec import DTYPES, DType


def some_codes(dtype: DType) -> np.ndarray:
    if dtype.bits <= 16:
        return np.arange(1 << dtype.bits).astype(f"u{dtype.bits // 8}")
    rng = np.random.default_rng(0)
    f = code_format(dtype)
    edges = [0, 1, f.inf_code - 1, f.inf_code, f.nan_code, f.mask, f.mask + 1, f.mask + 2]
    drawn = rng.integers(0, 2 * f.mask + 1, 100_000, dtype=np.uint64, endpoint=True)
    return np.concatenate([np.array(edges, np.uint64), drawn]).astype(f.uint)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_are_torchs(dtype: DType) -> None:
    codes = some_codes(dtype)
    got, want = code_format(dtype).values(codes), torch_values(dtype, codes)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    assert np.array_equal(got[number].view(np.uint64), want[number].view(np.uint64))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_limits(dtype: DType) -> None:
    f = code_format(dtype)
    magnitudes = some_codes(dtype) & f.uint.type(f.mask)
    values = torch_values(dtype, magnitudes)
    assert np.array_equal(np.isnan(values), magnitudes >= f.nan_code)
    assert np.array_equal(np.isfinite(values), magnitudes < f.inf_code)
    assert (f.inf_code == f.nan_code) == (dtype.name == "F8_E4M3")
    order = np.sort(magnitudes[magnitudes < f.nan_code])
    assert (np.diff(torch_values(dtype, order)[np.isfinite(torch_values(dtype, order))]) >= 0).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@given(value=st.floats(0, allow_nan=False))
def test_floor_code(dtype: DType, value: float) -> None:
    f = code_format(dtype)
    code = f.floor_code(value)
    assert f.value(code) <= value
    assert code + 1 == f.nan_code or f.value(code + 1) > value


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floor_code_of_own_values(dtype: DType) -> None:
    f = code_format(dtype)
    for code in (0, 1, 2, f.mask // 3, f.inf_code - 1, f.nan_code - 1):
        assert f.floor_code(f.value(code)) == code
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="magnitude"):
            f.floor_code(bad)


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("target", ["F32", "F64"])
def test_widen_keeps_values(source: DType, target: str) -> None:
    f, wide = code_format(source), code_format(DTYPES[target])
    codes = some_codes(source) & f.uint.type(f.mask)
    codes = codes[codes < f.nan_code]
    if source.bits > wide.bits:
        with pytest.raises(ValueError, match="widened"):
            widen(codes, f, wide)
        return
    out = widen(codes, f, wide)
    assert out.dtype == wide.uint
    assert np.array_equal(wide.values(out), f.values(codes))


def test_common_format() -> None:
    f = {name: code_format(DTYPES[name]) for name in ("BF16", "F16", "F32", "F64")}
    assert common_format({f["BF16"]}) == f["BF16"]
    assert common_format({f["BF16"], f["F16"]}) == f["F32"]
    assert common_format({f["BF16"], f["F64"]}) == f["F64"]
    with pytest.raises(ValueError, match="no formats"):
        common_format(set())
    with pytest.raises(ValueError, match="no magnitude"):
        code_format(DTYPES["I32"])
