"""A second decoder of the layouts, written from their docstrings: plain numpy and zstandard.

And plain references and strategies for their tests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from prunectl.layouts.layout import Survey
from prunectl.layouts.parts import code_type
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES, DType


@dataclass(frozen=True)
class Part:
    """One stored tensor: the safetensors name of its type, its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray


def array(part: Part) -> np.ndarray:
    return np.frombuffer(part.data.tobytes(), code_type(DTYPES[part.dtype])).reshape(part.shape)


def bits_of(data: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(data, bitorder="little")[:count].astype(bool)


def ungrouped(groups: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """[groups, m] in the shape of the tensor."""
    inner = math.prod(shape[axis + 1 :])
    m = groups.shape[1]
    bands = math.prod(shape[: axis + 1]) // m
    return groups.reshape(bands, inner, m).swapaxes(1, 2).reshape(shape)


def grouped(codes: np.ndarray, m: int, axis: int) -> np.ndarray:
    axis %= codes.ndim
    inner, bands = math.prod(codes.shape[axis + 1 :]), math.prod(codes.shape[: axis + 1]) // m
    return codes.reshape(bands, m, inner).swapaxes(1, 2).reshape(bands * inner, m)


def decode_bitmask(parts: Mapping[str, Part], dtype: DType, shape: tuple[int, ...], extra: Any):
    codes = np.zeros(math.prod(shape), code_type(dtype))
    codes[bits_of(array(parts["mask"]), codes.size)] = array(parts["values"])
    return codes.reshape(shape)


def decode_nm(parts: Mapping[str, Part], dtype: DType, shape: tuple[int, ...], extra: Any):
    n, m = extra["n"], extra["m"]
    values = array(parts["values"]).reshape(-1, n)
    if extra["order"] == "cutlass":
        rows, columns = shape
        p = array(parts["meta"]).reshape(columns // 32, rows // 32, 8, 2, 2, 2)
        packed = p.transpose(1, 3, 5, 2, 0, 4).tobytes()
    else:
        packed = parts["positions"].data.tobytes()
    width = math.ceil(math.log2(m))
    stream = bits_of(np.frombuffer(packed, np.uint8), values.size * width)
    positions = stream.reshape(-1, n, width) @ (1 << np.arange(width))
    groups = np.zeros((len(values), m), values.dtype)
    np.put_along_axis(groups, positions, values, axis=1)
    return ungrouped(groups, shape, extra["axis"])


def plane(stored: bytes, size: int) -> np.ndarray:
    raw = stored if len(stored) == size else zstandard.ZstdDecompressor().decompress(stored)
    assert len(raw) == size
    return np.frombuffer(raw, np.uint8)


def digits_of(packed: np.ndarray, base: int, per_byte: int, count: int) -> np.ndarray:
    return (packed[:, None] // base ** np.arange(per_byte) % base).reshape(-1)[:count]


def decode_packed(parts: Mapping[str, Part], dtype: DType, shape: tuple[int, ...], extra: Any):
    kind = code_type(dtype)
    bits = 8 * kind.itemsize
    n, m = (extra["n"], extra["m"]) if extra["mask"] == "nm" else (1, 1)
    left = math.prod(shape) // m
    data, at = parts["data"].data.tobytes(), 0
    pieces = [np.zeros((0, m), kind)]
    for sizes in array(parts["chunks"]):
        count = min(extra["chunk"], left)
        left -= count
        stored = []
        for size in sizes:
            stored.append(data[at : at + size])
            at += size
        if extra["mask"] == "none":
            keep = np.ones((count, m), bool)
        elif extra["mask"] == "bits":
            keep = bits_of(plane(stored.pop(0), -(-count // 8)), count)[:, None]
        else:
            all_sets = sorted(itertools.combinations(range(m), n), key=lambda c: c[::-1])
            each = max((d for d in range(1, 9) if len(all_sets) ** d <= 256), default=0)
            if each:
                packed = plane(stored.pop(0), -(-count // each)).astype(int)
                numbers = digits_of(packed, len(all_sets), each, count)
            else:
                numbers = plane(stored.pop(0), count) + 256 * plane(stored.pop(0), count).astype(
                    int
                )
            keep = np.zeros((count, m), bool)
            np.put_along_axis(keep, np.array(all_sets)[numbers].reshape(count, n), True, axis=1)
        values, k = int(keep.sum()), extra["per_byte"]
        packed = plane(stored[0], -(-values // k))
        if k == 1:
            symbols = packed
        else:
            base = len(extra["symbols"]) + 1
            digits = digits_of(packed.astype(int), base, k, values)
            symbols = np.array([*extra["symbols"], 0])[digits]
            escaped = digits == base - 1
            symbols[escaped] = plane(stored[1], int(escaped.sum()))
        if bits == 8:
            codes = symbols.astype(kind)
        else:
            one, top = kind.type(1), kind.type(bits - 9)
            low = np.zeros(values, kind)
            for place, stored_low in enumerate(stored[2:]):
                low |= plane(stored_low, values).astype(kind) << kind.type(8 * place)
            rest = low & (one << top) - one
            codes = low >> top << kind.type(bits - 1) | symbols.astype(kind) << top | rest
        groups = np.zeros((count, m), kind)
        groups[keep] = codes
        pieces.append(groups)
    assert at == len(data)
    assert not left
    groups = np.concatenate(pieces)
    return ungrouped(groups, shape, extra["axis"]) if m > 1 else groups.reshape(shape)


DECODERS = {"bitmask": decode_bitmask, "nm": decode_nm, "packed": decode_packed}


def survey(
    codes: np.ndarray,
    dtype: DType,
    shape: tuple[int, ...] | None = None,
    *,
    pattern: NM | None = None,
    axis: int = -1,
) -> Survey:
    """Zeros, and the symbols of the other codes."""
    kept, bits = codes[codes != 0], 8 * codes.itemsize
    if bits > 8:
        kept = kept >> kept.dtype.type(bits - 9) & kept.dtype.type(0xFF)
    symbols = np.bincount(kept.astype(np.int64), minlength=256)
    shape = codes.shape if shape is None else shape
    return Survey(dtype, shape, codes.size - kept.size, symbols, pattern, axis)


def weights(dtype: DType, shape: tuple[int, ...], density: float, seed: int) -> np.ndarray:
    """Codes with few exponents, as trained weights have them, among all kinds of odd ones."""
    rng = np.random.default_rng(seed)
    kind = code_type(dtype)
    bits = 8 * kind.itemsize
    size = math.prod(shape)
    anything = rng.integers(0, 1 << 63, size, np.uint64) * np.uint64(2) + rng.integers(
        0, 2, size, np.uint64
    )
    codes = (anything >> np.uint64(64 - bits)).astype(kind)
    if bits > 8 and seed % 3:  # few symbols: one in all but a few
        few = rng.choice(rng.integers(0, 128, 1 + seed % 7), size).astype(kind)
        low = kind.type((1 << (bits - 9)) - 1) | kind.type(1 << (bits - 1))
        narrow = codes & low | few << kind.type(bits - 9)
        codes = np.where(rng.random(size) < 0.97, narrow, codes)
    sign = 1 << (bits - 1)
    special = np.array([sign, 1, sign | 1, sign - 1, 2 * sign - 1], kind)  # -0, subnormals, NaN
    odd = rng.random(size) < 0.02
    codes[odd] = rng.choice(special, int(odd.sum()))
    codes[rng.random(size) >= density] = 0
    return codes.reshape(shape)


def keep_n(codes: np.ndarray, n: int, m: int, axis: int, seed: int) -> np.ndarray:
    """All but ``n`` random members of each group zeroed."""
    groups = grouped(codes, m, axis).copy()
    order = np.random.default_rng(seed).random(groups.shape).argsort(axis=1)
    groups[order >= n] = 0
    return ungrouped(groups, codes.shape, axis % codes.ndim)
