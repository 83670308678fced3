"""Writing past the page cache: the same bytes as through it, and errors that are not lost."""

from __future__ import annotations

import errno
import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

import prunectl
from prunectl.calibration.store import CalibratedStore
from prunectl.disks import open_direct
from prunectl.errors import CannotWrite, NoSpace
from prunectl.output import direct as direct_module
from prunectl.output import osfiles
from prunectl.output import partial as partial_module
from prunectl.output.direct import DirectWriter
from prunectl.output.partial import PartialFile
from prunectl.parallel.run import PLAIN_RUN
from prunectl.tensorspec import DTYPES, TensorSpec

_CHUNK = 8192
_DATA = random.Random(1).randbytes(40 * _CHUNK + 1234)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_module, "CHUNK", _CHUNK)
    monkeypatch.setattr(partial_module, "DIRECT_FROM", 1)


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where files are written directly; on a file system where that is not done, by an
    ordinary descriptor in the place of the other one."""
    fd = os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT)
    found = open_direct(tmp_path / "probe", fd, os.O_WRONLY)
    os.close(fd)
    if found is None:
        monkeypatch.setattr(partial_module, "open_direct", lambda path, fd, access: os.dup(fd))
    else:
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


def test_nothing_but_the_end_is_written_otherwise(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through: list[tuple[int, int]] = []
    monkeypatch.setattr(
        direct_module, "write_at", lambda fd, data, at: through.append((at, len(data)))
    )
    monkeypatch.setattr(direct_module, "SLOW", 0.0)
    file = PartialFile(on_disk, "weights", len(_DATA))
    for at, data in sorted(pieces(5)):
        file.write(data, at)
    file.close()
    assert sum(size for _, size in through) == 1234
    assert min(at for at, _ in through) == 40 * _CHUNK


def test_a_slow_disk_gets_it_through_the_page_cache(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    whole = os.fsync
    monkeypatch.setattr(direct_module, "SLOW", float("inf"))
    monkeypatch.setattr(direct_module, "_SYNC_EVERY", 8)
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), whole(fd)))
    file = PartialFile(on_disk, "weights", len(_DATA))
    for at, data in sorted(pieces(7)):
        file.write(data, at)
    early = len(synced)
    file.close()
    assert file._direct is not None
    assert file._direct._is_slow
    assert early >= 1
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


def test_a_disk_that_wants_other_alignments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every try is refused; the same bytes through the page cache are not."""
    path = tmp_path / "weights"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    direct, whole, refused = os.dup(fd), os.pwrite, []

    def pwrite(to: int, data: memoryview, at: int) -> int:
        if to == direct:
            refused.append(at)
            raise OSError(errno.EINVAL, "Invalid argument")
        return whole(to, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(direct_module, "SLOW", 0.0)
    writer = DirectWriter(direct, fd)
    writer.write(_DATA, 0)
    writer.flush()
    writer.close()
    os.close(fd)
    assert len(refused) == 40
    assert path.read_bytes() == _DATA


@pytest.mark.parametrize("good", [0, 3, 39])
def test_a_failed_write_is_told_and_leaves_nothing(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    broken = OSError(errno.EIO, "Input/output error")
    direct_pwrite(monkeypatch, lambda number: broken if number >= good else None)
    file = PartialFile(on_disk, "weights", len(_DATA))

    def whole() -> None:
        for at, data in sorted(pieces(8)):
            file.write(data, at)
        file.close()

    with pytest.raises(CannotWrite, match="Input/output"):
        whole()
    file.abort()
    assert [path.name for path in on_disk.iterdir()] == ["probe"]


@pytest.mark.parametrize("size", [0, len(_DATA)])
def test_a_full_disk_is_told_with_what_is_needed(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(osfiles, "free_bytes", lambda path: 100)
    direct_pwrite(monkeypatch, lambda number: full if number >= 5 else None)
    file = PartialFile(on_disk, "weights", size, expected=len(_DATA))

    def all_of_it() -> None:
        for at, data in pieces(9):
            file.write(data, at)
        file.truncate(len(_DATA))

    with pytest.raises(NoSpace, match=f"{len(_DATA):,} bytes are needed"):
        all_of_it()
    file.abort()


def test_a_failed_sync_is_told(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells it once, in the background."""
    monkeypatch.setattr(direct_module, "SLOW", float("inf"))
    monkeypatch.setattr(direct_module, "_SYNC_EVERY", 8)
    whole, broken = os.fsync, iter([OSError(errno.EIO, "Input/output error")])

    def fsync(fd: int) -> None:
        for error in broken:
            raise error
        whole(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    file = PartialFile(on_disk, "weights", len(_DATA))

    def all_of_it() -> None:
        for at, data in pieces(10):
            file.write(data, at)
        file.close()

    with pytest.raises(CannotWrite, match="Input/output"):
        all_of_it()
    file.abort()


@pytest.mark.parametrize("threads", [1, 8])
def test_gaps_do_not_fill_memory(on_disk: Path, threads: int) -> None:
    """Compressed files have some between their tensors, and chunks there never become full."""
    file = PartialFile(on_disk, "weights", 0, expected=len(_DATA))
    writer = file._direct
    assert writer is not None
    expected, begun = bytearray(len(_DATA)), 0
    step = _CHUNK + 100
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(_DATA), threads * step):
            places = range(start, min(start + threads * step, len(_DATA)), step)
            list(pool.map(lambda at: file.write(_DATA[at : at + step - 3], at), places))
            begun = max(begun, len(writer._begun))
            for at in places:
                expected[at : at + step - 3] = _DATA[at : at + step - 3]
    assert 1 <= begun <= 3 * threads
    file.truncate(len(_DATA))
    file.close()
    assert (on_disk / "weights").read_bytes() == expected
    assert not writer._begun
    assert not writer._free


def test_who_waits_when_it_is_closed_gets_an_error(tmp_path: Path) -> None:
    """As after a second Ctrl-C: the program could not end as long as a thread waits."""
    fd = os.open(tmp_path / "weights", os.O_RDWR | os.O_CREAT)
    writer = DirectWriter(os.dup(fd), fd)
    go_on, busy = threading.Event(), threading.Barrier(3, timeout=120)
    for _ in range(2):
        writer._writers.submit(lambda: (busy.wait(), go_on.wait(120)))
    busy.wait()  # what is handed on from now on waits behind these

    def put(first: int) -> None:
        for at in range(first * _CHUNK, len(_DATA), 3 * _CHUNK):
            writer.write(_DATA[at : at + _CHUNK], at)

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(put, first) for first in range(3)]
        while writer._writers._work_queue.qsize() < 4:
            time.sleep(0.01)
        closing = pool.submit(writer.close)
        while writer._writers._work_queue.qsize() >= 4:  # until those are cancelled
            time.sleep(0.01)
        go_on.set()
        closing.result(timeout=120)
        for one in waiting:
            with pytest.raises(RuntimeError, match="shutdown"):
                one.result(timeout=120)
    os.close(fd)


def test_no_more_descriptors_no_direct_writes(on_disk: Path) -> None:
    path = on_disk / "weights"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        # The lowest free number is fd + 1 or less, and no number from 0 on is allowed.
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        assert open_direct(path, fd, os.O_WRONLY) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        os.close(fd)


def test_a_disk_that_does_not_let_go_of_a_file_hides_no_error(tmp_path: Path) -> None:
    """Such as one that has become read-only; a folder cannot be unlinked either."""
    file = PartialFile(tmp_path, "weights", 100)
    (tmp_path / "weights.partial").unlink()
    (tmp_path / "weights.partial").mkdir()
    file.abort()
    assert file.closed


def test_a_file_whose_closing_fails_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file may have its number by then."""
    file = PartialFile(tmp_path, "weights", 100)
    whole, number, closed = os.close, file._fd, []

    def close(fd: int) -> None:
        whole(fd)
        if fd == number:
            closed.append(fd)
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close)
        with pytest.raises(CannotWrite, match="Input/output"):
            file.close()
        file.abort()
    assert closed == [number]
    assert not (tmp_path / "weights").exists()


def test_dropping_a_file_waits_for_who_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_module, "DIRECT_FROM", 1 << 40)
    whole, writing, go_on, wrote = os.pwrite, threading.Event(), threading.Event(), []

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        writing.set()
        go_on.wait(120)
        wrote.append(os.fstat(fd).st_size)
        return whole(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    file = PartialFile(tmp_path, "weights", 100)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(file.write, b"x" * 100, 0)
        writing.wait(120)
        dropping = pool.submit(file.abort)
        time.sleep(0.05)
        assert not dropping.done()
        go_on.set()
        first.result()
        dropping.result()
    assert wrote == [100]
    with pytest.raises(ValueError, match="closed"):
        file.write(b"x", 0)


_ENDS = st.sets(st.integers(0, 6 * _CHUNK + 77), max_size=40)


@given(
    ends=_ENDS,
    gaps=st.sets(st.integers(0, 40), max_size=8),
    threads=st.integers(1, 5),
    waits=st.sets(st.integers(0, 40), max_size=3),
    refused=st.sets(st.integers(0, 8)),
    short=st.sets(st.integers(0, 8)),
    slow=st.sampled_from([0.0, 0.5e9, float("inf")]),
    seed=st.randoms(use_true_random=False),
)
def test_any_pieces_by_any_threads(
    tmp_path_factory: pytest.TempPathFactory,
    ends: set[int],
    gaps: set[int],
    threads: int,
    waits: set[int],
    refused: set[int],
    short: set[int],
    slow: float,
    seed: random.Random,
) -> None:
    """Against plain bytes: gaps, a flush in between, writes refused or cut short by the system."""
    size = 6 * _CHUNK + 77
    cuts = sorted({0, size, *ends})
    runs = [
        (begin, end) for number, (begin, end) in enumerate(pairwise(cuts)) if number not in gaps
    ]
    seed.shuffle(runs)
    expected = bytearray(size)
    whole, count = os.pwrite, iter(range(1000))

    path = tmp_path_factory.getbasetemp() / "pieces"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(fd, size)
    found = open_direct(path, fd, os.O_WRONLY)
    writer = DirectWriter(os.dup(fd) if found is None else found, fd)
    direct = writer._direct

    def pwrite(to: int, data: memoryview, at: int) -> int:
        if to != direct:
            return whole(to, data, at)
        number = next(count)
        if number in refused:
            raise OSError(errno.EINVAL, "Invalid argument")
        return whole(to, data[:4096] if number in short else data, at)

    with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(threads) as pool:
        patched.setattr(direct_module, "CHUNK", _CHUNK)
        patched.setattr(direct_module, "_JUDGED", 3)
        patched.setattr(direct_module, "_SYNC_EVERY", 4)
        patched.setattr(direct_module, "SLOW", slow)
        patched.setattr(os, "pwrite", pwrite)
        under_way = []
        for number, (begin, end) in enumerate(runs):
            if number in waits:
                for one in under_way:
                    one.result()
                writer.flush()
            under_way.append(pool.submit(writer.write, _DATA[begin:end], begin))
            expected[begin:end] = _DATA[begin:end]
        for one in under_way:
            one.result()
        writer.flush()
        writer.close()
    os.close(fd)
    assert path.read_bytes() == expected


def test_memory_has_no_direct_writes() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("this system has no file system in memory")
    path = memory / f"prunectl-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert open_direct(path, fd, os.O_WRONLY) is None
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


def test_what_is_read_again_soon_stays_in_memory(on_disk: Path) -> None:
    assert PartialFile(on_disk, "a", len(_DATA), direct=False)._direct is None
    with CalibratedStore(on_disk / "output", "fingerprint", PLAIN_RUN) as store:
        store.expect({"block": [TensorSpec("a", DTYPES["F32"], (100_000,))]})
        store.put("a", torch.ones(100_000), {})
        (writer,) = store._writers.values()
        assert writer._file._direct is None
