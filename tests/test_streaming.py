"""Work in threads: in order, bounded, and over when something goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import (
    BATCH_BYTES,
    BLOCK_BYTES,
    Scratch,
    batches,
    run_ordered,
)
from prunectl.tensorspec import DTYPES, TensorSpec


def threads() -> int:
    return sum(thread.name.startswith("prunectl") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == 0


def stored(name: str, nbytes: int) -> StoredTensor:
    return StoredTensor(TensorSpec(name, DTYPES["U8"], (nbytes,)), "file", 0)


# --- run_ordered ------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_results_come_in_order_whatever_finishes_first(jobs: int) -> None:
    def work(item: int, _: Scratch) -> int:
        time.sleep(0.002 * (7 - item % 7))
        return item * item

    assert list(run_ordered(range(40), work, jobs)) == [i * i for i in range(40)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_few_items_are_in_flight(jobs: int) -> None:
    """An endless source is taken from only as results are asked for."""
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = run_ordered(source(), lambda item, _: item, jobs)
    for done in range(1, 50):
        assert next(results) == done
        assert taken <= done + 2 * jobs + 2
    results.close()


def test_work_really_is_in_several_threads() -> None:
    barrier = threading.Barrier(3, timeout=120)

    def work(_: int, scratch: Scratch) -> int:
        barrier.wait()
        return threading.get_ident()

    assert len(set(run_ordered(range(3), work, 3))) == 3


def test_an_error_surfaces_and_stops_the_others(tmp_path: Path) -> None:
    checkpoint = big(tmp_path)
    started, finished = threading.Event(), []

    def work(item: int, scratch: Scratch) -> None:
        if item == 0:
            started.wait(120)
            raise ZeroDivisionError("of item 0")
        with checkpoint.open() as reader:
            while True:
                try:
                    for _ in scratch.blocks(reader, checkpoint.tensors[0]):
                        started.set()
                except InterruptedError:
                    finished.append(item)
                    raise

    with pytest.raises(ZeroDivisionError, match="of item 0"):
        list(run_ordered(range(1000), work, 3))
    assert 1 <= len(finished) <= 8, "those in flight stopped; the rest never began"
    assert threads() == 0


def test_an_error_of_a_later_item_comes_after_the_earlier_results() -> None:
    def work(item: int, _: Scratch) -> int:
        if item == 2:
            raise KeyError(item)
        return item

    results = run_ordered(range(10), work, 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        next(results)
    assert threads() == 0


def test_an_error_of_the_source_surfaces() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the source")

    with pytest.raises(OSError, match="the source"):
        list(run_ordered(source(), lambda item, _: item, 2))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_the_consumer_ends_the_threads(
    tmp_path: Path, error: type[BaseException]
) -> None:
    checkpoint = big(tmp_path)

    def work(item: int, scratch: Scratch) -> int:
        if item == 0:
            return 0
        with checkpoint.open() as reader:
            while True:
                for _ in scratch.blocks(reader, checkpoint.tensors[0]):
                    pass

    def consume() -> None:
        for _ in run_ordered(range(1000), work, 3):
            assert threads() > 0
            raise error

    with pytest.raises(error):
        consume()
    assert threads() == 0


# --- buffers and blocks -----------------------------------------------------------------------


def big(folder: Path) -> Checkpoint:
    """One tensor of 3.5 blocks of int16."""
    values = torch.arange(7 * BLOCK_BYTES // 4).to(torch.int16)
    save_file({"w": values}, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.mark.parametrize("unit", [1, 3, 4, 1000, BLOCK_BYTES])
def test_blocks_cover_a_tensor_and_tear_no_unit(tmp_path: Path, unit: int) -> None:
    checkpoint = big(tmp_path)
    tensor = checkpoint.tensors[0]
    scratch = Scratch(threading.Event())
    seen, sizes = [], []
    with checkpoint.open() as reader:
        for start, block in scratch.blocks(reader, tensor, unit):
            assert start == sum(sizes)
            assert start % (2 * unit) == 0
            sizes.append(len(block))
            seen.append(block.tobytes())
    expected = np.arange(7 * BLOCK_BYTES // 4).astype(np.int16).tobytes()
    assert b"".join(seen) == expected
    assert max(sizes) <= max(BLOCK_BYTES, 2 * unit)
    assert len(sizes) >= (4 if unit < BLOCK_BYTES else 2)


def test_buffers_are_reused_by_name() -> None:
    scratch = Scratch(threading.Event())
    first = scratch.buffer(10)
    assert (first.dtype, len(first)) == (np.uint8, 10)
    assert np.shares_memory(first, scratch.buffer(BLOCK_BYTES))
    assert not np.shares_memory(first, scratch.buffer(10, "other"))
    larger = scratch.buffer(BLOCK_BYTES + 1)
    assert len(larger) == BLOCK_BYTES + 1
    assert np.shares_memory(larger, scratch.buffer(5))


def test_blocks_stop_when_told(tmp_path: Path) -> None:
    checkpoint = big(tmp_path)
    stop = threading.Event()
    with checkpoint.open() as reader:
        blocks = Scratch(stop).blocks(reader, checkpoint.tensors[0])
        next(blocks)
        stop.set()
        with pytest.raises(InterruptedError):
            next(blocks)


def test_an_empty_tensor_has_no_blocks(tmp_path: Path) -> None:
    save_file({"w": torch.ones(0, 3)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with checkpoint.open() as reader:
        assert list(Scratch(threading.Event()).blocks(reader, checkpoint.tensors[0])) == []


# --- batches ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2 * BATCH_BYTES)))
def test_batches_keep_order_and_size(sizes: list[int]) -> None:
    tensors = [stored(str(i), size) for i, size in enumerate(sizes)]
    made = list(batches(tensors))
    assert [tensor for batch in made for tensor in batch] == tensors
    for batch in made:
        assert len(batch) == 1 or sum(t.spec.nbytes for t in batch) <= BATCH_BYTES
    for one, two in pairwise(made):
        assert sum(t.spec.nbytes for t in one) + two[0].spec.nbytes > BATCH_BYTES


# --- Run.tensors ------------------------------------------------------------------------------


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 1000, BLOCK_BYTES // 4 + 1]), min_size=1, max_size=12),
    jobs=st.integers(1, 4),
)
def test_threads_give_what_one_thread_gives(tmp_path: Path, sizes: list[int], jobs: int) -> None:
    tensors = {f"t{i:02}": torch.rand(size) for i, size in enumerate(sizes)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with checkpoint.open() as reader:

        def total(tensor: StoredTensor, scratch: Scratch) -> float:
            blocks = scratch.blocks(reader, tensor)
            return float(sum(block.view(np.float32).sum(dtype=np.float64) for _, block in blocks))

        found = list(Run(jobs).tensors(checkpoint.tensors, total))
        alone = Scratch(threading.Event())
        assert found == [(t, total(t, alone)) for t in checkpoint.tensors]
    for tensor, result in found:
        assert result == pytest.approx(tensors[tensor.name].double().sum().item())
