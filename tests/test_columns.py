"""Scope row across stored lines: streamed, and the same as pruning each column on its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import reference
import torch

import prunectl
from prunectl.plan.settings import PruneSettings


def gpt2_like(folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tensors = {"h.0.attn.c_attn.weight": torch.randn(shape).to(dtype)}
    folder.mkdir()
    reference.save(folder, tensors)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_matrix_of_many_blocks_is_pruned_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = gpt2_like(tmp_path / "model", (640, 1920), dtype)
    prunectl.prune(tmp_path / "model", tmp_path / "out", PruneSettings(sparsity=0.37, scope="row"))  # type: ignore[arg-type]
    expected = {name: reference.rows(tensor, 0.37, 0) for name, tensor in tensors.items()}
    reference.assert_same(reference.stored(tmp_path / "out"), expected)


# VmHWM and not ru_maxrss, which a child inherits from the large process that started it.
SCRIPT = """
import re, sys, prunectl
prunectl.prune(sys.argv[1], sys.argv[2], prunectl.PruneSettings(sparsity=0.5, scope="row"), jobs=2)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_kib(source: Path, output: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, source, output], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.full
def test_memory_does_not_grow_with_the_matrix(tmp_path: Path) -> None:
    peaks = []
    for name, inputs in (("small", 64), ("large", 4096)):
        gpt2_like(tmp_path / name, (inputs, 3 * inputs), torch.float16)
        peaks.append(peak_kib(tmp_path / name, tmp_path / f"{name}-out"))
    assert peaks[1] - peaks[0] < 32 * 1024  # the large matrix has 96 MiB
