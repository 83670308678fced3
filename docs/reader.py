"""Reads compressed files without prunectl: what format.md says, as code.

python reader.py OUT.npz FILE.. writes all tensors, as unsigned integers of the same bits."""

import json
import sys
from itertools import combinations
from math import prod
from pathlib import Path

import numpy as np
import zstandard
from safetensors import deserialize, safe_open


def read_chunk(planes, extra, codes):  # fills codes [groups, m]
    def digits(base, each, count):  # of the next plane
        data, size = next(planes), -(-count // each)
        if len(data) != size and zstandard.get_frame_parameters(data).content_size == size:
            data = np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8)
        data = data.reshape(size, 1)  # which refuses any other size
        return (data // base ** np.arange(each) % base).reshape(-1)[:count]

    (groups, m), keep = codes.shape, np.ones(codes.shape, bool)
    if extra["mask"] == "bits":
        keep = digits(2, 8, groups).reshape(groups, 1) > 0
    elif extra["mask"] == "nm":
        sets = sorted(combinations(range(m), extra["n"]), key=lambda places: places[::-1])
        each = max(d for d in range(9) if len(sets) ** d <= 256)
        numbers = digits(len(sets) if each else 256, each or 1, groups)
        numbers = numbers if each else numbers + 256 * digits(256, 1, groups)
        keep = np.array([[place in places for place in range(m)] for places in sets])[numbers]
    symbols = range(256) if extra["per_byte"] == 1 else extra["symbols"]
    found = digits(len(symbols) + 1, extra["per_byte"], np.count_nonzero(keep))
    values, escaped = np.array([*symbols, 0], codes.dtype)[found], found == len(symbols)
    values[escaped] = digits(256, 1, np.count_nonzero(escaped))
    low = [digits(256, 1, len(found)).astype(codes.dtype) for _ in range(codes.itemsize - 1)]
    low, top = sum(byte << 8 * i for i, byte in enumerate(low)), max(0, 8 * len(low) - 1)
    codes[keep] = low >> top << top + 8 | values << top | low & (1 << top) - 1


def decode(tensor, parts):  # its description, and the bytes of its parts by suffix
    shape, extra, dtype = tensor["shape"], tensor["extra"], tensor["dtype"]
    m, axis, size = extra.get("m", 1), extra.get("axis", 0), prod(shape)
    code = {"64": "<u8", "32": "<u4", "16": "<u2"}.get(dtype[-2:], "u1")
    codes = np.zeros((size // m, m), code)
    if tensor["layout"] == "dense":
        return parts["dense"].view(code).reshape(-1 if dtype[:3] in ("F4", "F6_") else shape)
    if tensor["layout"] == "packed":
        planes = iter(np.split(parts["data"], np.cumsum(parts["chunks"].view("<u4"))))
        for start in range(0, len(codes), extra["chunk"]):
            read_chunk(planes, extra, codes[start : start + extra["chunk"]])
    elif tensor["layout"] == "bitmask":
        mask = np.unpackbits(parts["mask"], bitorder="little", count=size)
        codes[mask > 0, 0] = parts["values"].view(code)
    else:
        if extra["order"] == "cutlass":
            tiles = parts["meta"].view("<u2").reshape(shape[1] // 32, shape[0] // 32, 8, 2, 2, 2)
            parts["positions"] = tiles.transpose(1, 3, 5, 2, 0, 4).reshape(-1).view(np.uint8)
        values, width = parts["values"].view(code).reshape(-1, extra["n"]), (m - 1).bit_length()
        bits = np.unpackbits(parts["positions"], bitorder="little", count=values.size * width)
        places = bits.reshape(*values.shape, width) @ (1 << np.arange(width))
        np.put_along_axis(codes, places, values, 1)
    groups = codes.reshape(prod(shape[: axis + 1]) // m, prod(shape[axis + 1 :]), m)
    return groups.swapaxes(1, 2).reshape(shape)


def find(path):  # each tensor's name, and what decode takes
    document = json.loads(safe_open(path, "np").metadata()["prunectl"])
    assert document["format"] == "1", f"{path} has another format"
    stored = dict(deserialize(Path(path).read_bytes()))  # checks the header
    data = {name: np.frombuffer(t["data"], np.uint8) for name, t in stored.items()}
    for name, tensor in document["tensors"].items():
        yield name, tensor, {part: data.pop(f"{name}.{part}") for part in tensor["parts"]}
    for name, part in data.items():
        yield name, stored[name] | {"layout": "dense", "extra": {}}, {"dense": part}


if __name__ == "__main__":
    np.savez(sys.argv[1], **{n: decode(t, p) for file in sys.argv[2:] for n, t, p in find(file)})
