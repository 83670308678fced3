"""The job of ``prunectl prune --sparsity S`` as torch users do it: everything in memory.

    python benchmarks/torch_reference.py MODEL OUT --sparsity 0.4

Loads all shards, prunes the matrices of the blocks with
``torch.nn.utils.prune.global_unstructured`` and writes the shards again, with fsync. Measured by
speed.py on a model that still fits.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune


def linear(weight: torch.Tensor) -> nn.Linear:
    """A layer that holds ``weight`` without having allocated another."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.4)
    args = parser.parse_args()

    shards = {path.name: load_file(path) for path in sorted(args.model.glob("*.safetensors"))}
    layers = {
        name: linear(tensor)
        for tensors in shards.values()
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight")
    }
    prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()],
        pruning_method=prune.L1Unstructured,
        amount=args.sparsity,
    )
    args.output.mkdir()
    for file, tensors in shards.items():
        for name in tensors.keys() & layers.keys():
            prune.remove(layers[name], "weight")
            tensors[name] = layers[name].weight.detach().contiguous()
        save_file(tensors, args.output / file, metadata={"format": "pt"})
        with (args.output / file).open("rb+") as written:
            os.fsync(written.fileno())


if __name__ == "__main__":
    main()
