"""Loops over groups of M: which members go, what that loses, whether groups follow N:M.

Kernels are made for each M, since loops of constant length are unrolled and then vectorised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from prunectl.jit import jit
from prunectl.pattern import MAX_GROUP

TILE = 512
"""Groups ranked together: small enough for L1, and for counts in 16 bits."""

assert TILE * MAX_GROUP < 1 << 16

_UNROLLED = 8
"""Largest M whose comparisons are written out; above it they run as loops over the tile."""

_inline: Callable[..., Any] = njit(nogil=True, inline="always")


@_inline
def _mark(tile, mask, n, m, drop):  # type: ignore[no-untyped-def]
    """``drop[j, t]`` = whether member j of group t is not among its n largest.

    Branch-free: a member goes if at least n others beat it, and of equals the lower index wins.
    """
    kind = tile.dtype.type
    none, one = kind(0), kind(1)
    width = tile.shape[1]
    if m <= _UNROLLED:
        for t in range(width):
            for j in range(m):
                mine = tile[j, t] & mask
                beaten = none
                for i in range(m):
                    other = tile[i, t] & mask
                    if i < j:
                        beaten = kind(beaten + (one if other >= mine else none))
                    elif i > j:
                        beaten = kind(beaten + (one if other > mine else none))
                drop[j, t] = one if beaten >= n else none
    else:
        _mark_large(tile, mask, n, m, drop)


@jit
def _mark_large(tile, mask, n, m, drop):  # type: ignore[no-untyped-def]
    kind = tile.dtype.type
    none, one = kind(0), kind(1)
    width = tile.shape[1]
    beaten = np.empty(width, tile.dtype)
    for j in range(m):
        mine = tile[j]
        beaten[:] = none
        for i in range(m):
            other = tile[i]
            if i < j:
                for t in range(width):
                    beaten[t] = kind(
                        beaten[t] + (one if other[t] & mask >= mine[t] & mask else none)
                    )
            elif i > j:
                for t in range(width):
                    beaten[t] = kind(
                        beaten[t] + (one if other[t] & mask > mine[t] & mask else none)
                    )
        for t in range(width):
            drop[j, t] = one if beaten[t] >= n else none


@functools.cache
def nm_flat(m: int) -> Any:
    """Kernel (codes_1d, mask, n) -> zeros: groups are m consecutive codes."""

    @jit
    def kernel(codes, mask, n):  # type: ignore[no-untyped-def]
        kind = codes.dtype.type
        none, one = kind(0), kind(1)
        tile = np.zeros((m, TILE), codes.dtype)
        drop = np.empty((m, TILE), codes.dtype)
        zeros = np.int64(0)
        for start in range(0, codes.size, m * TILE):
            part = codes[start : start + m * TILE]
            groups = part.size // m
            for t in range(groups):
                for j in range(m):
                    tile[j, t] = part[t * m + j]
            _mark(tile, mask, n, m, drop)
            z = none
            for t in range(groups):
                for j in range(m):
                    new = none if drop[j, t] else tile[j, t]
                    part[t * m + j] = new
                    z = kind(z + (one if new & mask == none else none))
            zeros += np.int64(z)
        return zeros

    return kernel


@functools.cache
def nm_strided(m: int) -> Any:
    """Kernel (codes_3d, mask, n) -> zeros: groups run along the middle axis."""

    @jit
    def kernel(codes, mask, n):  # type: ignore[no-untyped-def]
        kind = codes.dtype.type
        none, one = kind(0), kind(1)
        outer, axis, inner = codes.shape
        tile = np.zeros((m, TILE), codes.dtype)
        drop = np.empty((m, TILE), codes.dtype)
        zeros = np.int64(0)
        for o in range(outer):
            for g in range(0, axis, m):
                for c in range(0, inner, TILE):
                    width = min(TILE, inner - c)
                    for j in range(m):
                        line, copy = codes[o, g + j][c : c + width], tile[j]
                        for t in range(width):
                            copy[t] = line[t]
                    _mark(tile, mask, n, m, drop)
                    z = none
                    for j in range(m):
                        line, copy, gone = codes[o, g + j][c : c + width], tile[j], drop[j]
                        for t in range(width):
                            new = none if gone[t] else copy[t]
                            line[t] = new
                            z = kind(z + (one if new & mask == none else none))
                    zeros += np.int64(z)
        return zeros

    return kernel


@jit
def _add_losses(tile, drop, width, mask, inf, shift, scale, bits, reals, lanes):  # type: ignore[no-untyped-def]
    """Add squares of dropped finite weights to ``lanes`` f64[TILE]; returns zeros afterwards.

    ``reals`` is ``bits`` seen as floats: a small float shifted to the top of a larger one is its
    value but for a power of two, ``scale`` (subnormals too).
    """
    none = tile.dtype.type(0)
    zeros = np.uint32(0)
    for j in range(tile.shape[0]):
        line, gone = tile[j], drop[j]
        for t in range(width):
            magnitude = line[t] & mask
            lost = gone[t] != none and magnitude < inf
            bits[t] = (bits.dtype.type(magnitude) << shift) if lost else bits.dtype.type(0)
        for t in range(width):
            value = np.float64(reals[t]) * scale
            lanes[t] += value * value
        for t in range(width):
            empty = gone[t] != none or line[t] & mask == none
            zeros = np.uint32(zeros + (np.uint32(1) if empty else np.uint32(0)))
    return np.int64(zeros)


@functools.cache
def loss_flat(m: int) -> Any:
    """Kernel: what :func:`nm_flat` would lose; adds to ``lanes`` and returns zeros afterwards."""

    @jit
    def kernel(codes, mask, n, inf, shift, scale, bits, reals, lanes):  # type: ignore[no-untyped-def]
        tile = np.zeros((m, TILE), codes.dtype)
        drop = np.empty((m, TILE), codes.dtype)
        zeros = np.int64(0)
        for start in range(0, codes.size, m * TILE):
            part = codes[start : start + m * TILE]
            groups = part.size // m
            for t in range(groups):
                for j in range(m):
                    tile[j, t] = part[t * m + j]
            _mark(tile, mask, n, m, drop)
            zeros += _add_losses(tile, drop, groups, mask, inf, shift, scale, bits, reals, lanes)
        return zeros

    return kernel


@functools.cache
def loss_strided(m: int) -> Any:
    """As :func:`loss_flat` for groups along the middle axis."""

    @jit
    def kernel(codes, mask, n, inf, shift, scale, bits, reals, lanes):  # type: ignore[no-untyped-def]
        outer, axis, inner = codes.shape
        tile = np.zeros((m, TILE), codes.dtype)
        drop = np.empty((m, TILE), codes.dtype)
        zeros = np.int64(0)
        for o in range(outer):
            for g in range(0, axis, m):
                for c in range(0, inner, TILE):
                    width = min(TILE, inner - c)
                    for j in range(m):
                        line, copy = codes[o, g + j][c : c + width], tile[j]
                        for t in range(width):
                            copy[t] = line[t]
                    _mark(tile, mask, n, m, drop)
                    zeros += _add_losses(
                        tile, drop, width, mask, inf, shift, scale, bits, reals, lanes
                    )
        return zeros

    return kernel


@functools.cache
def violations_flat(m: int) -> Any:
    """Kernel (codes_1d, mask, n) -> groups of m consecutive codes with more than n nonzeros."""

    @jit
    def kernel(codes, mask, n):  # type: ignore[no-untyped-def]
        kind = codes.dtype.type
        none, one = kind(0), kind(1)
        bad = np.int64(0)
        for start in range(0, codes.size, m * TILE):
            part = codes[start : start + m * TILE]
            b = none
            for t in range(part.size // m):
                kept = none
                for j in range(m):
                    kept = kind(kept + (one if part[t * m + j] & mask else none))
                b = kind(b + (one if kept > n else none))
            bad += np.int64(b)
        return bad

    return kernel


@jit
def violations_strided(codes, mask, n, m):  # type: ignore[no-untyped-def]
    """As :func:`violations_flat` for groups along the middle axis."""
    outer, axis, inner = codes.shape
    kept = np.empty(inner, np.int32)
    bad = np.int64(0)
    for o in range(outer):
        for g in range(0, axis, m):
            kept[:] = 0
            for j in range(m):
                line = codes[o, g + j]
                for c in range(inner):
                    kept[c] += np.int32(1) if line[c] & mask else np.int32(0)
            for c in range(inner):
                bad += 1 if kept[c] > n else 0
    return bad
