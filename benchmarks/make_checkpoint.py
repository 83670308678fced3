"""Make a LLaMA-shaped checkpoint of a chosen size, with random weights, in bounded memory.

    python benchmarks/make_checkpoint.py OUT --size-gb 8 --dtype bf16

The folder holds safetensors shards with their index and a config.json that transformers loads as
LlamaForCausalLM (GQA, head tied or not). Its size comes within a layer of the one asked for.

Weights are normal with the standard deviations that LLaMA-like models start from. They are taken
from a seeded pool of 8 Mi normal values per deviation, each block of a tensor from a random place
in it: histograms look normal and no tensor equals another, but the values repeat. Pruning reads
each value for itself, so this does not favour it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

GB = 10**9
POOL = 1 << 23
BLOCK = 1 << 20
STORED = {"bf16": ("BF16", 2), "fp16": ("F16", 2), "fp32": ("F32", 4)}
CONFIG_DTYPE = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaMA."""

    hidden: int
    layers: int
    tied: bool

    @property
    def intermediate(self) -> int:
        return -(-self.hidden * 11 // 4 // 64) * 64

    @property
    def vocabulary(self) -> int:
        return min(32000, self.hidden * 8)

    @property
    def key_values(self) -> int:
        """Rows of the key and value projections: a quarter as many heads as queries."""
        return self.hidden // 4

    def layer(self) -> dict[str, tuple[int, ...]]:
        h, i, kv = self.hidden, self.intermediate, self.key_values
        return {
            "input_layernorm.weight": (h,),
            "mlp.down_proj.weight": (h, i),
            "mlp.gate_proj.weight": (i, h),
            "mlp.up_proj.weight": (i, h),
            "post_attention_layernorm.weight": (h,),
            "self_attn.k_proj.weight": (kv, h),
            "self_attn.o_proj.weight": (h, h),
            "self_attn.q_proj.weight": (h, h),
            "self_attn.v_proj.weight": (kv, h),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """All tensors in file order, with their shapes."""
        ends = {} if self.tied else {"lm_head.weight": (self.vocabulary, self.hidden)}
        ends["model.embed_tokens.weight"] = (self.vocabulary, self.hidden)
        inner = {
            f"model.layers.{number}.{name}": shape
            for number in range(self.layers)
            for name, shape in self.layer().items()
        }
        return ends | inner | {"model.norm.weight": (self.hidden,)}

    def config(self, dtype: str) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 16 if self.hidden < 1024 else self.hidden // 128,
            "num_key_value_heads": self.hidden // 64 if self.hidden < 1024 else self.hidden // 512,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": CONFIG_DTYPE[dtype],
        }


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def shape_for(parameters: int, tied: bool) -> Shape:
    """The widest LLaMA of at least 8 layers (2 for the smallest) with about so many parameters."""
    for hidden in (8192, 4096, 2048, 1024, 512, 256, 128, 64):
        bare = Shape(hidden, 0, tied)
        layers = round((parameters - count(bare.tensors())) / count(bare.layer()))
        if layers >= 8 or hidden == 64:
            return Shape(hidden, max(2, layers), tied)
    raise AssertionError("the loop ends at the smallest width")


class Pool:
    """Seeded values in the stored type, as bytes-like blocks; one table per standard deviation."""

    def __init__(self, dtype: str, seed: int) -> None:
        import torch

        torch_type = getattr(torch, CONFIG_DTYPE[dtype])
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(POOL, generator=generator)
        raw = {2: torch.int16, 4: torch.int32}[STORED[dtype][1]]

        def stored(values: torch.Tensor) -> np.ndarray:
            return values.to(torch_type).view(raw).numpy()

        self._places = np.random.default_rng(seed)
        self._ones = stored(torch.ones(BLOCK))
        self._narrow = stored(normal * 0.01)
        self._wide = stored(normal * 0.02)

    def blocks(self, name: str, size: int) -> Iterator[np.ndarray]:
        """The ``size`` values of a tensor in row-major order, in blocks of at most ``BLOCK``."""
        if "norm" in name:
            table = self._ones
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            table = self._narrow  # the projections that write to the residual stream
        else:
            table = self._wide
        for done in range(0, size, BLOCK):
            length = min(BLOCK, size - done)
            start = int(self._places.integers(0, len(table) - length + 1))
            yield table[start : start + length]


def split(shapes: dict[str, tuple[int, ...]], shards: int) -> list[dict[str, tuple[int, ...]]]:
    """Tensors in order, in at most ``shards`` parts of about equal size."""
    total, seen = count(shapes), 0
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    for name, shape in shapes.items():
        parts[seen * shards // total][name] = shape
        seen += math.prod(shape)
    return [part for part in parts if part]


def write_shard(
    file: BinaryIO, shapes: dict[str, tuple[int, ...]], dtype: str, pool: Pool | None
) -> None:
    """Write a safetensors file; without a pool its data are a hole."""
    stored, width = STORED[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    if pool is None:
        file.truncate(8 + len(text) + end)
        return
    for name, shape in shapes.items():
        for block in pool.blocks(name, math.prod(shape)):
            file.write(block.data)


class Architecture(Protocol):
    """A kind of model, in its sizes."""

    def tensors(self) -> dict[str, tuple[int, ...]]: ...
    def config(self, dtype: str) -> dict[str, Any]: ...


def make_checkpoint(
    target: Path,
    *,
    size_gb: float,
    dtype: str = "bf16",
    shards: int = 4,
    tied: bool = False,
    seed: int = 0,
) -> int:
    """Write the checkpoint folder ``target``, which must not exist; returns its weight bytes."""
    shape = shape_for(int(size_gb * GB) // STORED[dtype][1], tied)
    return write_checkpoint(target, shape, dtype=dtype, shards=shards, seed=seed)


def write_checkpoint(
    target: Path,
    model: Architecture,
    *,
    dtype: str,
    shards: int,
    seed: int = 0,
    hollow: bool = False,
) -> int:
    """Write a model as the folder ``target``, which must not exist; returns its weight bytes.

    Args:
        hollow: the files are sparse ones: headers are there, data are holes that take no disk.
    """
    if target.exists():
        raise FileExistsError(target)
    tensors = model.tensors()
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    pool = None if hollow else Pool(dtype, seed)
    weight_map: dict[str, str] = {}
    parts = split(tensors, shards)
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        with (temporary / name).open("wb") as file:
            write_shard(file, part, dtype, pool)
        weight_map |= dict.fromkeys(part, name)
    total = count(tensors) * STORED[dtype][1]
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (temporary / "config.json").write_text(json.dumps(model.config(dtype), indent=2) + "\n")
    temporary.rename(target)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a LLaMA-shaped checkpoint, random weights.")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--size-gb", type=float, default=1.0, help="weights, in 10^9 bytes")
    parser.add_argument("--dtype", choices=STORED, default="bf16")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--tied", action="store_true", help="no head of its own")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    total = make_checkpoint(
        args.target,
        size_gb=args.size_gb,
        dtype=args.dtype,
        shards=args.shards,
        tied=args.tied,
        seed=args.seed,
    )
    print(f"{args.target}: {total:,} bytes of weights")


if __name__ == "__main__":
    main()
