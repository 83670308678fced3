"""Reading weight bytes: any range, any view, any number of threads, and files that vanish."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.safetensors_file import read_safetensors
from prunectl.checkpoint.stored import StoredTensor, is_contiguous, row_major_strides
from prunectl.checkpoint.torch_file import read_torch_file
from prunectl.errors import BadCheckpoint


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def by_name(tensors: list[StoredTensor]) -> dict[str, StoredTensor]:
    return {tensor.name: tensor for tensor in tensors}


@pytest.fixture
def plain(tmp_path: Path) -> StoredTensor:
    """1,000 int16 values 0, 1, 2, ... behind another tensor."""
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(7), "b": torch.arange(1000, dtype=torch.int16)}, path)
    return by_name(read_safetensors(path, path.name)[0])["b"]


@pytest.fixture
def turned(tmp_path: Path) -> StoredTensor:
    """A transposed view in a pickle; row-major it reads 0, 1, 2, ..., 999."""
    path = tmp_path / "m.bin"
    base = torch.arange(1000, dtype=torch.int16).reshape(25, 40).t().contiguous()
    torch.save({"a": torch.ones(7), "b": base.t()}, path)
    found = by_name(read_torch_file(path, path.name))["b"]
    assert found.strides == (1, 25)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 1000), length=st.integers(0, 1000), view=st.booleans())
def test_any_range_of_elements(
    tmp_path: Path, plain: StoredTensor, turned: StoredTensor, start: int, length: int, view: bool
) -> None:
    length = min(length, 1000 - start)
    out = np.full(2 * length, 0xAA, np.uint8)
    with WeightReader(tmp_path) as reader:
        reader.read(turned if view else plain, 2 * start, out)
    assert out.view(np.int16).tolist() == list(range(start, start + length))


def test_a_part_of_a_buffer_is_filled_and_nothing_else(tmp_path: Path, plain: StoredTensor) -> None:
    buffer = np.full(30, 0xAA, np.uint8)
    with WeightReader(tmp_path) as reader:
        reader.read(plain, 4, buffer[10:20])
    assert buffer[10:20].view(np.int16).tolist() == [2, 3, 4, 5, 6]
    assert set(buffer[:10]) | set(buffer[20:]) == {0xAA}


def test_many_threads_share_one_reader(
    tmp_path: Path, plain: StoredTensor, turned: StoredTensor
) -> None:
    def read(i: int) -> list[int]:
        out = np.empty(20, np.uint8)
        reader.read((plain, turned)[i % 2], 2 * i, out)
        return out.view(np.int16).tolist()

    descriptors = open_files()
    with WeightReader(tmp_path) as reader, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, range(900)))
        assert open_files() <= descriptors + 3
    assert results == [list(range(i, i + 10)) for i in range(900)]
    assert open_files() == descriptors


def test_a_file_that_two_threads_open_at_once_is_open_once(
    tmp_path: Path, plain: StoredTensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_open, out = os.open, np.empty(20, np.uint8)
    descriptors = open_files()
    with WeightReader(tmp_path) as reader:

        def slow_open(path: Path, flags: int) -> int:
            monkeypatch.setattr(os, "open", system_open)
            reader.read(plain, 0, out)  # the other thread is faster
            return system_open(path, flags)

        monkeypatch.setattr(os, "open", slow_open)
        reader.read(plain, 2, out)
        assert open_files() == descriptors + 1
    assert out.view(np.int16)[0] == 1
    assert open_files() == descriptors


def test_short_reads_are_continued(
    tmp_path: Path, plain: StoredTensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: whole(fd, [parts[0][:7]], at))
    out = np.empty(2000, np.uint8)
    with WeightReader(tmp_path) as reader:
        reader.read(plain, 0, out)
    assert out.view(np.int16).tolist() == list(range(1000))


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_file_that_shrank_since_its_header_was_read(
    tmp_path: Path, plain: StoredTensor, turned: StoredTensor, view: bool, keep: float
) -> None:
    tensor = turned if view else plain
    path = tmp_path / tensor.file
    os.truncate(path, int(path.stat().st_size * keep))
    with (
        WeightReader(tmp_path) as reader,
        pytest.raises(BadCheckpoint, match="truncated while it was read") as caught,
    ):
        reader.read(tensor, 0, np.empty(2000, np.uint8))
    assert caught.value.file == str(path)


@pytest.mark.parametrize("view", [False, True])
def test_a_file_that_is_gone(
    tmp_path: Path, plain: StoredTensor, turned: StoredTensor, view: bool
) -> None:
    tensor = turned if view else plain
    (tmp_path / tensor.file).unlink()
    with (
        WeightReader(tmp_path) as reader,
        pytest.raises(BadCheckpoint, match=f"{tensor.file}: cannot be opened: No such file"),
    ):
        reader.read(tensor, 0, np.empty(2000, np.uint8))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    cuts=st.lists(st.integers(0, 2400), max_size=6),
    sizes=st.sampled_from([(8, 8), (16, 24), (64, 4), (8 << 20, 4 << 20)]),
)
def test_any_view_in_tiles_of_any_size(
    tmp_path: Path, shape: list[int], order: Any, cuts: list[int], sizes: tuple[int, int]
) -> None:
    axes = list(range(len(shape)))
    order.shuffle(axes)
    view = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape).permute(axes)
    torch.save({"v": view}, tmp_path / "m.bin")
    (tensor,) = read_torch_file(tmp_path / "m.bin", "m.bin")
    count = view.numel()
    edges = sorted({0, count, *(cut % count for cut in cuts)})
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch, WeightReader(tmp_path) as reader:
        patch.setattr("prunectl.checkpoint.reader.TILE_BYTES", sizes[0])
        patch.setattr("prunectl.checkpoint.reader._WINDOW_BYTES", sizes[1])
        for first, last in pairwise(edges):
            out = np.empty(4 * (last - first), np.uint8)
            reader.read(tensor, 4 * first, out)
            found += out.view(np.int32).tolist()
    assert found == view.reshape(-1).tolist()


def test_a_large_transposed_matrix_takes_little_memory(tmp_path: Path) -> None:
    base = torch.arange(4096 * 6144, dtype=torch.int32).reshape(4096, 6144)  # 96 MiB
    torch.save({"v": base.t()}, tmp_path / "m.bin")
    read_in_a_small_process = """
import sys
from pathlib import Path
import numpy as np
from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.torch_file import read_torch_file

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

folder = Path(sys.argv[1])
(tensor,) = read_torch_file(folder / "m.bin", "m.bin")
out, before, right = np.empty(2**18, np.uint8), peak(), True
with WeightReader(folder) as reader:
    for at in range(0, tensor.spec.nbytes, 2**18):
        reader.read(tensor, at, out)
        i = np.arange(at // 4, at // 4 + 2**16)
        right &= np.array_equal(out.view(np.int32), i % 4096 * 6144 + i // 4096)
print(int(right), peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", read_in_a_small_process, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    right, kib = done.stdout.split()
    assert right == "1"
    assert int(kib) < 48 * 1024


@given(shape=st.lists(st.integers(0, 4), max_size=5), seed=st.randoms(use_true_random=False))
def test_contiguity_is_what_torch_says(shape: list[int], seed: object) -> None:
    tensor = torch.empty(shape)
    assert row_major_strides(tuple(shape)) == tensor.stride()
    axes = list(range(len(shape)))
    seed.shuffle(axes)  # type: ignore[attr-defined]
    turned = tensor.permute(axes)
    assert is_contiguous(tuple(turned.shape), turned.stride()) == turned.is_contiguous()
