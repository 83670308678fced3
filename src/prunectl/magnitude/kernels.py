"""Compiled loops over codes. All of them release the GIL and keep no state between calls.

Two habits make the compiler vectorise: counters have the width of the codes (so each chunk is short
enough for them not to overflow), and float sums run in fixed lanes (so the order of additions, and
with it every bit of the result, is the same on every machine; no fastmath).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_CHUNK = 4096
"""Elements in one inner loop: they fit L1 and the counts fit 16 bits."""

_TILE = 512
"""Groups ranked together; ``_TILE * MAX_GROUP`` fits 16 bits."""

_UNROLLED = 8
"""Largest M whose comparisons are written out; above it they run as loops over the tile."""

LANES = 8
"""Float accumulators of a sum."""

_jit: Callable[..., Any] = njit(nogil=True, cache=True)
_inline: Callable[..., Any] = njit(nogil=True, inline="always")


# --- counting -------------------------------------------------------------------------------


@_jit
def tally(codes, hist):  # type: ignore[no-untyped-def]
    """Add codes to ``hist`` u32[4, 2**bits]: four tables, since repeats of one code would wait."""
    n = codes.size
    whole = n - n % 4
    h0, h1, h2, h3 = hist[0], hist[1], hist[2], hist[3]
    for i in range(0, whole, 4):
        h0[codes[i]] += 1
        h1[codes[i + 1]] += 1
        h2[codes[i + 2]] += 1
        h3[codes[i + 3]] += 1
    for i in range(whole, n):
        h0[codes[i]] += 1


@_jit
def coarse(codes, reals, mask, inf, nan, shift, table, lanes):  # type: ignore[no-untyped-def]
    """Coarse histogram of finite magnitudes, with energies and sums.

    ``table`` f64[2**16, 2] gets count and sum of squares of each ``magnitude >> shift``; ``lanes``
    f64[LANES] the sum. Returns zeros, nans, infs.
    """
    zeros, nans, infs = 0, 0, 0
    for start in range(0, codes.size, _CHUNK):
        part = codes[start : start + _CHUNK]
        real = reals[start : start + _CHUNK]
        none = part.dtype.type(0)
        one = part.dtype.type(1)
        z, odd = none, none
        for i in range(part.size):
            magnitude = part[i] & mask
            z = part.dtype.type(z + (one if magnitude == none else none))
            odd = part.dtype.type(odd + (one if magnitude >= inf else none))
        zeros += np.int64(z)
        if odd == none:
            whole = part.size - part.size % LANES
            for i in range(0, whole, LANES):
                for lane in range(LANES):
                    lanes[lane] += np.float64(real[i + lane])
            for i in range(whole, part.size):
                lanes[i - whole] += np.float64(real[i])
            for i in range(part.size):
                bucket = (part[i] & mask) >> shift
                value = np.float64(real[i])
                table[bucket, 0] += 1.0
                table[bucket, 1] += value * value
        else:
            for i in range(part.size):
                magnitude = part[i] & mask
                if magnitude >= nan:
                    nans += 1
                elif magnitude >= inf:
                    infs += 1
                else:
                    value = np.float64(real[i])
                    lanes[i % LANES] += value
                    table[magnitude >> shift, 0] += 1.0
                    table[magnitude >> shift, 1] += value * value
    return zeros, nans, infs


@_jit
def extremes(codes, mask, nan, low, high):  # type: ignore[no-untyped-def]
    """Smallest and largest of the codes that are not NaN, as keys: unsigned, ordered as the values.

    ``low`` and ``high`` are the keys so far. Key: all bits flipped if negative, else the sign bit.
    """
    kind = codes.dtype.type
    sign = kind(~mask)
    for i in range(codes.size):
        code = codes[i]
        key = kind(~code) if code & sign else kind(code | sign)
        bad = (code & mask) >= nan
        low = min(low, high if bad and high < low else (low if bad else key))
        high = max(high, high if bad else key)
    return low, high


# --- refining -------------------------------------------------------------------------------


@_jit
def collect(codes, begin, mask, shift, first, starts, logs, out):  # type: ignore[no-untyped-def]
    """Append magnitudes that fall into any bin to ``out``; returns (next index, how many).

    ``first`` i32[2**16]: by top 16 bits, the first bin (sorted ``starts``, ``logs``) with them, or
    -1. Stops early when ``out`` is full.
    """
    found = 0
    for i in range(begin, codes.size):
        magnitude = codes[i] & mask
        k = first[magnitude >> shift]
        if k >= 0:
            while k < starts.size and starts[k] <= magnitude:
                if (magnitude - starts[k]) >> logs[k] == 0:
                    if found == out.size:
                        return i, found
                    out[found] = magnitude
                    found += 1
                    break
                k += 1
    return codes.size, found


# --- unstructured masks ---------------------------------------------------------------------


@_jit
def cut(codes, mask, code, quota):  # type: ignore[no-untyped-def]
    """Zero magnitudes below ``code`` and the first ``quota`` equal to it; (zeros, ties used)."""
    kind = codes.dtype.type
    none, one = kind(0), kind(1)
    zeros, used = 0, 0
    for start in range(0, codes.size, _CHUNK):
        part = codes[start : start + _CHUNK]
        left = quota - used
        every = left >= part.size
        limit = kind(code + one) if every else code
        z, ties = none, none
        for i in range(part.size):
            old = part[i]
            magnitude = old & mask
            new = none if magnitude < limit else old
            part[i] = new
            z = kind(z + (one if new & mask == none else none))
            ties = kind(ties + (one if magnitude == code else none))
        zeros += np.int64(z)
        if every:
            used += np.int64(ties)
        elif left > 0 and ties > 0:
            taken = _cut_ties(part, mask, code, np.int64(ties), left)
            used += taken
            zeros += taken if code > 0 else 0
    return zeros, used


@_jit
def _cut_ties(part, mask, code, ties, left):  # type: ignore[no-untyped-def]
    none = part.dtype.type(0)
    if ties <= left:
        for i in range(part.size):
            old = part[i]
            part[i] = none if old & mask == code else old
        return ties
    todo = left
    for i in range(part.size):
        if part[i] & mask == code:
            part[i] = none
            todo -= 1
            if todo == 0:
                break
    return left


@_jit
def count_less(codes, mask, code):  # type: ignore[no-untyped-def]
    """How many magnitudes are below ``code``."""
    kind = codes.dtype.type
    total = 0
    for start in range(0, codes.size, _CHUNK):
        part = codes[start : start + _CHUNK]
        n = kind(0)
        for i in range(part.size):
            n = kind(n + (kind(1) if part[i] & mask < code else kind(0)))
        total += np.int64(n)
    return total


@_jit
def cut_rows(rows, mask, k, bits):  # type: ignore[no-untyped-def]
    """Zero the ``k`` smallest of each row of ``rows`` [R, n]; returns zeros.

    The k-th smallest comes from bisection on its bits: each step is one vectorised count.
    """
    kind = rows.dtype.type
    zeros = 0
    for r in range(rows.shape[0]):
        row = rows[r]
        present = count_less(row, mask, kind(1))
        if present >= k:
            zeros += present
            continue
        code, below = kind(0), 0
        for step in range(bits - 1):
            trial = kind(code | kind(kind(1) << kind(bits - 2 - step)))
            n = count_less(row, mask, trial)
            if n < k:
                code, below = trial, n
        done, _ = cut(row, mask, code, k - below)
        zeros += done
    return zeros


@_jit
def cut_columns(codes, mask, k, bits):  # type: ignore[no-untyped-def]
    """As :func:`cut_rows` for rows that run along the middle axis of [outer, n, inner]."""
    kind = codes.dtype.type
    none = kind(0)
    outer, n, inner = codes.shape
    zeros = 0
    present = np.empty(inner, np.int32)
    less = np.empty(inner, np.int32)
    below = np.empty(inner, np.int32)
    code = np.empty(inner, codes.dtype)
    for o in range(outer):
        _columns_less(codes[o], mask, np.ones(inner, codes.dtype), present)
        code[:] = 0
        below[:] = 0
        for step in range(bits - 1):
            bit = kind(kind(1) << kind(bits - 2 - step))
            _columns_less(codes[o], mask, code | bit, less)
            for c in range(inner):
                if less[c] < k:
                    code[c] |= bit
                    below[c] = less[c]
        for c in range(inner):
            code[c] = none if present[c] >= k else code[c]
            below[c] = 0 if present[c] >= k else k - below[c]
            zeros += max(np.int64(present[c]), np.int64(k))
        for j in range(n):
            line = codes[o, j]
            for c in range(inner):
                magnitude = line[c] & mask
                tie = magnitude == code[c] and below[c] > 0
                below[c] -= np.int32(1) if tie else np.int32(0)
                line[c] = none if tie or magnitude < code[c] else line[c]
    return zeros


@_jit
def _columns_less(lines, mask, limits, counts):  # type: ignore[no-untyped-def]
    counts[:] = 0
    for j in range(lines.shape[0]):
        line = lines[j]
        for c in range(line.size):
            counts[c] += np.int32(1) if line[c] & mask < limits[c] else np.int32(0)


# --- N:M ------------------------------------------------------------------------------------


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


@_jit
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

    @_jit
    def kernel(codes, mask, n):  # type: ignore[no-untyped-def]
        kind = codes.dtype.type
        none, one = kind(0), kind(1)
        tile = np.zeros((m, _TILE), codes.dtype)
        drop = np.empty((m, _TILE), codes.dtype)
        zeros = 0
        for start in range(0, codes.size, m * _TILE):
            part = codes[start : start + m * _TILE]
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

    @_jit
    def kernel(codes, mask, n):  # type: ignore[no-untyped-def]
        kind = codes.dtype.type
        none, one = kind(0), kind(1)
        outer, axis, inner = codes.shape
        tile = np.zeros((m, _TILE), codes.dtype)
        drop = np.empty((m, _TILE), codes.dtype)
        zeros = 0
        for o in range(outer):
            for g in range(0, axis, m):
                for c in range(0, inner, _TILE):
                    part = codes[o, g : g + m, c : c + _TILE]
                    for j in range(m):
                        tile[j, : part.shape[1]] = part[j]
                    _mark(tile, mask, n, m, drop)
                    z = none
                    for j in range(m):
                        for t in range(part.shape[1]):
                            new = none if drop[j, t] else tile[j, t]
                            part[j, t] = new
                            z = kind(z + (one if new & mask == none else none))
                    zeros += np.int64(z)
        return zeros

    return kernel


@_jit
def _add_losses(tile, drop, width, mask, inf, shift, scale, bits, reals, lanes):  # type: ignore[no-untyped-def]
    """Add squares of dropped finite weights to ``lanes`` f64[_TILE]; returns zeros afterwards.

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

    @_jit
    def kernel(codes, mask, n, inf, shift, scale, bits, reals, lanes):  # type: ignore[no-untyped-def]
        tile = np.zeros((m, _TILE), codes.dtype)
        drop = np.empty((m, _TILE), codes.dtype)
        zeros = 0
        for start in range(0, codes.size, m * _TILE):
            part = codes[start : start + m * _TILE]
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

    @_jit
    def kernel(codes, mask, n, inf, shift, scale, bits, reals, lanes):  # type: ignore[no-untyped-def]
        outer, axis, inner = codes.shape
        tile = np.zeros((m, _TILE), codes.dtype)
        drop = np.empty((m, _TILE), codes.dtype)
        zeros = 0
        for o in range(outer):
            for g in range(0, axis, m):
                for c in range(0, inner, _TILE):
                    part = codes[o, g : g + m, c : c + _TILE]
                    width = part.shape[1]
                    for j in range(m):
                        tile[j, :width] = part[j]
                    _mark(tile, mask, n, m, drop)
                    zeros += _add_losses(
                        tile, drop, width, mask, inf, shift, scale, bits, reals, lanes
                    )
        return zeros

    return kernel


