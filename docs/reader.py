"""Read folders that prunectl has compressed, without prunectl: format.md as code.

python reader.py FOLDER OUT.safetensors writes all tensors into one file, densely. What numpy has
no type for (bf16, fp8) comes as unsigned integers with the same bits.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import zstandard
from safetensors import safe_open
from safetensors.numpy import save_file

TYPES = {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "FIU" for size in (1, 2, 4, 8)}
TYPES |= {"BF16": "<u2", "C64": "<c8", "BOOL": "?"}  # of other types: the bytes


def sized(array, size, padding=0):  # the first so many; after them only so much padding
    if not 0 <= len(array) - size <= padding or array[size:].any():
        raise ValueError(f"{len(array)} elements are stored, where {size} are expected")
    return array[:size]


def plane(stored, size):
    if len(stored) < size:
        if zstandard.get_frame_parameters(stored).content_size != size:  # before it is allocated
            raise ValueError(f"no plane of {size} bytes")
        stored = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored), np.uint8)
    return sized(stored, size)


def digits(packed, base, each, count):
    return (packed[:, None] // base ** np.arange(each) % base).reshape(-1)[:count]


def bits(packed, count):
    return np.unpackbits(packed, bitorder="little", count=count)


def keep_of(positions, m):
    keep = np.zeros((len(positions), m), bool)
    np.put_along_axis(keep, positions, True, axis=1)
    return keep


def read_chunk(stored, extra, groups):  # stored: the planes, one after the other
    (count, m), each, keep = groups.shape, extra["per_byte"], np.ones(groups.shape, bool)
    if extra["mask"] == "bits":
        keep = bits(plane(next(stored), -(-count // 8)), count)[:, None] > 0
    elif extra["mask"] == "nm":
        sets = sorted(itertools.combinations(range(m), extra["n"]), key=lambda s: s[::-1])
        if per := max(d for d in range(9) if len(sets) ** d <= 256):
            numbers = digits(plane(next(stored), -(-count // per)), len(sets), per, count)
        else:
            numbers = plane(next(stored), count) + 256 * plane(next(stored), count).astype(int)
        keep = keep_of(np.array(sets)[numbers], m)
    size, escape = int(keep.sum()), len(extra["symbols"])
    symbols, escapes = plane(next(stored), -(-size // each)), next(stored)
    if each > 1:
        found = digits(symbols, escape + 1, each, size)
        symbols = np.array([*extra["symbols"], 0], np.uint8)[found]
        symbols[found == escape] = plane(escapes, int((found == escape).sum()))
    values, top = symbols.astype(groups.dtype), 8 * groups.itemsize - 9
    if top > 0:
        low = sum(plane(next(stored), size).astype(values.dtype) << 8 * p for p in range(top // 8 + 1))
        values = low >> top << top + 8 | values << top | low & (1 << top) - 1
    groups[keep] = values


