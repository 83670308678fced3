"""A chunk of a packed tensor: planes of bytes from codes, and codes from planes."""

from __future__ import annotations

import numpy as np

from prunectl.layouts.errors import Damaged
from prunectl.layouts.groups import binomials, kept, positions_of_sets, sets
from prunectl.layouts.kernels import grouping, masking
from prunectl.layouts.kernels import symbols as kernels
from prunectl.layouts.packing.alphabet import Alphabet, digit_table
from prunectl.layouts.packing.planes import expanded, squeezed
from prunectl.layouts.packing.scheme import Scheme
from prunectl.layouts.parts import Bytes, Codes, fixed


def encode_chunk(scheme: Scheme, groups: Codes) -> list[Bytes]:
    """Encode a chunk: the stored bytes of each plane.

    Args:
        scheme: of the tensor.
        groups: codes [groups, m], read-only, at most ``scheme.chunk`` groups.

    Raises:
        Misfit: a group has more nonzeros than its pattern keeps.
    """
    masks, values = _drop(scheme, groups)
    symbols = np.empty(values.size, np.uint8)
    lows = np.empty((scheme.width - 1, values.size), np.uint8)
    kernels.split(values, symbols, lows)
    digits, escapes = _write_symbols(scheme.alphabet, symbols)
    return [
        *(squeezed(mask) for mask in masks),
        squeezed(digits),
        squeezed(escapes),
        *(squeezed(low, probe=True) for low in lows),
    ]


def decode_chunk(scheme: Scheme, planes: list[Bytes], groups: Codes) -> None:
    """Decode stored planes into ``groups`` [groups, m].

    Raises:
        Damaged: they are not the planes of that many groups.
    """
    masks, rest = planes[: scheme.mask_planes], planes[scheme.mask_planes :]
    mask, count = _read_mask(scheme, masks, groups.shape[0])
    symbols = _read_symbols(scheme.alphabet, rest[0], rest[1], count)
    lows = np.empty((scheme.width - 1, count), np.uint8)
    for low, stored in zip(lows, rest[2:], strict=True):
        low[:] = expanded(stored, count)
    values = groups.reshape(-1) if scheme.mask == "none" else np.empty(count, groups.dtype)
    kernels.join(fixed(symbols), fixed(lows), values)
    if scheme.mask == "bits":
        masking.scatter(mask, fixed(values), groups.reshape(-1))
    elif scheme.mask == "nm":
        grouping.place(mask, fixed(values), scheme.grid.n, groups)


def _drop(scheme: Scheme, groups: Codes) -> tuple[list[Bytes], Codes]:
    """The mask's planes, and the stored values."""
    if scheme.mask == "none":
        return [], groups.reshape(-1)
    if scheme.mask == "bits":
        mask = np.empty(-(-groups.size // 8), np.uint8)
        values = np.empty(groups.size, groups.dtype)
        count = int(masking.compact(groups.reshape(-1), mask, values))
        return [mask], fixed(values[:count])
    values, positions = kept(scheme.grid, groups)
    numbers = np.empty(groups.shape[0], np.uint16)
    grouping.rank(positions, binomials(scheme.grid.n, scheme.grid.m), numbers)
    low = fixed(numbers.astype(np.uint8))
    if not scheme.set_digits:
        return [low, (numbers >> np.uint16(8)).astype(np.uint8)], values
    packed = np.empty(-(-low.size // scheme.set_digits), np.uint8)
    kernels.pack_digits(low, sets(scheme.grid), scheme.set_digits, packed)
    return [packed], values


def _write_symbols(alphabet: Alphabet, symbols: Bytes) -> tuple[Bytes, Bytes]:
    """Packed digits, and the escaped symbols; overwrites ``symbols``."""
    if alphabet.per_byte == 1:
        return symbols, symbols[:0]
    escapes = np.empty(symbols.size, np.uint8)
    count = int(kernels.to_digits(symbols, alphabet.digit_of(), alphabet.escape, escapes))
    packed = np.empty(-(-symbols.size // alphabet.per_byte), np.uint8)
    kernels.pack_digits(fixed(symbols), alphabet.base, alphabet.per_byte, packed)
    return packed, escapes[:count]


def _read_mask(scheme: Scheme, planes: list[Bytes], groups: int) -> tuple[Bytes, int]:
    """Mask bits, or positions; and the number of kept values."""
    if scheme.mask == "none":
        return np.empty(0, np.uint8), groups
    if scheme.mask == "bits":
        mask = expanded(planes[0], -(-groups // 8))
        if groups % 8 and mask[-1] >> groups % 8:
            raise Damaged("the mask of a chunk has ones after its last weight")
        return mask, int(np.bitwise_count(mask).sum(dtype=np.int64))
    grid, digits = scheme.grid, scheme.set_digits
    if digits:
        packed = expanded(planes[0], -(-groups // digits))
        code = sets(grid), digits
        numbers = _unpacked(packed, *code, groups, digit_table(*code)).astype(np.uint16)
    else:
        low, high = (expanded(plane, groups).astype(np.uint16) for plane in planes)
        numbers = high << np.uint16(8) | low
        if groups and numbers.max() >= sets(grid):
            raise Damaged(f"a set number is {numbers.max()}, where there are {sets(grid)}")
    positions = np.empty(groups * grid.n, np.uint8)
    grouping.unrank(fixed(numbers), positions_of_sets(grid.n, grid.m), positions)
    return fixed(positions), positions.size


def _read_symbols(alphabet: Alphabet, stored: Bytes, escaped: Bytes, count: int) -> Bytes:
    """The symbols of ``count`` values."""
    if alphabet.per_byte == 1:
        expanded(escaped, 0)
        return expanded(stored, count)
    packed = expanded(stored, -(-count // alphabet.per_byte))
    table = digit_table(alphabet.base, alphabet.per_byte)
    symbols = _unpacked(packed, alphabet.base, alphabet.per_byte, count, alphabet.symbol_table())
    counts = fixed((table == alphabet.escape).sum(1, dtype=np.int64))
    escapes = expanded(escaped, int(kernels.count_escapes(packed, counts)))
    if escapes.size:
        kernels.fill_escapes(packed, table, alphabet.escape, counts, escapes, symbols)
    return symbols


def _unpacked(packed: Bytes, base: int, per_byte: int, count: int, table: Bytes) -> Bytes:
    """Look up the ``count`` digits of a plane in ``table``."""
    if packed.size and int(packed.max()) >= base**per_byte:
        raise Damaged(f"a byte is {packed.max()}, where {per_byte} digits of base {base} are")
    if count % per_byte and int(packed[-1]) >= base ** (count % per_byte):
        raise Damaged("a plane has digits after the last")
    digits = np.empty(count, np.uint8)
    kernels.unpack_digits(packed, table, digits)
    return digits
