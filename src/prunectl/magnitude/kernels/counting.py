"""Loops that count, sum, collect and compare codes."""

from __future__ import annotations

import numpy as np

from prunectl.jit import jit

_CHUNK = 4096
"""Elements in one inner loop: they fit L1 and the counts fit 16 bits."""

LANES = 8
"""Float accumulators of a sum."""


@jit
def tally(codes, hist):  # type: ignore[no-untyped-def]
    """Add codes to ``hist`` u32[2, 2**bits].

    Two tables, since repeats of one code wait for each other; not more, for the sake of the cache.
    """
    whole = codes.size - codes.size % 2
    even, odd = hist[0], hist[1]
    for i in range(0, whole, 2):
        even[codes[i]] += 1
        odd[codes[i + 1]] += 1
    if whole < codes.size:
        even[codes[whole]] += 1


@jit
def coarse(codes, reals, mask, inf, nan, shift, table, lanes):  # type: ignore[no-untyped-def]
    """Coarse histogram of finite magnitudes, with energies and sums.

    ``table`` f64[2**16, 2] gets count and sum of squares of each ``magnitude >> shift``; ``lanes``
    f64[LANES] the sum. Returns zeros, nans, infs.
    """
    zeros, nans, infs = np.int64(0), np.int64(0), np.int64(0)
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


@jit
def extremes(codes, mask):  # type: ignore[no-untyped-def]
    """Smallest and largest code (no NaN among them, not empty) as keys, ordered as the values.

    Key: all bits flipped if the sign is set, else the sign bit set.
    """
    kind = codes.dtype.type
    sign = kind(~mask)
    low, high = kind(~kind(0)), kind(0)
    for i in range(codes.size):
        code = codes[i]
        key = kind(~code) if code & sign else kind(code | sign)
        low = min(low, key)
        high = max(high, key)
    return low, high


@jit
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


@jit
def compare(source, output, mask):  # type: ignore[no-untyped-def]
    """(zeros, changed, pruned, largest pruned magnitude + 1, smallest nonzero kept one - 1).

    The last two are 0 and all ones if there is none. Conditions are 0/1 factors: chained selects
    would not vectorise.
    """
    kind = source.dtype.type
    none, one = kind(0), kind(1)
    zeros, changed, pruned = np.int64(0), np.int64(0), np.int64(0)
    largest, smallest = none, kind(~none)
    for start in range(0, source.size, _CHUNK):
        before = source[start : start + _CHUNK]
        after = output[start : start + _CHUNK]
        z, c, p = none, none, none
        for i in range(before.size):
            old, new = before[i], after[i]
            differs, cleared = kind(old != new), kind(new == none)
            gone = kind(differs & cleared)
            z = kind(z + kind(new & mask == none))
            c = kind(c + kind(differs - gone))
            p = kind(p + gone)
            largest = max(largest, kind(kind((old & mask) + one) * gone))
            smallest = min(smallest, kind(kind((new & mask) - one) | kind(none - differs)))
        zeros += np.int64(z)
        changed += np.int64(c)
        pruned += np.int64(p)
    return zeros, changed, pruned, largest, smallest
