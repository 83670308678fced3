"""Layouts give back the same bits, as parts that a plain second decoder reads."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from full import drawn
from hypothesis import given
from hypothesis import strategies as st
from layouts_reference import DECODERS, Part, array, keep_n, survey, weights
from layouts_shipped import Encoded, decode, encode, opened
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from prunectl.layouts import groups, nm
from prunectl.layouts.errors import Misfit
from prunectl.layouts.groups import Grid
from prunectl.layouts.layout import BLOCK
from prunectl.layouts.packing import scheme
from prunectl.layouts.packing.alphabet import Alphabet
from prunectl.layouts.packing.chunks import encode_chunk
from prunectl.layouts.parts import fixed
from prunectl.layouts.table import LAYOUTS, by_size, sizes
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES, DType

BF16 = DTYPES["BF16"]
WHOLE = [DTYPES[n] for n in ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I8", "BOOL", "C64")]
PATTERNS = [NM(1, 2), NM(2, 4), NM(4, 8), NM(1, 16), NM(3, 5), NM(8, 16), NM(2, 64), NM(20, 40)]

dtypes = drawn(WHOLE, BF16, DTYPES["F32"], DTYPES["F8_E4M3"])
densities = st.sampled_from([0.0, 0.02, 0.5, 0.6, 1.0])
seeds = st.integers(0, 10_000)
shapes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 40), min_size=1, max_size=1).map(tuple),
    st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple),
    st.sampled_from([(1,), (7,), (33, 65), (3, 0, 4), (BLOCK + 9,), (2, BLOCK - 1), (65, 4097)]),
)


def check(found: Encoded, codes: np.ndarray, dtype: DType, rows: tuple[int, int] | None) -> None:
    back = decode(found, dtype, codes.shape)
    assert back.dtype == codes.dtype
    assert back.shape == codes.shape
    assert np.array_equal(back, codes)
    second = DECODERS[found.layout](found.parts, dtype, codes.shape, found.extra)
    assert np.array_equal(second, codes)
    if rows is not None:
        assert np.array_equal(decode(found, dtype, codes.shape, rows), codes[slice(*rows)])


def some_rows(shape: tuple[int, ...], seed: int) -> tuple[int, int] | None:
    if not shape:
        return None
    first, last = sorted(np.random.default_rng(seed).integers(0, shape[0] + 1, 2).tolist())
    return first, last


@pytest.mark.parametrize("layout", ["bitmask", "packed"])
@given(dtype=dtypes, shape=shapes, density=densities, seed=seeds)
def test_any_tensor_comes_back(layout, dtype, shape, density, seed) -> None:
    codes = weights(dtype, shape, density, seed)
    found = encode(layout, codes, dtype, shape)
    check(found, codes, dtype, some_rows(shape, seed))
    if layout != "packed":
        assert found.nbytes == LAYOUTS[layout].nbytes(survey(codes, dtype))


@pytest.mark.parametrize("layout", ["nm", "packed"])
@given(
    dtype=dtypes,
    pattern=st.sampled_from(PATTERNS),
    outer=st.integers(0, 5) | st.just(64),
    groups=st.integers(0, 5) | st.just(16),
    inner=st.sampled_from([(), (1,), (3,), (2, 3), (129,), (0,)]),
    leading=st.booleans(),
    density=densities,
    seed=seeds,
)
def test_groups_come_back(layout, dtype, pattern, outer, groups, inner, leading, density, seed):
    shape = ((outer,) if leading else ()) + (groups * pattern.m, *inner)
    axis = int(leading)
    codes = keep_n(weights(dtype, shape, density, seed), pattern.n, pattern.m, axis, seed)
    given_axis = axis - len(shape) if seed % 2 else axis
    found = encode(layout, codes, dtype, shape, pattern=pattern, axis=given_axis)
    check(found, codes, dtype, some_rows(shape, seed))
    if layout == "nm":
        assert found.nbytes == LAYOUTS["nm"].nbytes(
            survey(codes, dtype, pattern=pattern, axis=axis)
        )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_groups_of_many_blocks_come_back(pattern, axis) -> None:
    width = max(1, 3 * BLOCK // (24 * pattern.m**2)) * pattern.m
    shape = (pattern.m * 24, width)
    codes = keep_n(weights(BF16, shape, 1.0, 1), pattern.n, pattern.m, axis, 1)
    for layout in ("nm", "packed"):
        found = encode(layout, codes, BF16, shape, pattern=pattern, axis=axis)
        check(found, codes, BF16, (pattern.m + 1, pattern.m * 13 + 2))


@pytest.mark.parametrize("layout", ["bitmask", "nm", "packed"])
def test_threads_give_the_same_bytes(layout) -> None:
    shape = (640, 2048)
    codes = keep_n(weights(BF16, shape, 1.0, 5), 2, 4, 1, 5)
    with ThreadPoolExecutor(3) as pool:
        one = encode(layout, codes, BF16, shape, pattern=NM(2, 4))
        many = encode(layout, codes, BF16, shape, pattern=NM(2, 4), run=pool.map)
        assert one.extra == many.extra
        assert {k: p.data.tobytes() for k, p in one.parts.items()} == {
            k: p.data.tobytes() for k, p in many.parts.items()
        }
        out = np.full(codes.nbytes, 0xFF, np.uint8)
        reader, tensor = opened(many, BF16, shape)
        places = range(0, out.size, 99_998)

        def read(start: int) -> None:
            reader.read(tensor, start, out[start : start + 99_998])

        list(pool.map(read, places))
    assert np.array_equal(out.view(np.uint16).reshape(shape), codes)


@pytest.mark.parametrize(("name", "shape"), [("F4", (6, 4)), ("F6_E2M3", (4, 4))])
def test_types_of_less_than_a_byte_are_dense(name, shape) -> None:
    counts = survey(np.arange(12, dtype=np.uint8), DTYPES[name], shape, pattern=NM(2, 4))
    assert sizes(counts) == {"dense": 12}
    for layout in ("bitmask", "nm", "packed"):
        with pytest.raises(Misfit, match="less than a byte"):
            LAYOUTS[layout].nbytes(counts)


@pytest.mark.parametrize("name", ["BF16", "F16"])
@pytest.mark.parametrize("seed", range(3))
def test_2_4_is_what_torch_makes_of_it(name, seed) -> None:
    shape, kind = (96, 192), {"BF16": torch.bfloat16, "F16": torch.float16}[name]
    dtype = DTYPES[name]
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(kind)
    codes = keep_n(normal.view(torch.int16).numpy().view(np.uint16), 2, 4, 1, seed)
    codes[np.random.default_rng(seed).random(shape) < seed / 4] = 0  # groups with 1 and 0 left
    dense = torch.from_numpy(codes.view(np.int16).copy()).view(kind)
    values, meta = sparse_semi_structured_from_dense_cutlass(dense)
    found = encode("nm", codes, dtype, shape, pattern=NM(2, 4))
    assert found.extra == {"n": 2, "m": 4, "axis": 1, "order": "cutlass"}
    stored = array(found.parts["values"])
    assert np.array_equal(stored, values.view(torch.int16).numpy().view(np.uint16))
    assert found.parts["meta"].dtype == "I16"
    assert np.array_equal(array(found.parts["meta"]).view(np.int16), meta.numpy())
    again = sparse_semi_structured_to_dense_cutlass(values, meta)
    assert torch.equal(again.view(torch.int16), dense.view(torch.int16))
    check(found, codes, dtype, (5, 70))


@pytest.mark.parametrize("shape", [(0, 64), (32, 0), (31, 64), (32, 96), (4, 8, 64)])
def test_other_shapes_of_2_4_are_plain_or_empty(shape) -> None:
    codes = keep_n(weights(BF16, shape, 1.0, 0), 2, 4, len(shape) - 1, 0)
    found = encode("nm", codes, BF16, shape, pattern=NM(2, 4))
    assert (found.extra["order"] == "cutlass") == (0 in shape)
    check(found, codes, BF16, None)


def test_what_does_not_fit_is_refused() -> None:
    codes = np.ones((3, 8), np.uint16)
    with pytest.raises(Misfit, match="a group of 4 has 4 nonzeros, more than 2"):
        encode("nm", codes, BF16, (3, 8), pattern=NM(2, 4))
    nm = LAYOUTS["nm"]
    with pytest.raises(Misfit, match="no multiple of 4"):
        nm.nbytes(survey(codes, BF16, pattern=NM(2, 4), axis=0))
    with pytest.raises(Misfit, match="no N:M pattern"):
        nm.nbytes(survey(codes, BF16))
    with pytest.raises(Misfit, match="no axis"):
        nm.nbytes(survey(codes[0, 0], BF16, (), pattern=NM(2, 4)))
    # As many zeros as 2:4 has, elsewhere: counts alone do not tell.
    lopsided = np.tile(np.array([1, 2, 3, 0, 4, 0, 0, 0], np.uint16), (64, 64))
    for layout in ("nm", "packed"):
        with pytest.raises(Misfit, match="3 nonzeros"):
            encode(layout, lopsided, BF16, lopsided.shape, pattern=NM(2, 4))


def test_negative_zero_is_kept_and_zero_is_not() -> None:
    codes = np.array([0, 0x8000, 0, 0x8000, 0x8000, 0, 0, 0], np.uint16)
    mask = encode("bitmask", codes, BF16, (8,))
    assert mask.parts["mask"].data.tolist() == [0b00011010]
    assert array(mask.parts["values"]).tolist() == [0x8000] * 3
    nm = encode("nm", codes, BF16, (8,), pattern=NM(2, 4))
    assert array(nm.parts["values"]).tolist() == [[0x8000, 0x8000], [0x8000, 0]]


def test_the_smallest_layout_is_taken_and_dense_for_a_norm() -> None:
    ones = np.full(576, 0x3F80, np.uint16)
    noise = weights(DTYPES["I64"], (50,), 1.0, 0)
    assert by_size(sizes(survey(noise, DTYPES["I64"])))[0] == "dense"
    assert by_size(sizes(survey(ones[:40], BF16)))[0] == "dense"
    big = weights(BF16, (512, 512), 0.5, 1)
    said = sizes(survey(big, BF16))
    assert set(said) == {"dense", "bitmask", "packed"}
    assert by_size(said)[0] == "packed"
    assert by_size({"packed": 100, "dense": 190}) == ["dense", "packed"]


@pytest.mark.parametrize("layout", ["nm", "packed"])
@given(
    pattern=st.sampled_from(PATTERNS),
    outer=st.integers(1, 3),
    bands=st.integers(1, 3),
    inner=st.integers(2, 90),
    begin=st.floats(0, 1),
    length=st.floats(0, 1),
    seed=seeds,
)
def test_bands_too_large_to_hold_come_back(
    layout, pattern, outer, bands, inner, begin, length, seed
) -> None:
    shape = (outer, bands * pattern.m, inner)
    codes = keep_n(weights(BF16, shape, 1.0, seed), pattern.n, pattern.m, 1, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheme, "BLOCK", 64 * pattern.m)  # chunks of 64 groups
        found = encode(layout, codes, BF16, shape, pattern=pattern, axis=1)
        patch.setattr(groups, "WIDE_BAND", pattern.m)
        patch.setattr(nm, "BLOCK", 8 * pattern.m)
        reader, tensor = opened(found, BF16, shape)
        start = int(begin * codes.size)
        out = np.zeros(2 * int(length * (codes.size - start)), np.uint8)
        reader.read(tensor, 2 * start, out)
    assert np.array_equal(out.view(np.uint16), codes.reshape(-1)[start:][: out.size // 2])


def test_a_band_of_gigabytes_takes_little_memory() -> None:
    shape = (4, 1 << 26)
    spec = scheme.Scheme(2, "nm", Grid.of(shape, NM(2, 4), 0), 0, 1 << 16, Alphabet(1, ()))
    zeros = np.zeros((1 << 16, 4), np.uint16)
    planes = encode_chunk(spec, fixed(zeros))
    sizes = np.tile(np.array([plane.size for plane in planes], np.uint32), spec.chunks)
    data = np.tile(np.concatenate(planes), spec.chunks)
    parts = {
        "chunks": Part("U32", (spec.chunks, spec.planes), sizes.view(np.uint8)),
        "data": Part("U8", (data.size,), data),
    }
    assert sum(part.data.size for part in parts.values()) < 200_000
    reader, tensor = opened(Encoded("packed", parts, spec.extra()), BF16, shape)
    out = np.full(1 << 20, 0xFF, np.uint8)
    tracemalloc.start()
    try:
        reader.read(tensor, (1 << 28) + 12, out)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert not out.any()
