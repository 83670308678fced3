"""Reading past the page cache what is read once: the same bytes, whatever way they come."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import prunectl
from prunectl import disks
from prunectl.checkpoint import direct as direct_module
from prunectl.checkpoint.reader import WeightReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.disks import open_direct, share_in_memory
from prunectl.tensorspec import DTYPES, TensorSpec

_SIZE = 5 * (1 << 20) + 4321
_DATA = random.Random(2).randbytes(_SIZE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds ``weights``, which is not in the page cache as far as the system lets that be."""
    monkeypatch.setattr(direct_module, "DIRECT_FROM", 1)
    path = tmp_path / "weights"
    path.write_bytes(_DATA)
    forget(path)
    return tmp_path


def forget(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def tensor(size: int = _SIZE - 8, offset: int = 8) -> StoredTensor:
    return StoredTensor(TensorSpec("a", DTYPES["U8"], (size,)), "weights", offset)


@pytest.fixture
def direct(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions that are asked for past the page cache; the test needs a disk that offers that, or
    an ordinary descriptor takes its place."""
    fd = os.open(folder / "weights", os.O_RDONLY)
    found = open_direct(folder / "weights", fd, os.O_RDONLY)
    os.close(fd)
    if found is None:
        monkeypatch.setattr(direct_module, "open_direct", lambda path, fd, access: os.dup(fd))
        monkeypatch.setattr(direct_module, "share_in_memory", lambda fd: 0.0)
    else:
        os.close(found)
    asked: list[int] = []
    whole = os.preadv

    def preadv(fd: int, buffers: list[memoryview], at: int) -> int:
        if at % 4096 == 0 and len(buffers[0]) % 4096 == 0:
            asked.append(at)
        return whole(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)
    return asked


@pytest.mark.parametrize("size", [1, 4095, 4096, 1 << 20, (1 << 20) + 1, 3 << 20, _SIZE - 8])
def test_any_part_is_what_the_file_holds(folder: Path, direct: list[int], size: int) -> None:
    with WeightReader(folder, once=True) as reader:
        for start in {0, 1, 4088, 4096, _SIZE - 8 - size}:
            if start + size <= _SIZE - 8:
                out = np.zeros(size, np.uint8)
                reader.read(tensor(), start, out)
                assert out.tobytes() == _DATA[8 + start : 8 + start + size]
    assert direct


def test_threads_read_at_once(folder: Path, direct: list[int]) -> None:
    with WeightReader(folder, once=True) as reader, ThreadPoolExecutor(4) as threads:

        def part(start: int) -> bytes:
            out = np.zeros(min(100_003, _SIZE - 8 - start), np.uint8)
            reader.read(tensor(), start, out)
            return out.tobytes()

        parts = threads.map(part, range(0, _SIZE - 8, 100_003))
        assert b"".join(parts) == _DATA[8:]
    assert direct


def test_what_is_in_memory_is_read_from_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "weights").read_bytes()
    fd = os.open(folder / "weights", os.O_RDWR)
    assert share_in_memory(fd) == 1.0
    os.close(fd)
    monkeypatch.setattr(direct_module, "open_direct", lambda path, fd, access: os.dup(fd))
    with WeightReader(folder, once=True) as reader:
        out = np.zeros(100, np.uint8)
        before = len(list(Path("/proc/self/fd").iterdir()))
        reader.read(tensor(), 0, out)
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1  # the ordinary one
        assert reader._direct is not None
        assert list(reader._direct._descriptors.values()) == [None]
    assert out.tobytes() == _DATA[8:108]


def test_a_file_system_that_does_not_map_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    fd = os.open(folder / "weights", os.O_RDWR)
    monkeypatch.setattr(disks.mmap, "mmap", refuse)
    assert share_in_memory(fd) == 1.0
    os.close(fd)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_where_the_disk_refuses_the_page_cache_is_asked(
    folder: Path, direct: list[int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    whole = os.preadv

    def preadv(fd: int, buffers: list[memoryview], at: int) -> int:
        if at % 4096 == 0 and len(buffers[0]) % 4096 == 0 and at >= 2 << 20:
            raise OSError(code, "no")
        return whole(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)
    with WeightReader(folder, once=True) as reader:
        out = np.zeros(_SIZE - 8, np.uint8)
        reader.read(tensor(), 0, out)
    assert out.tobytes() == _DATA[8:]


def test_verify_finds_what_changed_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_module, "DIRECT_FROM", 1)
    tiny_models.build("llama", tmp_path / "source")
    prunectl.prune(tmp_path / "source", tmp_path / "out", prunectl.PruneSettings(sparsity=0.4))
    weights = tmp_path / "out" / "model.safetensors"
    forget(weights)
    assert prunectl.verify(tmp_path / "out").ok
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    forget(weights)
    assert not prunectl.verify(tmp_path / "out").ok
