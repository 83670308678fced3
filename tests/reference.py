"""Pruning as the definition says it, in plain torch on whole tensors: slow, obvious, independent.

Nothing of prunectl is used here. Tensors are compared by their bytes, so that -0.0 is not +0.0.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


# --- files ------------------------------------------------------------------------------------


def stored(folder: Path) -> Tensors:
    """All tensors of a folder's weight files, in file order; tied ones of a pickle once."""
    paths = sorted(folder.glob("*.safetensors"))
    if paths:
        return {name: tensor for path in paths for name, tensor in _safetensors(path).items()}
    found: Tensors = {}
    places = set()
    for path in sorted(folder.glob("pytorch_model*.bin")):
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
            if place not in places or not tensor.numel():
                found[name] = tensor
            places.add(place)
    return found


def _safetensors(path: Path) -> Tensors:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    names = sorted(header, key=lambda name: header[name]["data_offsets"])
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in names}


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All below a folder: mode, time of change and bytes, hidden files and folders too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[path.relative_to(folder).as_posix()] = (status.st_mode, status.st_mtime_ns, data)
    return found


def save(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a checkpoint of one safetensors file and no config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def raw(tensor: torch.Tensor) -> bytes:
    """The tensor's own bytes, row by row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        if raw(found[name]) != raw(tensor):
            differ = (found[name] != tensor).sum().item()
            zeros = (found[name] == 0).sum().item(), (tensor == 0).sum().item()
            raise AssertionError(
                f"{name}: {differ} values differ; zeros {zeros[0]}, not {zeros[1]}"
            )


def zeros(tensors: Iterable[torch.Tensor]) -> int:
    return sum(int((tensor == 0).sum()) for tensor in tensors)


# --- definitions ------------------------------------------------------------------------------


def count(sparsity: float, weights: int) -> int:
    """``floor(s*P + 0.5)`` of the decimal that is written."""
    return math.floor(Fraction(str(sparsity)) * weights + Fraction(1, 2))


def together(tensors: Tensors, names: Iterable[str], sparsity: float) -> Tensors:
    """Unstructured: all weights of ``names`` in one pool, the smallest k go."""
    names = list(names)
    wide = [exact(tensors[name]) for name in names]
    dtype = max((part.dtype for part in wide), key=lambda dtype: dtype.itemsize)
    magnitudes = torch.cat([part.reshape(-1).to(dtype) for part in wide])
    k = count(sparsity, magnitudes.numel())
    result = dict(tensors)
    if int((magnitudes == 0).sum()) >= k:
        return result  # nothing is left to prune, and what is not pruned keeps its bits
    # The first k of a stable sort, without the sort, which takes minutes on a real model.
    threshold = np.partition(magnitudes.numpy(), k - 1)[k - 1].item()
    goes = magnitudes < threshold
    ties = (magnitudes == threshold).nonzero()
    goes[ties[: k - int(goes.sum())]] = True
    start = 0
    for name in names:
        part = goes[start : start + tensors[name].numel()].reshape(tensors[name].shape)
        result[name] = zeroed(tensors[name], part)
        start += tensors[name].numel()
    return result


def alone(tensor: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Unstructured: one tensor as a pool of its own."""
    return together({"": tensor}, [""], sparsity)[""]


def rows(tensor: torch.Tensor, sparsity: float, axis: int = -1) -> torch.Tensor:
    """Unstructured: every line along the input axis as a pool of its own."""
    lines = tensor.movedim(axis, -1)
    flat = lines.reshape(-1, lines.shape[-1])
    done = torch.stack([alone(line, sparsity) for line in flat])
    return done.reshape(lines.shape).movedim(-1, axis).contiguous()


def nm(tensor: torch.Tensor, n: int, m: int, axis: int = -1) -> torch.Tensor:
    """The n largest of every m along the input axis stay; of equal ones the first."""
    lines = tensor.movedim(axis, -1)
    groups = lines.reshape(-1, m)
    order = torch.sort(exact(groups), dim=1, descending=True, stable=True).indices
    goes = torch.zeros(groups.shape, dtype=torch.bool)
    goes.scatter_(1, order[:, n:], True)
    return zeroed(groups, goes).reshape(lines.shape).movedim(-1, axis).contiguous()


def budget(
    tensors: Tensors, names: Iterable[str], n: int, m: int, sparsity: float, axis: int = -1
) -> Tensors:
    """N:M for whole matrices, those that lose least first, until the zeros are nearest to k."""
    names = list(names)
    k = count(sparsity, sum(tensors[name].numel() for name in names))
    full = {name: nm(tensors[name], n, m, axis) for name in names}
    loss, more = {}, {}
    for name in names:
        before, after = tensors[name].double(), full[name].double()
        more[name] = zeros([after]) - zeros([before])
        lost = ((before - after) ** 2).sum() / max(more[name], 1)
        loss[name] = (lost / (before**2).mean()).item() if before.any() else 0.0
    ranked = sorted(names, key=lambda name: float(f"{loss[name]:.9g}"))
    present = zeros(tensors[name] for name in names)
    distances = [
        abs(present + sum(more[name] for name in ranked[:taken]) - k)
        for taken in range(len(names) + 1)
    ]
    taken = distances.index(min(distances))
    return {**tensors, **{name: full[name] for name in ranked[:taken]}}


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """Magnitudes, unrounded: float32 holds every float16 and bfloat16."""
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).abs()


def zeroed(tensor: torch.Tensor, goes: torch.Tensor) -> torch.Tensor:
    """+0.0 where ``goes``, every other bit as it was."""
    return torch.where(goes, torch.zeros((), dtype=tensor.dtype), tensor)


def flip_bit(path: Path, place: int = -5) -> None:
    """Change one bit of a file, near its end."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
