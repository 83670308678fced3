"""Loops that zero what is below a threshold, of all codes or of each row."""

from __future__ import annotations

import numpy as np

from prunectl.jit import jit

_CHUNK = 4096
"""Elements in one inner loop: they fit L1 and the counts fit 16 bits."""


@jit
def cut(codes, mask, code, quota):  # type: ignore[no-untyped-def]
    """Zero magnitudes below ``code`` and the first ``quota`` equal to it; (zeros, ties used)."""
    kind = codes.dtype.type
    none, one = kind(0), kind(1)
    zeros, used = np.int64(0), np.int64(0)
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


@jit
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


@jit
def count_less(codes, mask, code):  # type: ignore[no-untyped-def]
    """How many magnitudes are below ``code``."""
    kind = codes.dtype.type
    total = np.int64(0)
    for start in range(0, codes.size, _CHUNK):
        part = codes[start : start + _CHUNK]
        n = kind(0)
        for i in range(part.size):
            n = kind(n + (kind(1) if part[i] & mask < code else kind(0)))
        total += np.int64(n)
    return total


@jit
def cut_rows(rows, mask, k, bits):  # type: ignore[no-untyped-def]
    """Zero the ``k`` smallest of each row of ``rows`` [R, n]; returns zeros.

    The k-th smallest comes from bisection on its bits: each step is one vectorised count.
    """
    kind = rows.dtype.type
    zeros = np.int64(0)
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


@jit
def columns_less(lines, mask, limits, counts):  # type: ignore[no-untyped-def]
    """Add to ``counts`` i64[c] how many magnitudes of each column of [n, c] are below its limit."""
    for j in range(lines.shape[0]):
        line = lines[j]
        for c in range(line.size):
            counts[c] += np.int64(1) if line[c] & mask < limits[c] else np.int64(0)


@jit
def cut_lines(lines, mask, code, left):  # type: ignore[no-untyped-def]
    """Zero what is below its column's ``code``, and the first ``left`` i64[c] equal to it."""
    none = lines.dtype.type(0)
    for j in range(lines.shape[0]):
        line = lines[j]
        for c in range(line.size):
            magnitude = line[c] & mask
            tie = magnitude == code[c] and left[c] > 0
            left[c] -= np.int64(1) if tie else np.int64(0)
            line[c] = none if tie or magnitude < code[c] else line[c]
