"""Parts that nobody encoded: an error with a sentence, or some tensor of the right shape."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from layouts_reference import Part, keep_n, weights
from layouts_shipped import Encoded, decode, encode

from prunectl.errors import BadCheckpoint
from prunectl.layouts.errors import Damaged
from prunectl.layouts.packing import coding
from prunectl.layouts.packing.planes import expanded, squeezed
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES

BF16 = DTYPES["BF16"]
SHAPE = (64, 128)

CASES: dict[str, tuple[str, NM | None, int]] = {
    "bitmask": ("bitmask", None, -1),
    "nm, cutlass": ("nm", NM(2, 4), -1),
    "nm, plain": ("nm", NM(3, 8), 0),
    "packed, mask bits": ("packed", None, -1),
    "packed, 2:4": ("packed", NM(2, 4), -1),
    "packed, 8:16": ("packed", NM(8, 16), 0),
    "packed, 1:2": ("packed", NM(1, 2), 1),
}


def encoded(case: str, density: float = 0.6) -> tuple[Encoded, np.ndarray]:
    layout, pattern, axis = CASES[case]
    codes = weights(BF16, SHAPE, 1.0 if pattern else density, 1)
    if pattern is not None:
        codes = keep_n(codes, pattern.n, pattern.m, axis, 3)
    return encode(layout, codes, BF16, SHAPE, pattern=pattern, axis=axis), codes


def decoded(found: Encoded) -> None:
    """Decode all and some rows; an array must have the right shape."""
    for rows in (None, (5, 41)):
        with contextlib.suppress(BadCheckpoint):
            decode(found, BF16, SHAPE, rows)


def damage(part: Part, how: str, place: int, value: int) -> Part:
    """A part with other bytes; its header says what its bytes are, or does not."""
    data = part.data.copy()
    width = data.size // max(1, int(np.prod(part.shape)))
    if how == "flip" and data.size:
        data[place % data.size] ^= value
        return replace(part, data=data)
    if how == "truncate":
        data = data[: data.size - width * (1 + place % 9)]
    elif how == "extend":
        data = np.append(data, np.full(width * (1 + place % 9), value, np.uint8))
    elif how == "dtype":
        return replace(part, dtype=["U8", "I16", "BF16", "F4", "F32"][place % 5])
    elif how == "shape":
        return replace(part, shape=(*part.shape, 1))
    shape = (data.size // width,) if len(part.shape) == 1 else part.shape
    return replace(part, data=data, shape=shape)


@pytest.mark.parametrize("case", CASES)
@given(
    suffix=st.integers(0, 1),
    how=st.sampled_from(["flip", "flip", "truncate", "extend", "dtype", "shape"]),
    place=st.integers(0, 1 << 20),
    value=st.integers(1, 255),
)
def test_damaged_parts_are_refused_or_give_a_tensor(case, suffix, how, place, value) -> None:
    found, _ = encoded(case)
    name = sorted(found.parts)[suffix]
    parts = found.parts | {name: damage(found.parts[name], how, place, value)}
    decoded(replace(found, parts=parts))


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([1 << 24, 1 << 40, -(1 << 70), 1.5, "nm", "bits", "none", "plain", "cutlass"]),
    st.lists(st.integers(-1, 256), max_size=20),
)


@pytest.mark.parametrize("case", CASES)
@given(place=st.integers(0, 6), value=anything, drop=st.booleans())
def test_damaged_parameters_are_refused_or_give_a_tensor(case, place, value, drop) -> None:
    found, _ = encoded(case)
    if not found.extra:
        return
    key = sorted(found.extra)[place % len(found.extra)]
    extra: dict[str, Any] = dict(found.extra)
    if drop:
        del extra[key]
    else:
        extra[key] = value
    decoded(replace(found, extra=extra))


@pytest.mark.parametrize("case", CASES)
def test_missing_parts_are_refused(case) -> None:
    found, _ = encoded(case)
    for name in found.parts:
        parts = {k: p for k, p in found.parts.items() if k != name}
        with pytest.raises(BadCheckpoint, match=name):
            decode(replace(found, parts=parts), BF16, SHAPE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(64, 127), (63, 128), (64,), (), (0, 128), (1 << 40, 1 << 30)])
def test_another_shape_is_refused(case, shape) -> None:
    found, _ = encoded(case)
    with pytest.raises(BadCheckpoint, match="tensor 'w' is damaged"):
        decode(found, BF16, shape)


def test_the_mask_and_the_values_must_agree() -> None:
    found, _ = encoded("bitmask")
    mask = found.parts["mask"].data.copy()
    place = int(np.flatnonzero(mask != 0xFF)[0])
    mask[place] |= mask[place] + 1  # one more
    parts = found.parts | {"mask": replace(found.parts["mask"], data=mask)}
    with pytest.raises(BadCheckpoint, match="the part 'values' is"):
        decode(replace(found, parts=parts), BF16, SHAPE)
    odd = encode("bitmask", np.ones(5, np.uint16), BF16, (5,))
    late = replace(odd.parts["mask"], data=np.array([0b111111], np.uint8))
    with pytest.raises(BadCheckpoint, match="after the last weight"):
        decode(replace(odd, parts=odd.parts | {"mask": late}), BF16, (5,))


@pytest.mark.parametrize("case", ["nm, cutlass", "nm, plain"])
def test_positions_must_ascend_inside_the_group(case) -> None:
    found, _ = encoded(case)
    name = "meta" if "meta" in found.parts else "positions"
    zeros = replace(found.parts[name], data=np.zeros_like(found.parts[name].data))
    with pytest.raises(BadCheckpoint, match="do not ascend"):
        decode(replace(found, parts=found.parts | {name: zeros}), BF16, SHAPE)


def test_positions_outside_of_a_group_are_refused() -> None:
    codes = keep_n(weights(BF16, (8, 5), 1.0, 1), 3, 5, 1, 0)
    found = encode("nm", codes, BF16, (8, 5), pattern=NM(3, 5))
    sevens = replace(found.parts["positions"], data=np.full(9, 0b10101100, np.uint8))
    with pytest.raises(BadCheckpoint, match="do not ascend below 5"):
        decode(replace(found, parts=found.parts | {"positions": sevens}), BF16, (8, 5))


def test_bits_after_the_last_position_are_zero() -> None:
    codes = keep_n(weights(BF16, (3, 5), 1.0, 1), 3, 5, 1, 0)
    found = encode("nm", codes, BF16, (3, 5), pattern=NM(3, 5))
    data = found.parts["positions"].data.copy()
    assert data.size * 8 - 3 * 3 * 3 == 5
    data[-1] |= 0x80
    late = replace(found.parts["positions"], data=data)
    with pytest.raises(BadCheckpoint, match="ones after the last"):
        decode(replace(found, parts=found.parts | {"positions": late}), BF16, (3, 5))


PADDED = {"bitmask": "mask", "nm, plain": "positions", "packed, 2:4": "data"}


@pytest.mark.parametrize("padding", [1, 7])
@pytest.mark.parametrize("case", PADDED)
def test_padding_is_zero(case, padding) -> None:
    layout, pattern, axis = CASES[case]
    _, codes = encoded(case)
    found = encode(layout, codes, BF16, SHAPE, pattern=pattern, axis=axis, padding=padding)
    if layout == "packed":  # whose large part comes last
        table = found.parts["chunks"]
        assert int(table.data.view(np.uint32).sum()) + padding == found.parts["data"].data.size
    assert np.array_equal(decode(found, BF16, SHAPE), codes)
    part = found.parts[PADDED[case]]
    data = part.data.copy()
    data[-1] = 1
    parts = found.parts | {PADDED[case]: replace(part, data=data)}
    with pytest.raises(BadCheckpoint, match="other than zero after its end"):
        decode(replace(found, parts=parts), BF16, SHAPE)


def test_more_than_seven_bytes_are_no_padding() -> None:
    layout, pattern, axis = CASES["nm, plain"]
    _, codes = encoded("nm, plain")
    found = encode(layout, codes, BF16, SHAPE, pattern=pattern, axis=axis, padding=8)
    with pytest.raises(BadCheckpoint, match="the part 'positions' is U8"):
        decode(found, BF16, SHAPE)


@pytest.mark.parametrize("layout", ["nm", "packed"])
def test_an_empty_tensor_has_empty_groups(layout) -> None:
    codes = np.zeros((4, 0), np.uint16)
    found = encode(layout, codes, BF16, (4, 0), pattern=NM(2, 4), axis=0)
    assert decode(found, BF16, (4, 0)).shape == (4, 0)


def test_no_memory_to_decode_is_an_error_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = encoded("packed, 2:4")

    def empty(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(coding, "decode_chunk", empty)
    with pytest.raises(BadCheckpoint, match="tensor 'w' does not fit in memory"):
        decode(found, BF16, SHAPE)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < 1 << 15
    stored = np.frombuffer(bomb, np.uint8)
    with pytest.raises(Damaged, match="declares 268435456 bytes, where 32768 are expected"):
        expanded(stored, 1 << 15)
    # A frame that declares no size could hold anything.
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    with pytest.raises(Damaged, match="declares"):
        expanded(np.frombuffer(unsaid, np.uint8), 1 << 20)


def test_a_frame_must_be_all_that_is_stored_of_its_plane() -> None:
    frame = squeezed(np.zeros(5000, np.uint8))
    assert frame.size < 5000
    assert not expanded(frame, 5000).any()
    with pytest.raises(Damaged, match="cannot be read"):
        expanded(np.append(frame, np.zeros(3, np.uint8)), 5000)
    with pytest.raises(Damaged):
        expanded(frame[:-1], 5000)
    with pytest.raises(Damaged, match="are stored for a plane of 2"):
        expanded(frame, 2)


def test_chunk_sizes_that_overflow_their_sum_are_refused() -> None:
    found, _ = encoded("packed, mask bits")
    table = found.parts["chunks"].data.view(np.uint32).copy()
    table[:] = 0xFFFFFFFF
    parts = found.parts | {"chunks": replace(found.parts["chunks"], data=table.view(np.uint8))}
    with pytest.raises(BadCheckpoint, match="the part 'data' is"):
        decode(replace(found, parts=parts), BF16, SHAPE)
