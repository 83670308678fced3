"""Shard layout and positional writing, against safetensors and transformers themselves."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from prunectl.errors import CannotWrite, InvalidOption, NoSpace, OutputError
from prunectl.output import osfiles
from prunectl.output import partial as partial_module
from prunectl.output.header import encode_header
from prunectl.output.shards import Shard, ShardWriter, parse_size, plan_shards
from prunectl.tensorspec import DTYPES, TensorSpec

NUMPY = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "U8": "u1", "BOOL": "?"}


def spec(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorSpec:
    return TensorSpec(name, DTYPES[dtype], shape)


def random_arrays(specs: list[TensorSpec]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        s.name: rng.integers(0, 2, s.shape).astype(NUMPY[s.dtype.name])
        if s.dtype.name == "BOOL"
        else rng.integers(0, 100, s.shape).astype(NUMPY[s.dtype.name])
        for s in specs
    }


def write_all(folder: Path, shard: Shard, arrays: dict[str, np.ndarray]) -> None:
    with ShardWriter(folder, shard) as writer:
        for s in shard.specs:
            writer.write(s.name, 0, memoryview(arrays[s.name]))
        writer.close()


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("300MB", 3 * 10**8), (" 1.5 kb ", 1500), ("2tb", 2 * 10**12)],
)
def test_sizes_are_decimal(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "5GiB", "GB", "-1GB", "0MB", "nanGB", "infGB", "5 G B"])
def test_a_size_that_means_nothing_is_a_usage_error(text: str) -> None:
    with pytest.raises(InvalidOption, match="size"):
        parse_size(text)


tensor_lists = st.lists(
    st.tuples(st.sampled_from(sorted(NUMPY)), st.lists(st.integers(0, 5), max_size=3)),
    min_size=1,
    max_size=12,
).map(lambda drawn: [spec(f"t{i}", tuple(shape), dtype) for i, (dtype, shape) in enumerate(drawn)])


@given(specs=tensor_lists, limit=st.integers(1, 400))
def test_what_is_written_is_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, specs: list[TensorSpec], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("out")
    arrays = random_arrays(specs)
    layout = plan_shards(specs, limit)
    for shard in layout.shards:
        write_all(folder, shard, arrays)
        assert (folder / shard.name).stat().st_size == shard.size
        assert len(shard.specs) == 1 or sum(s.nbytes for s in shard.specs) <= limit
    seen = set()
    for shard in layout.shards:
        with safe_open(folder / shard.name, "np") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                seen.add(name)
                assert layout.shard_of[name] == shard.name
                got = file.get_tensor(name)
                assert got.dtype == arrays[name].dtype
                assert got.shape == arrays[name].shape
                assert got.tobytes() == arrays[name].tobytes()
    assert seen == set(arrays)


@given(specs=tensor_lists)
def test_tensors_are_aligned_and_leave_no_gaps(specs: list[TensorSpec]) -> None:
    header = encode_header(specs)
    (length,) = struct.unpack("<Q", header.data[:8])
    assert len(header.data) == 8 + length
    assert len(header.data) % 8 == 0
    position = len(header.data)
    by_name = {s.name: s for s in specs}
    for name, offset in header.offsets.items():
        assert offset == position
        assert offset % (by_name[name].dtype.bits // 8) == 0
        position += by_name[name].nbytes
    assert position == header.file_size


def test_the_given_order_is_kept_where_it_is_aligned() -> None:
    specs = [spec("z", (3,), "F16"), spec("a", (1,), "F16"), spec("m", (2,), "F32")]
    assert list(encode_header(specs).offsets) == ["z", "a", "m"]
    specs = [spec("z", (3,), "F16"), spec("a", (1,), "F32"), spec("m", (2,), "F32")]
    assert list(encode_header(specs).offsets) == ["a", "m", "z"]


def test_a_tensor_above_the_limit_is_alone() -> None:
    layout = plan_shards([spec("a", (1,)), spec("big", (50,)), spec("b", (1,))], 100)
    assert sorted(sorted(s.name for s in shard.specs) for shard in layout.shards) == [
        ["a", "b"],
        ["big"],
    ]


def test_twenty_thousand_tensors(tmp_path: Path) -> None:
    specs = [spec(f"layers.{i}.expert.weight", (i % 3,), "F16") for i in range(20_000)]
    (shard,) = plan_shards(specs, 10**9).shards
    with ShardWriter(tmp_path, shard) as writer:
        for number, s in enumerate(specs):
            writer.write(s.name, 0, np.full(s.shape, number % 1000, np.float16))
        writer.close()
    with safe_open(tmp_path / shard.name, "np") as file:
        assert len(file.keys()) == 20_000
        assert file.get_tensor("layers.19994.expert.weight").tolist() == [994.0, 994.0]


def test_threads_write_pieces_of_one_tensor_in_any_order(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, 1 << 20).astype(np.uint8).tobytes()
    (shard,) = plan_shards([spec("w", (1 << 18,), "F32"), spec("b", (4,), "F32")], 10**9).shards
    pieces = list(range(0, len(data), 4096))
    random.Random(2).shuffle(pieces)
    with ShardWriter(tmp_path, shard) as writer:

        def work(part: list[int]) -> None:
            for begin in part:
                writer.write("w", begin, data[begin : begin + 4096])

        threads = [threading.Thread(target=work, args=(pieces[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.write("b", 0, bytes(16))
        writer.close()
    with safe_open(tmp_path / shard.name, "np") as file:
        assert file.get_tensor("w").tobytes() == data


@pytest.mark.parametrize(("offset", "count"), [(-1, 1), (0, 9), (8, 1), (7, 2)])
def test_bytes_outside_of_a_tensor_are_refused(tmp_path: Path, offset: int, count: int) -> None:
    (shard,) = plan_shards([spec("a", (2,)), spec("b", (2,))], 100).shards
    with ShardWriter(tmp_path, shard) as writer, pytest.raises(ValueError, match="outside"):
        writer.write("a", offset, bytes(count))


@pytest.mark.parametrize("writes", [[(0, 4)], [(0, 8), (0, 8)], []])
def test_a_tensor_not_written_exactly_once_never_gets_its_name(
    tmp_path: Path, writes: list[tuple[int, int]]
) -> None:
    (shard,) = plan_shards([spec("a", (2,))], 100).shards
    with ShardWriter(tmp_path, shard) as writer:
        for offset, count in writes:
            writer.write("a", offset, bytes(count))
        with pytest.raises(ValueError, match="exactly once"):
            writer.close()
    assert list(tmp_path.iterdir()) == []


def test_names_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(OutputError, match=r"'a'.*already taken"):
        plan_shards([spec("a", (1,)), spec("a", (1,))], 100)
    with pytest.raises(OutputError, match="__metadata__"):
        plan_shards([spec("__metadata__", (1,))], 100)
    with pytest.raises(OutputError, match="whole number of bytes"):
        plan_shards([spec("a", (3,), "F4")], 100)


def test_odd_names_survive(tmp_path: Path) -> None:
    names = ['quote"', "back\\slash", "newline\n", "ümläut", "\U0001f600", ""]
    (shard,) = plan_shards([spec(name, (1,)) for name in names], 1000).shards
    write_all(tmp_path, shard, {name: np.ones(1, np.float32) for name in names})
    with safe_open(tmp_path / shard.name, "np") as file:
        assert set(file.keys()) == set(names)


def test_a_full_disk_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = plan_shards([spec("a", (1000,))], 10**9).shards
    monkeypatch.setattr(osfiles, "_c_call", lambda name, *arguments: errno.ENOSPC)
    monkeypatch.setattr(osfiles, "free_bytes", lambda path: 100)
    with pytest.raises(NoSpace) as caught:
        ShardWriter(tmp_path, shard)
    assert caught.value.needed == shard.size
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_reserve_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (shard,) = plan_shards([spec("a", (2,))], 100).shards
    monkeypatch.setattr(osfiles, "_c_call", lambda name, *arguments: code)
    write_all(tmp_path, shard, {"a": np.array([1, 2], np.float32)})
    with safe_open(tmp_path / shard.name, "np") as file:
        assert file.get_tensor("a").tolist() == [1, 2]


def test_blocks_are_reserved_before_anything_is_written(tmp_path: Path) -> None:
    (shard,) = plan_shards([spec("a", (1 << 20,))], 10**9).shards
    with ShardWriter(tmp_path, shard):
        found = (tmp_path / f"{shard.name}.partial").stat()
        assert found.st_size == shard.size
        assert found.st_blocks * 512 >= shard.size


def test_early_syncs_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_module, "_SYNC_EVERY", 1000)
    (shard,) = plan_shards([spec("a", (50_000,)), spec("b", (50_000,))], 10**9).shards
    arrays = {name: np.arange(50_000, dtype=np.float32) for name in "ab"}
    with ShardWriter(tmp_path, shard) as writer:
        for begin in range(0, 200_000, 1000):
            for name, array in arrays.items():
                writer.write(name, begin, array.tobytes()[begin : begin + 1000])
        writer.close()
    with safe_open(tmp_path / shard.name, "np") as file:
        assert all((file.get_tensor(name) == array).all() for name, array in arrays.items())


def test_a_failed_early_sync_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = os.fsync, [errno.EIO]

    def fails_once(fd: int) -> None:
        if failures:
            raise OSError(failures.pop(), "Input/output error")
        whole(fd)

    monkeypatch.setattr(partial_module, "_SYNC_EVERY", 8)
    monkeypatch.setattr(os, "fsync", fails_once)
    (shard,) = plan_shards([spec("a", (2,))], 100).shards

    def whole_shard() -> None:
        with ShardWriter(tmp_path, shard) as writer:
            writer.write("a", 0, bytes(8))
            writer.close()

    with pytest.raises(CannotWrite, match="Input/output"):
        whole_shard()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (shard,) = plan_shards([spec("a", (1,))], 100).shards
    with pytest.raises(CannotWrite, match="No such file"):
        ShardWriter(tmp_path / "gone", shard)


def test_the_index_is_sorted_json(tmp_path: Path) -> None:
    layout = plan_shards([spec("b", (9,)), spec("a", (9,)), spec("n", (1,), "I64")], 40)
    document = json.loads(layout.index() or b"")
    assert list(document["weight_map"]) == ["a", "b", "n"]
    assert document["metadata"] == {"total_parameters": 18, "total_size": 80}
