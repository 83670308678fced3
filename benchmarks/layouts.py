"""Size and speed of the layouts on the tensors of a checkpoint, beside zstd, zipnn and entropy.

    python benchmarks/layouts.py FOLDER [--dtype F16] [--threads 2] [--limit-gb 0.5]

Each tensor is stored on its own. ``40%`` prunes the matrices in the blocks by one threshold, and
``2:4`` prunes the same matrices in groups along the last axis. The entropy is that of each weight
by itself: per tensor, its mask (2:4: log2(6) / 4 bits a weight) and the symbols of what is left,
with the other bits raw. Speeds are bytes of the dense tensors over the time of the best of three
rounds; a round allocates its outputs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from rich.console import Console
from rich.table import Table

from prunectl.layouts.choice import LAYOUTS, encode_smallest
from prunectl.layouts.parts import Encoded, Misfit
from prunectl.layouts.survey import survey
from prunectl.magnitude import masks
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES, DType

ROUNDS = 3
ZIPNN_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass
class Weight:
    """A tensor: codes in its shape, and the pattern that it follows."""

    dtype: DType
    codes: np.ndarray
    prunable: bool
    pattern: NM | None = None

    @property
    def spec(self) -> tuple[np.ndarray, DType, tuple[int, ...]]:
        return self.codes, self.dtype, self.codes.shape


def load(folder: Path, dtype: str | None, limit: float) -> list[Weight]:
    """Tensors of a folder's safetensors files, cast if asked, up to ``limit`` bytes."""
    import torch
    from safetensors import safe_open

    types = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    wanted = next((kind for kind, name in types.items() if name == dtype), None)
    found: list[Weight] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                tensor = file.get_tensor(name)
                if tensor.dtype not in types:
                    continue
                tensor = tensor.to(wanted or tensor.dtype)
                raw = tensor.view(torch.int32 if tensor.dtype.itemsize == 4 else torch.int16)
                codes = raw.numpy().view(f"u{tensor.dtype.itemsize}").copy()
                prunable = tensor.ndim == 2 and "layer" in name
                found.append(Weight(DTYPES[types[tensor.dtype]], codes, prunable))
                if sum(w.codes.nbytes for w in found) > limit:
                    return found
    return found


def prune_global(weights: Iterable[Weight], sparsity: float) -> list[Weight]:
    """Zero the smallest magnitudes of all prunable weights (of one dtype)."""
    prunable = [w for w in weights if w.prunable]
    magnitudes = np.concatenate([w.codes.reshape(-1) << 1 >> 1 for w in prunable])
    index = int(magnitudes.size * sparsity)
    limit = int(np.partition(magnitudes, index)[index])
    pruned = []
    for w in weights:
        codes = w.codes.copy()
        if w.prunable:
            masks.cut(codes.reshape(-1), limit, 0)
        pruned.append(Weight(w.dtype, codes, w.prunable))
    return pruned


def prune_groups(weights: Iterable[Weight], pattern: NM) -> list[Weight]:
    """Zero the smallest of each group along the last axis."""
    pruned = []
    for w in weights:
        codes, fits = w.codes.copy(), w.prunable and w.codes.shape[-1] % pattern.m == 0
        if fits:
            masks.nm(codes.reshape(1, -1, 1), pattern.n, pattern.m)
        pruned.append(Weight(w.dtype, codes, w.prunable, pattern if fits else None))
    return pruned


def entropy_bytes(weight: Weight) -> float:
    counts = survey(weight.codes)
    kept, total = counts.kept, counts.kept + counts.zeros
    plain = counts.entropy_bits + kept * (weight.dtype.bits - 8)
    if weight.pattern is None:
        return plain / 8
    halves = [-n * math.log2(n / total) for n in (kept, counts.zeros) if n]
    sets = math.log2(math.comb(weight.pattern.m, weight.pattern.n)) / weight.pattern.m
    return (plain - sum(halves) + total * sets) / 8


def zstd_bytes(level: int) -> Callable[[Weight], int]:
    compressor = zstandard.ZstdCompressor(level=level)
    return lambda weight: len(compressor.compress(weight.codes.tobytes()))


