"""Sizes and speeds of compressed folders, beside the entropy of the weights, zstd and zipnn.

    python benchmarks/export.py --sizes --work DIR [--size-gb 0.3]
    python benchmarks/export.py --speed --work DIR --size-gb 8 [--prune 2:4] [--rounds 3]

``--sizes``: real models (scripts/fetch_models.py) and a LLaMA-shaped one of independent normal
weights are pruned and exported; counted are the bytes of the weights files, headers included, of
each layout, and what zstd and zipnn make of the same dense file. The entropy is computed here from
the dense file alone, each weight by itself: per tensor its mask, signs and exponents of what is not
zero, and all mantissa bits.

``--speed``: each job is a fresh process, all jobs in turn, as in speed.py. Compressing with zipnn
goes by pieces of 256 MiB, and its output is made durable too.

zipnn is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from rich.console import Console

import make_checkpoint
import measuring
from machine import machine, version

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import fetch_models

HAS_ZIPNN = importlib.util.find_spec("zipnn") is not None
PRUNINGS = {"40%": ["--sparsity", "0.4"], "2:4": ["--pattern", "2:4"]}
LAYOUTS = ("packed", "auto", "bitmask", "nm")
MANTISSA = {"BF16": 7, "F16": 10, "F32": 23}
ZIPNN_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


# --- sizes ----------------------------------------------------------------------------------------


def stored_tensors(path: Path) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Dtype, shape and bytes of each tensor of a safetensors file, by the format alone."""
    data = np.memmap(path, np.uint8, "r")
    begin = 8 + int(data[:8].view("<u8")[0])
    for name, entry in json.loads(data[8:begin].tobytes()).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            yield entry["dtype"], entry["shape"], data[begin + first : begin + last]


def entropy_bits(counts: np.ndarray) -> float:
    """Bits of a sequence in which the symbols occur so often, each coded for itself."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def mask_bits(codes: np.ndarray, shape: list[int]) -> float:
    """Bits of where a tensor is zero: of a 2:4 tensor, log2(6) / 4 a weight if that is less."""
    kept = np.count_nonzero(codes)
    plain = entropy_bits(np.array([kept, codes.size - kept]))
    if not shape or shape[-1] % 4 or np.count_nonzero(codes.reshape(-1, 4), axis=1).max() > 2:
        return plain
    return min(plain, codes.size * math.log2(6) / 4)


def tensor_bytes(dtype: str, shape: list[int], data: np.ndarray) -> float:
    """The order-0 entropy of a tensor; raw bytes where it is not of floating point."""
    if dtype not in MANTISSA or not data.size:
        return data.size
    codes = data.view({2: "<u2", 4: "<u4"}[data.size // math.prod(shape)])
    kept = codes[codes != 0]
    top = np.bincount(kept >> MANTISSA[dtype])
    mask = mask_bits(codes, shape) if kept.size < codes.size else 0
    return (mask + entropy_bits(top) + kept.size * MANTISSA[dtype]) / 8


def zstd_bytes(path: Path, level: int) -> int:
    compressor = zstandard.ZstdCompressor(level=level)
    with path.open("rb") as source, Path(os.devnull).open("wb") as sink:
        return compressor.copy_stream(source, sink, size=path.stat().st_size)[1]


def zipnn_bytes(path: Path, dtype: str) -> int:
    from zipnn import ZipNN

    packer = ZipNN(bytearray_dtype=ZIPNN_TYPES[dtype], input_format="byte")
    return len(packer.compress(bytearray(path.read_bytes())))  # it overwrites this copy


class Fresh(make_checkpoint.Pool):
    """Weights that do not repeat: where a pool's values do, zstd finds that."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype, 0)
        self._dtype = make_checkpoint.CONFIG_DTYPE[dtype]

    def blocks(self, name: str, size: int) -> Iterator[np.ndarray]:
        import torch

        scale = np.float32(0.01 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02)
        for done in range(0, size, make_checkpoint.BLOCK):
            length = min(make_checkpoint.BLOCK, size - done)
            values = torch.from_numpy(self._places.standard_normal(length, np.float32) * scale)
            stored = values.to(getattr(torch, self._dtype)).view(torch.int16).numpy()
            yield self._ones[:length] if "norm" in name else stored


