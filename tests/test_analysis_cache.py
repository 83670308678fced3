"""The measurement cache: right or absent, whatever happens to it; only ever a matter of time."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from analysis_reference import BytesRead, facts, stored, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from magnitude_reference import weights

from prunectl import open_checkpoint
from prunectl.analysis.verb import analyze
from prunectl.measure import cache
from prunectl.pattern import NM
from prunectl.tensorspec import DTYPES
from prunectl.userdirs import cache_dir

MODEL = {
    "model.embed_tokens.weight": stored("BF16", [[0.5, -1.0, 0.0]]),
    "model.layers.0.mlp.up_proj.weight": ("F32", weights(DTYPES["F32"], 960, 6).reshape(12, 80)),
    "model.layers.0.mlp.down_proj.weight": (
        "BF16",
        weights(DTYPES["BF16"], 960, 8).reshape(80, 12),
    ),
    "model.layers.1.mlp.up_proj.weight": ("F64", weights(DTYPES["F64"], 60, 4).reshape(5, 12)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", MODEL)


def cached(folder: Path) -> Path:
    """The file that an analysis of ``folder`` leaves or would leave."""
    return cache_dir() / cache._name(open_checkpoint(folder))


# --- kept --------------------------------------------------------------------------------------


def test_the_same_from_the_cache_without_it_and_after_its_deletion(folder: Path) -> None:
    first, second = analyze(folder), analyze(folder)
    assert (first.from_cache, second.from_cache) == (False, True)
    uncached = analyze(folder, use_cache=False)
    assert not uncached.from_cache
    shutil.rmtree(cache_dir())
    third = analyze(folder)
    assert not third.from_cache
    assert facts(first) == facts(second) == facts(uncached) == facts(third)


def test_patterns_are_added_to_what_is_kept(folder: Path, monkeypatch) -> None:
    analyze(folder, patterns=[NM(2, 4)])
    both = analyze(folder, patterns=[NM(1, 2), NM(2, 4)])
    read = BytesRead(monkeypatch)
    assert facts(analyze(folder, patterns=[NM(1, 2), NM(2, 4)])) == facts(both)
    assert analyze(folder, patterns=()).patterns == ()
    assert read.take() == 0
    assert facts(both) == facts(analyze(folder, patterns=[NM(1, 2), NM(2, 4)], use_cache=False))


# --- keyed by the exact source ------------------------------------------------------------------


def test_other_weights_are_measured_anew(folder: Path) -> None:
    before = analyze(folder)
    file = folder / "model.safetensors"
    times = file.stat()
    changed = bytearray(file.read_bytes())
    changed[-3] ^= 0x10
    file.write_bytes(changed)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    after = analyze(folder)
    assert not after.from_cache
    assert facts(after) != facts(before)
    assert facts(after) == facts(analyze(folder, use_cache=False))


def test_what_the_key_depends_on(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    (file,) = checkpoint.files
    pinned = replace(checkpoint, repo_id="org/name", commit="a" * 40)
    elsewhere = open_checkpoint(shutil.copytree(folder, tmp_path / "copy"))
    others = [
        checkpoint,
        replace(checkpoint, files=(replace(file, mtime_ns=file.mtime_ns + 1),)),
        replace(checkpoint, files=(replace(file, size=file.size + 1),)),
        replace(checkpoint, tensors=checkpoint.tensors[::-1]),
        elsewhere,
        pinned,
        replace(pinned, commit="b" * 40),
        replace(pinned, repo_id="org/other"),
    ]
    names = [cache._name(one) for one in others]
    assert len(set(names)) == len(names)
    touched = replace(pinned, files=(replace(file, mtime_ns=1),), folder=tmp_path)
    assert cache._name(touched) == cache._name(pinned)  # a commit's files are what they are
    assert cache._name(open_checkpoint(folder)) == cache._name(checkpoint)


def test_a_config_that_turns_the_input_axis_is_noticed(tmp_path: Path) -> None:
    tiny_models.build("gpt2", tmp_path, torch.bfloat16)
    right = analyze(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text("{}", encoding="utf-8")
    by_headers = analyze(tmp_path)
    assert facts(by_headers) == facts(analyze(tmp_path, use_cache=False))
    config.write_text(text, encoding="utf-8")
    assert facts(analyze(tmp_path)) == facts(right)


def test_another_input_axis_is_another_key(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    turned = replace(checkpoint)
    roles = {
        name: replace(role, input_axis=0 if role.input_axis == 1 else role.input_axis)
        for name, role in checkpoint.roles.roles.items()
    }
    vars(turned)["_roles"] = replace(checkpoint.roles, roles=roles)  # as if it had been asked
    straight, across = analyze(checkpoint), analyze(turned)
    assert not across.from_cache
    assert facts(across) == facts(analyze(turned, use_cache=False))
    assert facts(across) != facts(straight)


def test_another_version_measures_anew(folder: Path, monkeypatch) -> None:
    old = cached(folder)
    analyze(folder)
    monkeypatch.setattr(cache, "__version__", "999.0")
    assert cached(folder) != old
    assert not analyze(folder).from_cache
    # Even a file of another version under the new name is not believed.
    damaged = old.read_bytes().replace(b"measurements 1", b"measurements 0", 1)
    cached(folder).write_bytes(damaged)
    assert not analyze(folder).from_cache


# --- damaged -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, str]:
    """(checkpoint, what is kept of it, its result), made once; nothing may change the folder."""
    folder = write(tmp_path_factory.mktemp("kept") / "model", MODEL)
    old = os.environ.get("PRUNECTL_CACHE_DIR")
    os.environ["PRUNECTL_CACHE_DIR"] = str(folder.parent / "cache")
    try:
        result = analyze(folder)
        return folder, cached(folder).read_bytes(), facts(result)
    finally:
        os.environ.pop("PRUNECTL_CACHE_DIR")
        if old is not None:
            os.environ["PRUNECTL_CACHE_DIR"] = old


def check_damaged(kept: tuple[Path, bytes, str], damaged: bytes) -> None:
    """Measured anew, silently, right, and kept again."""
    folder, whole, want = kept
    file = cached(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(damaged)
    got = analyze(folder)
    assert not got.from_cache
    assert facts(got) == want
    assert file.read_bytes() == whole
    assert not list(file.parent.glob(".*"))  # no temporary file is left


places = st.floats(0, 1, exclude_max=True)


@given(
    where=places,
    bit=st.integers(0, 7),
    junk=st.binary(min_size=1, max_size=64),
    how=st.sampled_from(["cut", "flip", "overwrite", "replace"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_of_any_kind(kept, where: float, bit: int, junk: bytes, how: str) -> None:
    whole = kept[1]
    at = int(where * len(whole))
    damaged = {
        "cut": whole[:at],
        "flip": whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :],
        "overwrite": whole[:at] + junk + whole[at + len(junk) :],
        "replace": junk,
    }[how]
    if damaged != whole:
        check_damaged(kept, damaged)


def test_bytes_of_the_frame(kept) -> None:
    """Parts of the magic, sizes, digest, and the index of the histograms."""
    _, whole, _ = kept
    index = whole.index(b"prunectl histograms")
    frame = [*range(70), *range(index - 2, index + 34), len(whole) - 1]
    for at in frame[::5]:
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        check_damaged(kept, bytes(damaged))
    check_damaged(kept, whole + b"\0")


def test_nesting_too_deep_for_a_parser(kept) -> None:
    whole = kept[1]
    index = whole.index(b"prunectl histograms")
    start = whole.index(b"\n", index) + 1
    nested = b"[" * 200_000
    check_damaged(kept, whole[:start] + len(nested).to_bytes(8, "little") + nested)


def test_measurements_of_another_checkpoint(kept, tmp_path: Path) -> None:
    for i, other in enumerate(
        (
            dict(list(MODEL.items())[:2]),
            MODEL | {"model.norm.weight": stored("F32", [1.0])},
            MODEL | {"model.embed_tokens.weight": stored("BF16", [[0.5, 0.0]])},
        )
    ):
        source = write(tmp_path / str(i), other)
        analyze(source)
        check_damaged(kept, cached(source).read_bytes())


def test_a_folder_in_the_place_of_the_file(folder: Path) -> None:
    want = facts(analyze(folder))
    cached(folder).unlink()
    cached(folder).mkdir()
    for _ in range(2):
        got = analyze(folder)
        assert not got.from_cache
        assert facts(got) == want


# --- not writable ------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch) -> None:
    want = facts(analyze(folder))
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("PRUNECTL_CACHE_DIR", str(blocked / "cache"))
    for _ in range(2):
        got = analyze(folder)
        assert not got.from_cache
        assert facts(got) == want
    assert blocked.read_text(encoding="utf-8") == "in the way"


# --- two at once -------------------------------------------------------------------------------


def _analyze_often(folder: Path, home: str, queue: multiprocessing.Queue[set[str]]) -> None:
    os.environ["PRUNECTL_CACHE_DIR"] = home
    results = set()
    for turn in range(6):
        results.add(facts(analyze(folder, patterns=[NM(2, 4)])))
        if turn % 2:
            cached(folder).unlink(missing_ok=True)
    queue.put(results)


@pytest.mark.full
def test_two_processes_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    big = {
        f"model.layers.{i}.mlp.up_proj.weight": stored("BF16", rng.standard_normal((256, 256)))
        for i in range(12)
    }
    folder = write(tmp_path, big)
    want = facts(analyze(folder, use_cache=False))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=_analyze_often, args=(folder, str(cache_dir()), queue))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join(timeout=600)
        assert worker.exitcode == 0
    assert results == [{want}, {want}]
