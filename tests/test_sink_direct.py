"""Writing past the page cache: the same bytes as through it, and errors that are not lost."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import prunectl
from prunectl.errors import CannotWrite
from prunectl.sink import direct as direct_module
from prunectl.sink import partial as partial_module
from prunectl.sink.direct import DirectWriter, open_direct
from prunectl.sink.partial import PartialFile

_CHUNK = 8192
_DATA = random.Random(1).randbytes(40 * _CHUNK + 1234)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_module, "CHUNK", _CHUNK)
    monkeypatch.setattr(partial_module, "DIRECT_FROM", 1)


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A folder where files can be written directly."""
    fd = os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT)
    found = open_direct(tmp_path / "probe", fd)
    os.close(fd)
    if found is None:
        pytest.skip("the tests' folder is on no file system that is written directly")
    os.close(found)
    return tmp_path


def pieces(seed: int) -> Iterator[tuple[int, bytes]]:
    """Runs of ``_DATA`` of many sizes, shuffled as threads may shuffle them."""
    random_, at, found = random.Random(seed), 0, []
    while at < len(_DATA):
        size = random_.choice([1, 100, 4096, _CHUNK - 1, _CHUNK, 3 * _CHUNK + 5])
        found.append((at, _DATA[at : at + size]))
        at += size
    random_.shuffle(found)
    yield from found


@pytest.mark.parametrize("seed", range(4))
def test_pieces_in_any_order_by_several_threads(on_disk: Path, seed: int) -> None:
    file = PartialFile(on_disk, "weights", len(_DATA))
    assert file._direct is not None
    with ThreadPoolExecutor(4) as threads:
        for written in [threads.submit(file.write, data, at) for at, data in pieces(seed)]:
            written.result()
    file.close()
    assert (on_disk / "weights").read_bytes() == _DATA
    assert [path.name for path in on_disk.iterdir() if path.name != "probe"] == ["weights"]


def test_what_was_written_is_not_in_the_page_cache_but_for_its_end(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through: list[tuple[int, int]] = []
    monkeypatch.setattr(
        direct_module, "write_at", lambda fd, data, at: through.append((at, len(data)))
    )
    monkeypatch.setattr(direct_module, "SLOW", 0.0)
    file = PartialFile(on_disk, "weights", len(_DATA))
    for at, data in pieces(5):
        file.write(data, at)
    file.close()
    assert sum(size for _, size in through) == 1234
    assert min(at for at, _ in through) == 40 * _CHUNK


def test_a_size_that_is_not_known_yet(on_disk: Path) -> None:
    """As compressed files are written: the header last, the rest after room for it."""
    file = PartialFile(on_disk, "weights", 0, expected=len(_DATA))
    for at, data in pieces(6):
        if at:
            file.write(data, at)
    first = next(data for at, data in pieces(6) if at == 0)
    file.truncate(len(_DATA))
    file.write(first, 0)
    file.close()
    assert (on_disk / "weights").read_bytes() == _DATA


def test_a_slow_disk_gets_it_through_the_page_cache(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    whole = os.fsync
    monkeypatch.setattr(direct_module, "SLOW", float("inf"))
    monkeypatch.setattr(direct_module, "_SYNC_EVERY", 8)
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), whole(fd)))
    file = PartialFile(on_disk, "weights", len(_DATA))
    for at, data in pieces(7):
        file.write(data, at)
    early = len(synced)
    file.close()
    assert file._direct is not None
    assert file._direct._is_slow
    assert 1 <= early <= 4  # of 40 chunks 9 say that it is slow, and some may still be waiting
    assert (on_disk / "weights").read_bytes() == _DATA


def direct_pwrite(
    monkeypatch: pytest.MonkeyPatch, refusal: Callable[[int], OSError | None]
) -> None:
    """Let direct writes fail as ``refusal`` of how many came before says."""
    whole, count = os.pwrite, iter(range(1000))

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        error = refusal(next(count)) if len(data) == _CHUNK else None
        if error is not None:
            raise error
        return whole(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_a_disk_that_wants_other_alignments(tmp_path: Path) -> None:
    """The first try is refused; the same bytes through the page cache are not."""
    path = tmp_path / "weights"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    with pytest.MonkeyPatch.context() as patched:
        direct_pwrite(patched, lambda n: OSError(errno.EINVAL, "no") if n % 2 == 0 else None)
        writer = DirectWriter(os.dup(fd), fd)
        for at in range(0, len(_DATA), _CHUNK):
            writer.write(_DATA[at : at + _CHUNK], at)
            writer._writers.submit(int).result()  # one after another, so that every second fails
        writer.flush()
    writer.close()
    os.close(fd)
    assert path.read_bytes() == _DATA


@pytest.mark.parametrize("good", [0, 3, 39])
def test_a_failed_write_is_told_and_leaves_nothing(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    broken = OSError(errno.EIO, "Input/output error")
    direct_pwrite(monkeypatch, lambda number: broken if number >= good else None)
    file = PartialFile(on_disk, "weights", len(_DATA))

    def whole() -> None:
        for at, data in pieces(8):
            file.write(data, at)
        file.close()

    with pytest.raises(CannotWrite, match="Input/output"):
        whole()
    file.abort()
    assert [path.name for path in on_disk.iterdir()] == ["probe"]


def test_memory_has_no_direct_writes() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("this system has no file system in memory")
    path = memory / f"prunectl-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert open_direct(path, fd) is None
    finally:
        os.close(fd)
        path.unlink()


@pytest.mark.parametrize("layout", [None, "packed"])
def test_outputs_are_the_same_bytes(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch, layout: str | None
) -> None:
    source = on_disk / "source"
    tiny_models.build("llama", source)

    def made(name: str) -> dict[str, bytes]:
        target = on_disk / name
        prunectl.prune(source, target, prunectl.PruneSettings(sparsity=0.4), max_shard_size="20KB")
        if layout:
            prunectl.export(target, on_disk / f"{name}-{layout}", layout, max_shard_size="20KB")
            target = on_disk / f"{name}-{layout}"
        return {path.name: path.read_bytes() for path in target.glob("*.safetensors")}

    direct = made("direct")
    monkeypatch.setattr(partial_module, "DIRECT_FROM", 1 << 40)
    through = made("through")
    assert direct == through
    assert len(direct) > 1
    assert np.frombuffer(b"".join(direct.values()), np.uint8).any()