def make_llama(target: Path, size_gb: float, dtype: str) -> None:
    """A LLaMA-shaped checkpoint in one file."""
    shape = make_checkpoint.shape_for(int(size_gb * 1e9) // 2, tied=False)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(shape.config(dtype)))
    with (target / "model.safetensors").open("wb") as file:
        make_checkpoint.write_shard(file, shape.tensors(), dtype, Fresh(dtype))


def make_half(source: Path, target: Path) -> None:
    """The model in fp16."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = {name: t.half() for name, t in load_file(source / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"dtype": "float16"}
    (target / "config.json").write_text(json.dumps(config))


def models(work: Path, size_gb: float) -> Iterator[tuple[str, str, Path]]:
    """Label, dtype and folder of each model."""
    smollm2 = fetch_models.fetch("smollm2", fetch_models.cache_dir())
    yield "SmolLM2-135M", "BF16", smollm2
    half = work / "half"
    make_half(smollm2, half)
    yield "SmolLM2-135M", "F16", half
    shutil.rmtree(half)
    for dtype, stored in (("bf16", "BF16"), ("fp16", "F16")):
        llama = work / "llama"
        make_llama(llama, size_gb, dtype)
        yield "LLaMA-shaped", stored, llama
        shutil.rmtree(llama)
    yield "MiniLM-L6", "F32", fetch_models.fetch("minilm", fetch_models.cache_dir())


def sizes_of(
    prunectl: list[str], model: Path, how: str, dtype: str, work: Path, levels: list[int]
) -> dict[str, float | None]:
    """Bytes of all ways to store one pruned model; None where one does not apply."""
    pruned, output, cache = work / "pruned", work / "output", work / "cache"
    measuring.run([*prunectl, "prune", str(model), *PRUNINGS[how], "-o", str(pruned)], cache)
    (dense,) = pruned.glob("*.safetensors")
    entropy = sum(tensor_bytes(*tensor) for tensor in stored_tensors(dense))
    found: dict[str, float | None] = {"dense": dense.stat().st_size, "entropy": entropy}
    for layout in LAYOUTS:
        found[layout] = None
        if layout != "nm" or how == "2:4":
            export = [*prunectl, "export", str(pruned), "-o", str(output), "--layout", layout]
            measuring.run(export, cache)
            found[layout] = measuring.weight_bytes(output)
            shutil.rmtree(output)
    found |= {f"zstd -{level}": zstd_bytes(dense, level) for level in levels}
    found["zipnn"] = zipnn_bytes(dense, dtype) if HAS_ZIPNN else None
    shutil.rmtree(pruned)
    return found


def print_sizes(prunectl: list[str], work: Path, args: argparse.Namespace, log: Console) -> Any:
    """Measure, and print a table in Markdown; returns what is in it."""
    rows = []
    for label, dtype, model in models(work, args.size_gb):
        for how in PRUNINGS:
            sizes = sizes_of(prunectl, model, how, dtype, work, args.zstd)
            rows.append({"model": f"{label} {dtype}", "pruned": how, **sizes})
            log.print(rows[-1])
    ways = list(rows[0])[3:]
    print(f"| model | pruned | dense MB | {' | '.join(ways)} | packed to entropy |")
    print("|---|---|" + "---:|" * (len(ways) + 2))
    for row in rows:
        shares = ["" if row[way] is None else f"{row[way] / row['dense']:.4f}" for way in ways]
        cells = [f"{row['dense'] / 1e6:.1f}", *shares, f"{row['packed'] / row['entropy'] - 1:+.2%}"]
        print(f"| {row['model']} | {row['pruned']} | {' | '.join(cells)} |")
    return rows


# --- speed ----------------------------------------------------------------------------------------

PACK, UNPACK = "export --layout packed", "export --layout dense"
ZIP, UNZIP = "zipnn compress", "zipnn decompress"
LOAD_PACKED = "import sys, prunectl; tensors = prunectl.load_state_dict(sys.argv[1])"
LOAD_DENSE = """
import sys
from pathlib import Path
from safetensors.torch import load_file
tensors = {}
for path in Path(sys.argv[1]).glob("*.safetensors"):
    tensors |= {name: tensor.clone() for name, tensor in load_file(path).items()}
"""
ZIPNN = """
import os, sys
from pathlib import Path
from zipnn import ZipNN
source, target, kind, what = sys.argv[1:]
packer = ZipNN(bytearray_dtype=kind, input_format="byte")
Path(target).mkdir()
for path in Path(source).glob("*.safetensors"):
    with path.open("rb") as file, (Path(target) / path.name).open("wb") as sink:
        if what == "compress":
            while piece := file.read(1 << 28):
                data = packer.compress(bytearray(piece))
                sink.write(len(data).to_bytes(8, "little"))
                sink.write(data)
        else:
            while size := int.from_bytes(file.read(8), "little"):
                sink.write(packer.decompress(file.read(size)))
        sink.flush()
        os.fsync(sink.fileno())
"""


def jobs_for(
    prunectl: list[str], at: measuring.Folders, zipped: Path, kind: str
) -> list[measuring.Job]:
    """All jobs of a round; ``at.small`` is the packed folder."""
    model, packed, output = str(at.model), str(at.small), str(at.output)
    export, python = [*prunectl, "export"], [sys.executable, "-c"]
    jobs = [
        measuring.Job(measuring.COPY, measuring.copy_command(at.model, at.output)),
        measuring.Job(PACK, [*export, model, "-o", output, "--layout", "packed"]),
        measuring.Job(UNPACK, [*export, packed, "-o", output, "--layout", "dense"]),
        measuring.Job("load_state_dict of packed", [*python, LOAD_PACKED, packed]),
        measuring.Job("safetensors load, copied", [*python, LOAD_DENSE, model]),
    ]
    if HAS_ZIPNN:
        jobs += [
            measuring.Job(ZIP, [*python, ZIPNN, model, output, kind, "compress"]),
            measuring.Job(UNZIP, [*python, ZIPNN, str(zipped), output, kind, "decompress"]),
        ]
    return jobs


def prepare(jobs: list[measuring.Job], at: measuring.Folders, zipped: Path) -> None:
    """Make the packed and the zipped model, and check once that both come back as they were."""
    by_label = {job.label: job for job in jobs}
    for label, folder in ((PACK, at.small), (ZIP, zipped)):
        shutil.rmtree(folder, ignore_errors=True)
        if label in by_label:
            measuring.run(by_label[label].command, at.cache)
            at.output.rename(folder)
    for label in (UNPACK, UNZIP):
        if label not in by_label:
            continue
        measuring.run(by_label[label].command, at.cache)
        for path in at.model.glob("*.safetensors"):
            if not filecmp.cmp(path, at.output / path.name, shallow=False):
                raise SystemExit(f"{label} gives other bytes: {path.name}")
        shutil.rmtree(at.output)


def print_speed(prunectl: list[str], work: Path, args: argparse.Namespace, log: Console) -> Any:
    """Measure, and print a table in Markdown; returns what is in it."""
    at = measuring.Folders(work / "pruned", work / "packed", work / "output", work / "cache")
    zipped = work / "zipped"
    for folder in (at.model, at.output):
        shutil.rmtree(folder, ignore_errors=True)
    source = measuring.checkpoint(work, args.size_gb, args.dtype)
    measuring.run(
        [*prunectl, "prune", str(source), *PRUNINGS[args.prune], "-o", str(at.model)], at.cache
    )
    jobs = jobs_for(prunectl, at, zipped, make_checkpoint.CONFIG_DTYPE[args.dtype])
    prepare(jobs, at, zipped)
    for folder in (at.model, at.small, zipped):
        if folder.exists():
            measuring.read_once(folder)
    measuring.measure(jobs, at.output, at.cache, args.rounds, log)
    rows = measuring.summary(jobs)
    print("| job | seconds | to the copy | peak MiB | fastest to slowest |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        runs = row["runs_seconds"]
        cells = [f"{row['seconds']:.2f}", f"{row['ratio']:.2f}x", f"{row['peak_rss_mib']:,.0f}"]
        print(f"| {row['job']} | {' | '.join(cells)} | {min(runs):.2f} to {max(runs):.2f} |")
    folders = {"pruned": at.model, "packed": at.small, "zipped": zipped}
    return {
        "rounds": args.rounds,
        "prune": args.prune,
        "bytes": {name: measuring.weight_bytes(folder) for name, folder in folders.items()},
        "jobs": rows,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure compressed folders.")
    parser.add_argument("--sizes", action="store_true", help="bytes of each layout")
    parser.add_argument("--speed", action="store_true", help="time and memory")
    parser.add_argument("--size-gb", type=float, default=0.3, help="of the LLaMA-shaped model")
    parser.add_argument("--dtype", choices=make_checkpoint.STORED, default="bf16", help="--speed")
    parser.add_argument("--prune", choices=PRUNINGS, default="40%", help="for --speed")
    parser.add_argument("--rounds", type=int, default=3, help="for --speed")
    parser.add_argument(
        "--zstd", type=int, nargs="+", default=[1, 3, 19], metavar="LEVEL", help="for --sizes"
    )
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder to work in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument(
        "--prunectl", help="the command (default: the one installed with this Python)"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    log = Console(stderr=True)
    work = args.work.resolve()
    (work / "cache").mkdir(parents=True, exist_ok=True)
    prunectl = measuring.installed(args.prunectl)
    rivals = {name: version(name) for name in ("zstandard", "zipnn")}
    report: dict[str, Any] = {"machine": machine(), "rivals": rivals, "size_gb": args.size_gb}
    if args.sizes:
        report["sizes"] = print_sizes(prunectl, work, args, log)
    if args.speed:
        report["speed"] = print_speed(prunectl, work, args, log)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
