"""Loops that drop zeros and restore them."""

from __future__ import annotations

import numpy as np

from prunectl.jit import jit


@jit
def compact(codes, mask, values):  # type: ignore[no-untyped-def]
    """Write mask bits and the nonzero codes, in order; return the number of nonzero codes.

    ``values`` has the size of ``codes``: every code is written to the next place, and the place
    advances only after a nonzero one, which avoids a branch.
    """
    none, one = codes.dtype.type(0), np.uint64(1)
    k = np.uint64(0)
    whole = codes.size // 8
    for b in range(whole):
        part = codes[8 * b : 8 * b + 8]
        byte = np.uint8(0)
        for j in range(8):
            code = part[j]
            keep = np.uint8(1) if code != none else np.uint8(0)
            values[k] = code
            k += np.uint64(keep)
            byte |= np.uint8(keep << np.uint8(j))
        mask[b] = byte
    if 8 * whole < codes.size:
        byte = np.uint8(0)
        for j in range(codes.size - 8 * whole):
            code = codes[8 * whole + j]
            if code != none:
                values[k] = code
                k += one
                byte |= np.uint8(np.uint8(1) << np.uint8(j))
        mask[whole] = byte
    return k


@jit
def scatter(mask, values, out):  # type: ignore[no-untyped-def]
    """Invert :func:`compact`: ``values`` where mask bits are set, zero elsewhere.

    There are as many values as set bits among the first ``out.size``.
    """
    kind = out.dtype.type
    none, one, eight = kind(0), np.uint64(1), np.uint64(8)
    k, size = np.uint64(0), np.uint64(values.size)
    whole = out.size // 8
    for b in range(whole):
        byte = np.uint64(mask[b])
        part = out[8 * b : 8 * b + 8]
        if k + eight <= size:
            for j in range(8):
                bit = byte >> np.uint64(j) & one
                part[j] = values[k] * kind(bit)
                k += bit
        else:
            for j in range(8):
                part[j] = none
                if byte >> np.uint64(j) & one:
                    part[j] = values[k]
                    k += one
    for j in range(out.size - 8 * whole):
        out[8 * whole + j] = none
        if np.uint64(mask[whole]) >> np.uint64(j) & one:
            out[8 * whole + j] = values[k]
            k += one


@jit
def count_kept(codes):  # type: ignore[no-untyped-def]
    """The number of nonzero codes."""
    kind = codes.dtype.type
    total = np.int64(0)
    # Counters as wide as the codes vectorize, and do not overflow within so short a run.
    step = 128 if codes.itemsize == 1 else 4096
    for start in range(0, codes.size, step):
        part = codes[start : start + step]
        kept = kind(0)
        for i in range(part.size):
            kept = kind(kept + (kind(1) if part[i] != kind(0) else kind(0)))
        total += np.int64(kept)
    return total