TILE = _TILE


# --- checking -------------------------------------------------------------------------------


@_jit
def violations_flat(codes, mask, n, m):  # type: ignore[no-untyped-def]
    """Groups of m consecutive codes with more than n nonzeros."""
    bad = 0
    for start in range(0, codes.size, m):
        kept = 0
        for j in range(m):
            kept += 1 if codes[start + j] & mask else 0
        bad += 1 if kept > n else 0
    return bad


@_jit
def violations_strided(codes, mask, n, m):  # type: ignore[no-untyped-def]
    """As :func:`violations_flat` for groups along the middle axis."""
    outer, axis, inner = codes.shape
    kept = np.empty(inner, np.int32)
    bad = 0
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


@_jit
def compare(source, output, mask):  # type: ignore[no-untyped-def]
    """(zeros, changed, pruned, largest pruned, smallest kept nonzero); mask + 1 and 0 if none.

    The largest pruned is returned plus one, so that 0 says none.
    """
    kind = source.dtype.type
    none, one = kind(0), kind(1)
    zeros, changed, pruned = 0, 0, 0
    largest, smallest = none, kind(mask + one)
    for start in range(0, source.size, _CHUNK):
        before = source[start : start + _CHUNK]
        after = output[start : start + _CHUNK]
        z, c, p = none, none, none
        for i in range(before.size):
            old, new = before[i], after[i]
            same = old == new
            gone = new == none
            magnitude = new & mask
            z = kind(z + (one if magnitude == none else none))
            c = kind(c + (none if same or gone else one))
            p = kind(p + (one if gone and not same else none))
            largest = max(largest, kind((old & mask) + one) if gone and not same else none)
            kept = same and magnitude != none
            smallest = min(smallest, magnitude if kept else kind(mask + one))
        zeros += np.int64(z)
        changed += np.int64(c)
        pruned += np.int64(p)
    return zeros, changed, pruned, largest, smallest
