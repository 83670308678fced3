"""Loops over symbols: the top bits of magnitudes, and digits packed in bytes."""

from __future__ import annotations

import numpy as np

from prunectl.jit import jit
from prunectl.layouts.kernels.masking import count_kept


@jit
def tally(codes, tables):  # type: ignore[no-untyped-def]
    """Add the symbols of ``codes`` to ``tables`` i64[4, 256]; return the number of zero codes.

    Uses four tables, since repeated increments of one counter wait for each other.
    """
    kind = codes.dtype.type
    bits = 8 * codes.itemsize
    down = kind(bits - 9 if bits > 8 else 0)
    top = kind(255)
    zeros = np.int64(codes.size) - count_kept(codes)
    if bits == 8:
        for code in codes:
            tables[0, code] += 1
        return zeros
    whole = codes.size - codes.size % 4
    one, two, three, four = tables[0], tables[1], tables[2], tables[3]
    for i in range(0, whole, 4):
        one[codes[i] >> down & top] += 1
        two[codes[i + 1] >> down & top] += 1
        three[codes[i + 2] >> down & top] += 1
        four[codes[i + 3] >> down & top] += 1
    for i in range(whole, codes.size):
        one[codes[i] >> down & top] += 1
    return zeros


@jit
def split(values, symbols, lows):  # type: ignore[no-untyped-def]
    """Split into symbols and ``lows`` [bytes - 1, n]: other bits, sign on top, low byte first."""
    kind = values.dtype.type
    planes = lows.shape[0]
    if planes == 0:
        for i in range(values.size):
            symbols[i] = np.uint8(values[i])
        return
    top, sign = kind(8 * planes - 1), kind(8 * planes + 7)
    rest = kind(kind(1) << top) - kind(1)
    for i in range(values.size):
        symbols[i] = np.uint8(values[i] >> top & kind(255))
    for p in range(planes):
        low, down = lows[p], kind(8 * p)
        for i in range(values.size):
            code = values[i]
            bits = kind(code & rest) | kind(kind(code >> sign) << top)
            low[i] = np.uint8(bits >> down & kind(255))


@jit
def join(symbols, lows, values):  # type: ignore[no-untyped-def]
    """Invert :func:`split`: a pass for each plane, which vectorizes."""
    kind = values.dtype.type
    planes = lows.shape[0]
    if planes == 0:
        for i in range(values.size):
            values[i] = kind(symbols[i])
        return
    top, sign = kind(8 * planes - 1), kind(8 * planes + 7)
    high = lows[planes - 1]
    for i in range(values.size):
        low = kind(high[i])
        code = kind(kind(symbols[i]) << top) | kind(kind(low >> kind(7)) << sign)
        values[i] = code | kind(kind(low & kind(127)) << kind(8 * planes - 8))
    for p in range(planes - 1):
        low_plane, up = lows[p], kind(8 * p)
        for i in range(values.size):
            values[i] |= kind(kind(low_plane[i]) << up)


@jit
def to_digits(symbols, digit_of, escape, escapes):  # type: ignore[no-untyped-def]
    """Replace symbols by digits, in place; escaped ones go to ``escapes``. Return their number."""
    k = np.uint64(0)
    for i in range(symbols.size):
        symbol = symbols[i]
        digit = digit_of[symbol]
        symbols[i] = digit
        escapes[k] = symbol
        k += np.uint64(1) if digit == escape else np.uint64(0)
    return k


@jit
def count_escapes(packed, counts):  # type: ignore[no-untyped-def]
    """The number of escapes, given ``counts`` i64 [256] of byte values."""
    total = np.int64(0)
    for byte in packed:
        total += counts[byte]
    return total


@jit
def fill_escapes(packed, table, escape, counts, escapes, symbols):  # type: ignore[no-untyped-def]
    """Write ``escapes`` in order where ``packed`` has the digit ``escape``."""
    per_byte = table.shape[1]
    k = 0
    for i in range(packed.size):
        byte = packed[i]
        if counts[byte]:
            for j in range(per_byte):
                place = per_byte * i + j
                if table[byte, j] == escape and place < symbols.size:
                    symbols[place] = escapes[k]
                    k += 1


@jit
def pack_digits(digits, base, per_byte, packed):  # type: ignore[no-untyped-def]
    """Pack ``per_byte`` digits into a byte, the first lowest; zeros fill the last byte."""
    b = np.uint8(base)
    whole = digits.size // per_byte
    if per_byte == 2:  # the common cases, unrolled
        for i in range(whole):
            packed[i] = np.uint8(digits[2 * i] + np.uint8(b * digits[2 * i + 1]))
    elif per_byte == 3:
        for i in range(whole):
            high = np.uint8(digits[3 * i + 1] + np.uint8(b * digits[3 * i + 2]))
            packed[i] = np.uint8(digits[3 * i] + np.uint8(b * high))
    else:
        for i in range(whole):
            byte = np.uint8(0)
            for j in range(per_byte - 1, -1, -1):
                byte = np.uint8(np.uint8(byte * b) + digits[per_byte * i + j])
            packed[i] = byte
    if whole < packed.size:
        byte = np.uint8(0)
        for i in range(digits.size - 1, per_byte * whole - 1, -1):
            byte = np.uint8(np.uint8(byte * b) + digits[i])
        packed[whole] = byte


@jit
def unpack_digits(packed, table, digits):  # type: ignore[no-untyped-def]
    """Invert :func:`pack_digits`; ``table`` [256, per_byte] holds the digits of a byte."""
    per_byte = table.shape[1]
    whole = digits.size // per_byte
    if per_byte == 2:
        for i in range(whole):
            row = table[packed[i]]
            digits[2 * i], digits[2 * i + 1] = row[0], row[1]
    elif per_byte == 3:
        for i in range(whole):
            row = table[packed[i]]
            digits[3 * i], digits[3 * i + 1], digits[3 * i + 2] = row[0], row[1], row[2]
    else:
        for i in range(whole):
            row = table[packed[i]]
            for j in range(per_byte):
                digits[per_byte * i + j] = row[j]
    for j in range(digits.size - per_byte * whole):
        digits[per_byte * whole + j] = table[packed[whole], j]


@jit
def huffman_bits(weights):  # type: ignore[no-untyped-def]
    """Mean code length of a Huffman code times the sum of ``weights`` f64[n], ascending.

    Two-queue method: the leaves are sorted, merged nodes are created in sorted order, and the sum
    of all merged nodes is the sum of weight times depth.
    """
    n = weights.size
    merged = np.empty(n, np.float64)
    leaf, node, total = 0, 0, 0.0
    for made in range(n - 1):
        pair = 0.0
        for _ in range(2):
            if leaf < n and (node >= made or weights[leaf] <= merged[node]):
                pair += weights[leaf]
                leaf += 1
            else:
                pair += merged[node]
                node += 1
        merged[made] = pair
        total += pair
    return total