def zipnn_bytes(weight: Weight) -> int:
    from zipnn import ZipNN

    # It overwrites its input, which tobytes() has copied.
    packer = ZipNN(bytearray_dtype=ZIPNN_TYPES[weight.dtype.name], input_format="byte")
    return len(packer.compress(bytearray(weight.codes.tobytes())))


def layout_bytes(name: str) -> Callable[[Weight], int]:
    def count(weight: Weight) -> int:
        try:
            return LAYOUTS[name].encode(*weight.spec, pattern=weight.pattern).nbytes
        except Misfit:
            return weight.codes.nbytes

    return count


def estimated(weight: Weight) -> int:
    counts = survey(weight.codes)
    return LAYOUTS["packed"].nbytes(
        weight.dtype, weight.codes.shape, counts, pattern=weight.pattern
    )


def sizes(weights: list[Weight], zipnn: bool) -> dict[str, float]:
    """Bytes of all tensors, by how they are stored."""
    ways: dict[str, Callable[[Weight], float]] = {
        "entropy": entropy_bytes,
        "packed": layout_bytes("packed"),
        "packed, estimated": estimated,
        "auto": lambda w: encode_smallest(*w.spec, pattern=w.pattern).nbytes,
        "bitmask": layout_bytes("bitmask"),
        "nm": layout_bytes("nm"),
        "zstd-1": zstd_bytes(1),
        "zstd-3": zstd_bytes(3),
    }
    if zipnn:
        ways["zipnn"] = zipnn_bytes
    return {name: sum(way(w) for w in weights) for name, way in ways.items()}


def best_time(call: Callable[[], object]) -> float:
    spans = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        spans.append(time.perf_counter() - begin)
    return min(spans)


def speeds(weights: list[Weight], name: str, run: Any) -> tuple[float, float] | None:
    """GB/s of encoding and decoding those tensors that the layout takes."""
    layout, stored = LAYOUTS[name], []
    for w in weights:
        try:
            stored.append((w, layout.encode(*w.spec, pattern=w.pattern, run=run)))
        except Misfit:
            continue
    if not stored:
        return None

    def encode() -> list[Encoded]:
        return [layout.encode(*w.spec, pattern=w.pattern, run=run) for w, _ in stored]

    def decode() -> None:
        for w, e in stored:
            layout.decode(e.parts, w.dtype, w.codes.shape, e.extra, run=run)

    for w, e in stored:
        back = layout.decode(e.parts, w.dtype, w.codes.shape, e.extra, run=run)
        assert np.array_equal(back, w.codes), name
    total = sum(w.codes.nbytes for w, _ in stored) / 1e9
    return total / best_time(encode), total / best_time(decode)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and speed of the layouts.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=ZIPNN_TYPES, help="cast to it first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-gb", type=float, default=1.0)
    args = parser.parse_args()
    dense = load(args.folder, args.dtype, args.limit_gb * 1e9)
    kinds = {
        "dense": dense,
        "40%": prune_global(dense, 0.4),
        "2:4": prune_groups(dense, NM(2, 4)),
    }
    try:
        import zipnn  # noqa: F401

        has_zipnn = True
    except ImportError:
        has_zipnn = False
    total = sum(w.codes.nbytes for w in dense)
    console = Console(width=120)
    found = {kind: sizes(weights, has_zipnn) for kind, weights in kinds.items()}
    table = Table("bytes / dense bytes (over entropy)", *kinds)
    for way in found["dense"]:
        cells = []
        for kind in kinds:
            over = found[kind][way] / found[kind]["entropy"] - 1
            cells.append(f"{found[kind][way] / total:.4f} ({over:+.2%})")
        table.add_row(way, *cells)
    console.print(f"{args.folder} {args.dtype or ''}: {total / 1e6:.1f} MB dense")
    console.print(table)
    table = Table(f"GB/s in, out; {args.threads} threads", *kinds)
    with ThreadPoolExecutor(args.threads) as pool:
        run = pool.map if args.threads > 1 else map
        for name in LAYOUTS:
            pairs = [speeds(weights, name, run) for weights in kinds.values()]
            table.add_row(name, *(f"{p[0]:.2f}  {p[1]:.2f}" if p else "" for p in pairs))
    console.print(table)


if __name__ == "__main__":
    main()
