"""Loops over N:M groups, as rows of [groups, m] for any axis of the tensor."""

from __future__ import annotations

import numpy as np

from prunectl.jit import jit


@jit
def gather(tiles, first, groups):  # type: ignore[no-untyped-def]
    """Copy groups ``first``, ``first + 1``... of ``tiles`` [bands, m, inner] to [groups, m]."""
    inner = tiles.shape[2]
    band, column = first // inner, first % inner
    for t in range(groups.shape[0]):
        for j in range(groups.shape[1]):
            groups[t, j] = tiles[band, j, column]
        column += 1
        if column == inner:
            band, column = band + 1, 0


@jit
def spread(groups, first, tiles):  # type: ignore[no-untyped-def]
    """Invert :func:`gather`."""
    inner = tiles.shape[2]
    band, column = first // inner, first % inner
    for t in range(groups.shape[0]):
        for j in range(groups.shape[1]):
            tiles[band, j, column] = groups[t, j]
        column += 1
        if column == inner:
            band, column = band + 1, 0


@jit
def overfull(groups, n):  # type: ignore[no-untyped-def]
    """The first group with more than ``n`` nonzeros, or -1."""
    for t in range(groups.shape[0]):
        kept = 0
        for j in range(groups.shape[1]):
            kept += 1 if groups[t, j] != 0 else 0
        if kept > n:
            return t
    return -1


@jit
def select(groups, n, values, positions):  # type: ignore[no-untyped-def]
    """The n kept weights of each group and their positions, ascending.

    ``values`` has one spare place. A group with fewer nonzeros is filled up with the first zeros
    among its last n.
    """
    kind = groups.dtype.type
    count, m = groups.shape
    k = np.uint64(0)
    for t in range(count):
        missing = n
        for j in range(m):
            missing -= 1 if groups[t, j] != kind(0) else 0
        for j in range(m):
            code = groups[t, j]
            fill = code == kind(0) and j >= m - n and missing > 0
            missing -= 1 if fill else 0
            values[k] = code
            positions[k] = np.uint8(j)
            k += np.uint64(1) if code != kind(0) or fill else np.uint64(0)


@jit
def select_small(groups, table, values, positions):  # type: ignore[no-untyped-def]
    """:func:`select` for m <= 8: ``table`` [2**m, n] holds the positions of each set of nonzeros.

    The table lacks sets of more than n; groups with such sets were refused before.
    """
    count, m = groups.shape
    n = table.shape[1]
    k = 0
    for t in range(count):
        found = np.uint64(0)
        for j in range(m):
            bit = np.uint64(1) if groups[t, j] != 0 else np.uint64(0)
            found |= bit << np.uint64(j)
        row = table[found]
        for i in range(n):
            position = row[i]
            values[k] = groups[t, np.uint64(position)]
            positions[k] = position
            k += 1


@jit
def select_2_4(groups, table, values, positions):  # type: ignore[no-untyped-def]
    """:func:`select_small` for 2:4, unrolled."""
    for t in range(groups.shape[0]):
        group = groups[t]
        found = np.uint64(1) if group[0] != 0 else np.uint64(0)
        found |= np.uint64(2) if group[1] != 0 else np.uint64(0)
        found |= np.uint64(4) if group[2] != 0 else np.uint64(0)
        found |= np.uint64(8) if group[3] != 0 else np.uint64(0)
        first, second = table[found, 0], table[found, 1]
        values[2 * t], values[2 * t + 1] = group[np.uint64(first)], group[np.uint64(second)]
        positions[2 * t], positions[2 * t + 1] = first, second


@jit
def place(positions, values, n, groups):  # type: ignore[no-untyped-def]
    """Invert :func:`select`; return the first group with bad positions, or -1.

    Positions are bad if they do not ascend, or lie outside the group.
    """
    m = groups.shape[1]
    k = 0
    for t in range(groups.shape[0]):
        for j in range(m):
            groups[t, j] = 0
        last = np.int64(-1)
        for _ in range(n):
            position = np.int64(positions[k])
            if position <= last or position >= m:
                return t
            groups[t, position] = values[k]
            last = position
            k += 1
    return -1


@jit
def rank(positions, binomials, ranks):  # type: ignore[no-untyped-def]
    """Numbers of the sets of positions [groups, n]: sums of ``binomials`` [m, n]."""
    n = binomials.shape[1]
    k = 0
    for t in range(ranks.size):
        number = np.uint16(0)
        for i in range(n):
            number = np.uint16(number + binomials[positions[k], i])
            k += 1
        ranks[t] = number


@jit
def unrank(ranks, sets, positions):  # type: ignore[no-untyped-def]
    """Invert :func:`rank`; ``sets`` [numbers, n] holds the positions of each number."""
    n = sets.shape[1]
    k = 0
    for t in range(ranks.size):
        row = sets[np.uint64(ranks[t])]
        for i in range(n):
            positions[k] = row[i]
            k += 1


@jit
def pack_bits(numbers, width, packed):  # type: ignore[no-untyped-def]
    """Write numbers of ``width`` <= 8 bits consecutively, lowest bits first."""
    buffer, filled, at = np.uint64(0), np.uint64(0), 0
    for number in numbers:
        buffer |= np.uint64(number) << filled
        filled += np.uint64(width)
        if filled >= np.uint64(8):
            packed[at] = np.uint8(buffer & np.uint64(255))
            at += 1
            buffer >>= np.uint64(8)
            filled -= np.uint64(8)
    if filled:
        packed[at] = np.uint8(buffer)


@jit
def unpack_bits(packed, width, numbers):  # type: ignore[no-untyped-def]
    """Invert :func:`pack_bits`."""
    buffer, filled, at = np.uint64(0), np.uint64(0), 0
    low = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    for i in range(numbers.size):
        if filled < np.uint64(width):
            buffer |= np.uint64(packed[at]) << filled
            at += 1
            filled += np.uint64(8)
        numbers[i] = np.uint8(buffer & low)
        buffer >>= np.uint64(width)
        filled -= np.uint64(width)
