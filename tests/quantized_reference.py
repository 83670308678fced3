"""Quantized linear layers, written as each format says, in plain code: a weight in, tensors out.

Each writer quantizes by rounding to nearest, so that a weight of 0 is stored as 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]


@dataclass
class Grid:
    """A weight [out, in] on a grid: ``weight ~ (integers - points[group]) * scales[group]``."""

    integers: np.ndarray
    points: np.ndarray
    scales: np.ndarray
    group_of: np.ndarray
    bits: int


def on_grid(
    weight: torch.Tensor, bits: int, group: int, *, symmetric: bool, shuffle: int = 0
) -> Grid:
    """Integers from 0 up, [out, in]; points and scales are [out, groups]. ``shuffle`` deals the
    inputs to the groups at random."""
    values = weight.float().numpy()
    rows, width = values.shape
    group_of = np.arange(width) // group
    if shuffle:
        group_of = np.random.default_rng(shuffle).permutation(group_of)
    top = 2**bits - 1
    count = width // group
    integers = np.zeros((rows, width), np.int64)
    points, scales = np.zeros((rows, count), np.int64), np.ones((rows, count))
    for row in range(rows):
        for at in range(count):
            part = values[row, group_of == at]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            if symmetric:
                scales[row, at] = 2 * max(-low, high) / top or 1.0
                points[row, at] = 2 ** (bits - 1)
            else:
                scales[row, at] = (high - low) / top or 1.0
                points[row, at] = round(-low / scales[row, at])
            found = np.round(part / scales[row, at]) + points[row, at]
            integers[row, group_of == at] = found.clip(0, top)
    return Grid(integers, points, scales, group_of, bits)


def words_of(integers: np.ndarray, bits: int, whole: bool = False) -> torch.Tensor:
    """Each row as one long number, the first integer lowest, cut into int32.

    ``whole``: no integer is cut; the bits that are left of a word are 0.
    """
    rows = []
    each = 32 // bits
    for row in integers.tolist():
        places = [
            at // each * 32 + at % each * bits if whole else at * bits for at in range(len(row))
        ]
        number = sum(value << place for place, value in zip(places, row, strict=True))
        size = -(-(places[-1] + bits) // 32) * 4
        rows.append(np.frombuffer(number.to_bytes(size, "little"), "<i4"))
    return torch.from_numpy(np.stack(rows).copy())


# --- compressed-tensors ---------------------------------------------------------------------------


def ct_packed(
    weight: torch.Tensor,
    bits: int = 4,
    symmetric: bool = True,
    shuffle: int = 0,
    whole: bool = False,
) -> Tensors:
    grid = on_grid(weight, bits, 16, symmetric=symmetric, shuffle=shuffle)
    tensors = {
        "weight_packed": words_of(grid.integers, bits, whole),
        "weight_shape": torch.tensor(weight.shape),
        "weight_scale": torch.from_numpy(grid.scales).to(torch.bfloat16),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words_of(grid.points.T, bits, whole).T.contiguous()
    if shuffle:
        tensors["weight_g_idx"] = torch.from_numpy(grid.group_of).to(torch.int32)
    return tensors


def ct_int8(weight: torch.Tensor, symmetric: bool = True) -> Tensors:
    grid = on_grid(weight, 8, weight.shape[1], symmetric=symmetric)
    tensors = {
        "weight": torch.from_numpy(grid.integers - 128).to(torch.int8),
        "weight_scale": torch.from_numpy(grid.scales).float(),
    }
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy(grid.points - 128).to(torch.int8)
    return tensors


def fp8(weight: torch.Tensor) -> Tensors:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale.to(torch.bfloat16)}


def fp4(weight: torch.Tensor) -> Tensors:
    steps = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    groups = weight.float().reshape(weight.shape[0], -1, 16)
    scale = groups.abs().amax(2, keepdim=True).clamp(min=1e-6) / 6
    near = ((groups.abs() / scale)[..., None] - steps).abs().argmin(-1)
    codes = (near + 8 * groups.signbit()).reshape(weight.shape).to(torch.uint8)
    return {
        "weight_packed": codes[:, 0::2] | codes[:, 1::2] << 4,
        "weight_scale": scale[..., 0].to(torch.float8_e4m3fn),
        "weight_global_scale": torch.ones(1),
    }


# --- GPTQ, AWQ ------------------------------------------------------------------------------------


def gptq(weight: torch.Tensor, bits: int = 4, shuffle: int = 0, version: int = 1) -> Tensors:
    grid = on_grid(weight, bits, 16, symmetric=False, shuffle=shuffle)
    stored = (grid.points - (version == 1)) % 2**bits  # [out, groups]
    return {
        "qweight": words_of(grid.integers, bits).T.contiguous(),
        "qzeros": words_of(stored.T, bits),
        "scales": torch.from_numpy(grid.scales.T.copy()).half(),
        "g_idx": torch.from_numpy(grid.group_of).to(torch.int32),
    }


def awq(weight: torch.Tensor) -> Tensors:
    grid = on_grid(weight, 4, 16, symmetric=False)

    def packed(integers: np.ndarray) -> torch.Tensor:  # [n, out]
        eights = integers.reshape(len(integers), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return words_of(eights.reshape(len(integers), -1), 4)

    return {
        "qweight": packed(grid.integers.T),
        "qzeros": packed(grid.points.T),
        "scales": torch.from_numpy(grid.scales.T.copy()).half(),
    }


# --- bitsandbytes ---------------------------------------------------------------------------------

NF4 = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
       0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]  # fmt: skip
FP4 = [0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25,
       -0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667, -0.25]  # fmt: skip


def bnb_int8(weight: torch.Tensor) -> Tensors:
    largest = weight.float().abs().amax(1)
    stored = (weight.float() * 127 / largest[:, None].clamp(min=1e-9)).round().to(torch.int8)
    return {"weight": stored, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def bnb_4bit(
    weight: torch.Tensor, kind: str, nested: bool = False, storage: torch.dtype = torch.uint8
) -> Tensors:
    levels = torch.tensor(NF4 if kind == "nf4" else FP4)
    blocks = weight.float().reshape(-1, 16)
    largest = blocks.abs().amax(1)
    near = ((blocks / largest[:, None].clamp(min=1e-9))[..., None] - levels).abs().argmin(-1)
    codes = near.flatten().to(torch.uint8)
    facts = {"quant_type": kind, "blocksize": 16, "dtype": "bfloat16", "shape": list(weight.shape)}
    tensors = {
        "weight": (codes[0::2] << 4 | codes[1::2]).view(storage)[:, None],
        "weight.absmax": largest,
        "weight.quant_map": levels,
    }
    if nested:
        facts |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1}
        tensors["weight.absmax"] = (largest * 40).to(torch.uint8)
        tensors["weight.nested_absmax"] = torch.ones(1)
        tensors["weight.nested_quant_map"] = torch.linspace(-1, 1, 256)
    state = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    return tensors | {f"weight.quant_state.bitsandbytes__{kind}": state}


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}
CT: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def ct_config(bits: int, **more: str) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return CT | {"config_groups": groups} | more


AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "version": "gemm"}
BNB: dict[str, Any] = {"quant_method": "bitsandbytes"}

FORMATS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Tensors]]] = {
    "int4 of compressed-tensors": (ct_config(4), ct_packed),
    "int4 of compressed-tensors, asymmetric": (ct_config(4), lambda w: ct_packed(w, 4, False)),
    "int8 of compressed-tensors, packed": (ct_config(8), lambda w: ct_packed(w, 8)),
    "int4 of compressed-tensors, g_idx": (
        ct_config(4),
        lambda w: ct_packed(w, 4, False, shuffle=1),
    ),
    **{
        f"int{bits} of compressed-tensors, {version}": (
            ct_config(bits, version=version),
            partial(ct_packed, bits=bits, symmetric=False, whole=whole),
        )
        for bits in (3, 5, 6, 7)
        for version, whole in (("0.17.1", True), ("0.18.0", False))
    },
    "int8 of compressed-tensors": (CT, ct_int8),
    "int8 of compressed-tensors, asymmetric": (CT, lambda w: ct_int8(w, symmetric=False)),
    "fp8-e4m3": (CT, fp8),
    "fp4 of compressed-tensors": (CT, fp4),
    "int4 of GPTQ": (GPTQ, gptq),
    "int4 of GPTQ, act-order": (GPTQ, lambda w: gptq(w, shuffle=2)),
    "int3 of GPTQ": (GPTQ, lambda w: gptq(w, 3)),
    "int8 of GPTQ": (GPTQ, lambda w: gptq(w, 8)),
    "int4 of GPTQ, v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, lambda w: gptq(w, version=2)),
    "int4 of AWQ": (AWQ, awq),
    "int8 of bitsandbytes": (BNB, bnb_int8),
    "nf4 of bitsandbytes": (BNB, lambda w: bnb_4bit(w, "nf4")),
    "nf4 of bitsandbytes, nested": (BNB, lambda w: bnb_4bit(w, "nf4", nested=True)),
    "fp4 of bitsandbytes": (BNB, lambda w: bnb_4bit(w, "fp4")),
    "fp4 of bitsandbytes, in bf16": (
        BNB,
        lambda w: bnb_4bit(w, "fp4", storage=torch.bfloat16),
    ),
}
"""Formats, with the ``quantization_config`` of each; a name begins with what prunectl calls it."""
