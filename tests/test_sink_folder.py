"""The output folder: refusals, resume, lock, replacement, and kills at every stage."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import dying_after, dying_before, forked
from full import few

from prunectl.errors import CannotWrite, NoSpace, OutputConflict
from prunectl.events import Event, Note, OnEvent, ignore_events
from prunectl.output import folder as folder_module
from prunectl.output import journal as journal_module
from prunectl.output import osfiles
from prunectl.output.folder import OutputFolder
from prunectl.output.journal import Journal
from prunectl.output.osfiles import os_errors
from prunectl.output.shards import ShardWriter, plan_shards
from prunectl.output.target import (
    calibrated_folder,
    check_space,
    check_target,
    journal_file,
    replaced_folder,
    work_folder,
)
from prunectl.tensorspec import DTYPES, TensorSpec

LAYOUT = plan_shards([TensorSpec(n, DTYPES["F32"], (64,)) for n in "abc"], 256)

SHARDS = [shard.name for shard in LAYOUT.shards]


def job(target: Path, fill: int, on_event: OnEvent = ignore_events) -> list[str]:
    """A whole run, as a caller writes it; returns the shards that it had to write."""
    wrote = []
    with OutputFolder(target, f"fp-{fill}", force=True, protected=[], on_event=on_event) as out:
        out.tell_resumed()
        for shard in LAYOUT.shards:
            if out.records_of(shard) is None:
                wrote.append(shard.name)
                writer = out.open_shard(shard)
                for spec in shard.specs:
                    half = spec.nbytes // 2
                    writer.write(spec.name, 0, bytes([fill]) * half)
                    writer.write(spec.name, half, bytes([fill]) * (spec.nbytes - half))
                out.finish(writer, [{"fill": fill}])
                out._closing[-1].result()
        out.write_bytes("config.json", b'{"model_type": "bert"}')
        out.write_bytes("prunectl.json", str(fill).encode())
        out.commit()
    return wrote


def state(target: Path) -> int | None:
    """Which complete output is at the target; None if there is nothing. Anything else fails."""
    if not target.exists():
        return None
    assert sorted(p.name for p in target.iterdir()) == ["config.json", *SHARDS, "prunectl.json"]
    fill = int((target / "prunectl.json").read_text())
    for shard in LAYOUT.shards:
        data = (target / shard.name).read_bytes()
        assert data == shard.header.data + bytes([fill]) * 256
    return fill


def left_over(target: Path) -> list[str]:
    return sorted(p.name for p in target.parent.iterdir() if p != target)


def run_until_killed(target: Path, fill: int, *hooks: tuple[Any, ...]) -> None:
    """Run the job in a copy of this process that ``hooks`` let die: (when, owner, name, times)."""

    def work() -> None:
        for when, *where in hooks:
            when(*where)
        job(target, fill)

    assert forked(work) == -signal.SIGKILL


AT_COMMIT = (dying_before, OutputFolder, "commit")

# (name, hooks, shards the next run still has to write, whether the kill came after the switch)
STAGES: list[tuple[str, list[tuple[Any, ...]], int, bool]] = [
    ("work folder just made", [(dying_after, Path, "mkdir")], 3, False),
    ("middle of the first shard", [(dying_after, ShardWriter, "write", 1)], 3, False),
    ("middle of the third shard", [(dying_after, ShardWriter, "write", 5)], 1, False),
    ("shard written, not durable", [(dying_before, ShardWriter, "close", 2)], 2, False),
    ("shard renamed, not in the journal", [(dying_after, ShardWriter, "close", 2)], 2, False),
    ("journal line written", [(dying_after, Journal, "add", 2)], 1, False),
    ("between side files", [(dying_after, OutputFolder, "write_bytes", 1)], 0, False),
    ("before the commit", [AT_COMMIT], 0, False),
    ("before the switch", [(dying_before, OutputFolder, "_move_in"),
                           (dying_before, OutputFolder, "_swap")], 0, False),
    ("after the switch", [(dying_after, OutputFolder, "_move_in"),
                          (dying_after, OutputFolder, "_swap")], 3, True),
    ("before the journal goes", [(dying_before, Journal, "remove")], 3, True),
]  # fmt: skip


@pytest.mark.parametrize("old", few([None, 7], 7))
@pytest.mark.parametrize(("hooks", "to_write", "switched"), [s[1:] for s in STAGES],
                         ids=[s[0] for s in STAGES])  # fmt: skip
def test_killed_at_any_stage(
    tmp_path: Path, hooks: list[tuple[Any, ...]], to_write: int, switched: bool, old: int | None
) -> None:
    target = tmp_path / "out"
    if old is not None:
        job(target, old)
    run_until_killed(target, 1, *hooks)
    assert state(target) == (1 if switched else old)
    assert len(job(target, 1)) == to_write
    assert state(target) == 1
    assert left_over(target) == []


def no_exchange() -> None:
    folder_module.exchange = lambda first, second: False


@pytest.mark.parametrize(
    ("hook", "found"),
    [
        ((dying_before, Path, "rename", 4), 7),
        ((dying_after, Path, "rename", 4), None),
        ((dying_after, Path, "rename", 5), 1),
    ],
    ids=["before both renames", "between them", "after both"],
)
def test_killed_where_folders_cannot_be_exchanged(
    tmp_path: Path, hook: tuple[Any, ...], found: int | None
) -> None:
    target = tmp_path / "out"
    job(target, 7)
    run_until_killed(target, 1, (no_exchange,), hook)
    assert state(target) == found
    with pytest.raises(OutputConflict), OutputFolder(target, "x", force=False, protected=[]):
        pass
    assert state(target) == (found or 7)  # entering puts the old output back
    job(target, 1)
    assert state(target) == 1
    assert left_over(target) == []


def test_a_failed_second_rename_puts_the_old_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    job(target, 7)
    whole = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self == work_folder(target):
            raise OSError(errno.EIO, "Input/output error")
        return whole(self, to)

    monkeypatch.setattr(folder_module, "exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CannotWrite, match="Input/output"):
        job(target, 1)
    assert state(target) == 7
    monkeypatch.undo()
    assert job(target, 1) == []
    assert state(target) == 1


def test_the_end_of_a_torn_journal_is_ignored(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_until_killed(target, 1, (dying_after, Journal, "add", 2))
    with journal_file(target).open("ab") as file:
        file.write(b'{"shard": "model-00003-of-0000')
    run_until_killed(target, 1, AT_COMMIT)
    assert job(target, 1) == []
    assert state(target) == 1


@pytest.mark.parametrize("damage", ["cut", "header", "gone", "symlink"])
def test_a_finished_shard_that_changed_is_written_again(tmp_path: Path, damage: str) -> None:
    target = tmp_path / "out"
    run_until_killed(target, 1, AT_COMMIT)
    shard = work_folder(target) / SHARDS[1]
    if damage == "cut":
        os.truncate(shard, 100)
    elif damage == "header":
        shard.write_bytes(shard.read_bytes().replace(b'"b"', b'"x"'))
    elif damage == "gone":
        shard.unlink()
    else:
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
    events: list[Event] = []
    assert job(target, 1, events.append) == [SHARDS[1]]
    assert state(target) == 1
    assert [e.text for e in events if isinstance(e, Note) and e.warning] == [
        f"{target}: continuing from 2 finished shards of an earlier run; "
        "one shard was damaged and is written again"
    ]


@pytest.mark.parametrize(("line", "kept"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_a_journal_counts_up_to_a_line_that_is_damaged(
    tmp_path: Path, line: int, kept: int
) -> None:
    target = tmp_path / "out"
    run_until_killed(target, 1, AT_COMMIT)
    lines = journal_file(target).read_bytes().splitlines(keepends=True)
    place = lines[line].index(b":") + 2
    damaged = bytearray(lines[line])
    damaged[place] ^= 1
    lines[line] = bytes(damaged)
    journal_file(target).write_bytes(b"".join(lines))
    assert job(target, 1) == SHARDS[kept:]
    assert state(target) == 1


def test_values_are_remembered_by_a_later_run(tmp_path: Path) -> None:
    target = tmp_path / "out"
    value = {"a": [1, 0.1, None], "b": "ü"}

    def stopped() -> None:
        with OutputFolder(target, "fp-1", force=False, protected=[]) as out:
            assert out.remembered("chosen") is None
            out.remember("chosen", [])
            out.remember("chosen", value)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not target.exists()
    with OutputFolder(target, "fp-1", force=False, protected=[]) as out:
        assert out.remembered("chosen") == value
        out.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "journal", [b"", b"\xff\n", b"[]\n", b"{}\n", b'{"prunectl_journal":1}\n{"shard":3}\n']
)
def test_a_journal_of_nonsense_is_a_fresh_start(tmp_path: Path, journal: bytes) -> None:
    target = tmp_path / "out"
    run_until_killed(target, 1, AT_COMMIT)
    journal_file(target).write_bytes(journal)
    assert job(target, 1) == SHARDS
    assert state(target) == 1


def test_an_unfinished_output_of_other_settings_is_discarded_and_said_so(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_until_killed(target, 1, AT_COMMIT)
    events: list[Event] = []
    assert job(target, 2, events.append) == SHARDS
    assert state(target) == 2
    assert any(isinstance(e, Note) and "discarding" in e.text for e in events)


def test_records_come_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_until_killed(target, 1, (dying_after, Journal, "add", 2))
    events: list[Event] = []
    with OutputFolder(target, "fp-1", force=False, protected=[], on_event=events.append) as out:
        assert [out.records_of(s) for s in LAYOUT.shards] == [[{"fill": 1}], [{"fill": 1}], None]
        other = plan_shards([TensorSpec("z", DTYPES["F32"], (64,)), *LAYOUT.shards[0].specs], 256)
        assert out.records_of(other.shards[0]) is None
        out.tell_resumed()
    assert events == [Note(f"{target}: continuing from 2 finished shards of an earlier run")]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    job(tmp_path / "out", 1)
    assert state(tmp_path / "out") == 1


def test_a_lock_file_deleted_between_open_and_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, whole, calls = tmp_path / "out", fcntl.flock, []

    def other_run_ends_first(fd: int, how: int) -> None:
        if not calls:
            journal_file(target).unlink()
        calls.append(fd)
        whole(fd, how)

    monkeypatch.setattr(fcntl, "flock", other_run_ends_first)
    with OutputFolder(target, "x", force=False, protected=[]):
        assert len(calls) == 2
        assert journal_file(target).exists()


def test_a_folder_that_is_called_as_a_guests_journal_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    other = journal_file(target).with_name(f"{journal_file(target).name}-1")
    other.mkdir()
    job(target, 1)
    assert state(target) == 1
    assert other.is_dir()


def test_only_one_run_writes_an_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        OutputFolder(target, "fp-1", force=False, protected=[]),
        pytest.raises(OutputConflict, match="another prunectl is writing this output now"),
    ):
        job(target, 1)
    job(target, 1)
    assert state(target) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("finished", [0, 1])
def test_an_exception_leaves_the_target_and_finished_work(
    tmp_path: Path, error: type[BaseException], finished: int
) -> None:
    target = tmp_path / "new" / "deep" / "out"

    def stopped_job() -> None:
        with OutputFolder(target, "fp-1", force=False, protected=[]) as out:
            for shard in LAYOUT.shards[:finished]:
                writer = out.open_shard(shard)
                writer.write(shard.specs[0].name, 0, b"\1" * 256)
                out.finish(writer, [{"fill": 1}])
                out._closing[-1].result()
            out.open_shard(LAYOUT.shards[2])
            out.write_bytes("config.json", b"{}")
            raise error

    with pytest.raises(error) as stopped:
        stopped_job()
    said = getattr(stopped.value, "__notes__", [])
    if finished and error is KeyboardInterrupt:
        assert said == [f"{target}: kept 1 finished shard; the same command continues from there"]
    else:
        assert said == []
    if finished:
        assert not target.exists()
        assert not list(target.parent.rglob("*.partial"))
        assert job(target, 1) == SHARDS[1:]
        assert state(target) == 1
    else:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("killed", [False, True])
def test_discarding_leaves_nothing(tmp_path: Path, killed: bool) -> None:
    target = tmp_path / "new" / "deep" / "out"
    if killed:  # the folders were made by another run then
        run_until_killed(target, 1, (dying_after, Journal, "add", 2))
    with OutputFolder(target, "fp-1", force=False, protected=[]) as out:
        for shard in LAYOUT.shards[2:] if killed else LAYOUT.shards:
            writer = out.open_shard(shard)
            writer.write(shard.specs[0].name, 0, b"\1" * 256)
            out.finish(writer, [])
        out.discard()
    assert list(tmp_path.iterdir()) == []


def test_discarding_keeps_the_old_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    job(target, 7)
    with OutputFolder(target, "fp-1", force=True, protected=[]) as out:
        out.discard()
    assert state(target) == 7
    assert left_over(target) == []


@pytest.mark.parametrize("old", [None, 7], ids=["fresh", "replacing"])
def test_a_refused_run_clears_up_after_one_killed_at_its_end(
    tmp_path: Path, old: int | None
) -> None:
    target = tmp_path / "out"
    if old is not None:
        job(target, old)
    run_until_killed(target, 1, (dying_before, Journal, "remove"))
    assert left_over(target) != []
    with pytest.raises(OutputConflict, match="not empty"):
        check_target(target, force=False, protected=[])
    assert state(target) == 1
    assert left_over(target) == []


@pytest.mark.parametrize("name", ["prunectl.json", "config.json"])
def test_a_pipe_in_an_old_output_is_not_waited_for(tmp_path: Path, name: str) -> None:
    old = tmp_path / "out"
    old.mkdir()
    os.mkfifo(old / name)
    if name == "prunectl.json":
        (old / "model.safetensors").touch()
        check_target(old, force=True, protected=[])
    else:
        with pytest.raises(OutputConflict, match="not a checkpoint folder"):
            check_target(old, force=True, protected=[])


def test_an_old_output_that_became_a_source_is_not_cleared_up(tmp_path: Path) -> None:
    target = tmp_path / "out"
    job(target, 7)
    run_until_killed(target, 1, (dying_after, OutputFolder, "_swap"))
    with pytest.raises(OutputConflict, match="needs"):
        check_target(target, force=True, protected=[work_folder(target)])
    assert state(work_folder(target)) == 7


def test_many_small_shards_on_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: time.sleep(0.0002))
    layout = plan_shards([TensorSpec(f"t{n}", DTYPES["F32"], (1,)) for n in range(400)], 4)
    before, most = len(os.listdir("/dev/fd")), 0  # noqa: PTH208
    writers = []
    with OutputFolder(tmp_path / "out", "x", force=False, protected=[]) as out:
        for shard in layout.shards:
            writer = out.open_shard(shard)
            writer.write(shard.specs[0].name, 0, bytes(4))
            out.finish(writer, [])
            writers.append(weakref.ref(writer))
            most = max(most, len(os.listdir("/dev/fd")))  # noqa: PTH208
        assert sum(ref() is not None for ref in writers) < 20
        out.commit()
    assert most - before < 20
    assert len(list((tmp_path / "out").iterdir())) == 400


def test_leaving_without_commit_gives_up(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", "x", force=False, protected=[]) as out:
        out.write_bytes("a", b"b")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_told_of_once_and_the_lock_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, failed = tmp_path / "out", OSError(errno.EROFS, "Read-only file system")

    def refuse(*args: object, **options: object) -> None:
        raise failed

    def written() -> None:
        with OutputFolder(target, "fp-1", force=False, protected=[]):
            monkeypatch.setattr(Path, "unlink", refuse)
            raise CannotWrite(target, "Input/output error")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CannotWrite, match="Input/output error"):
        written()
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with OutputFolder(target, "fp-1", force=False, protected=[]):
        pass


def test_a_shard_left_open_cannot_be_committed(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", "x", force=False, protected=[]) as out:
        out.open_shard(LAYOUT.shards[0])
        with pytest.raises(ValueError, match="not finished"):
            out.commit()
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_closing_in_the_background_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with OutputFolder(tmp_path / "out", "x", force=False, protected=[]) as out:
        writer = out.open_shard(LAYOUT.shards[0])
        writer.write("a", 0, bytes(256))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            out.finish(writer, [])
            with pytest.raises(NoSpace):
                out.commit()
    assert list(tmp_path.iterdir()) == []


# --- refusals -----------------------------------------------------------------------------------


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"source")
    return folder


def refused(target: Path, match: str, *, force: bool = True, source: Path | None = None) -> None:
    """The check says no, and so does the folder, and nothing changes."""
    root = target.absolute().anchor
    before = sorted(target.parent.glob(".*prunectl*")) if str(target) != root else []
    protected = [source] if source else []
    with pytest.raises(OutputConflict, match=match):
        check_target(target, force=force, protected=protected)
    with pytest.raises(OutputConflict), OutputFolder(target, "x", force=force, protected=protected):
        pass
    if str(target) != root:
        assert sorted(target.parent.glob(".*prunectl*")) == before


def test_the_source_is_never_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "models" / "source")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "linked-parent").symlink_to(tmp_path / "models")
    refused(source, "is the source", source=source)
    refused(tmp_path / "link", "is the source", source=source)
    refused(source, "is the source", source=tmp_path / "link")
    refused(source / "out", "inside the source", source=source)
    refused(tmp_path / "link" / "a" / "b", "inside the source", source=source)
    refused(tmp_path / "models" / "x" / ".." / "source", "is the source", source=source)
    refused(tmp_path / "models", "holds the source", source=source)
    refused(tmp_path / "linked-parent", "holds the source", source=source)
    refused(source, "holds the source", source=source / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    refused(Path("models/source"), "is the source", source=source)
    assert (source / "model.safetensors").read_bytes() == b"source"
    assert check_target(tmp_path / "source", force=False, protected=[source]) == tmp_path / "source"


def test_the_work_folder_is_never_the_source(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / ".out.prunectl-partial")
    with pytest.raises(OutputConflict, match="needs"):
        check_target(tmp_path / "out", force=True, protected=[source])


def test_what_is_not_a_checkpoint_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    refused(file, "is a file")
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.tex").write_text("years of work")
    refused(papers, "is not empty", force=False)
    refused(papers, "not a checkpoint")
    (papers / "config.json").write_text('{"name": "some other program"}')
    refused(papers, "not a checkpoint")
    (papers / "config.json").write_text('{"model_type": "bert"}')
    (papers / ".git").mkdir()
    refused(papers, "git")
    refused(Path("/"), "current|home")
    home = checkpoint(tmp_path / "home")
    monkeypatch.setenv("HOME", str(home))
    refused(home, "home")
    here = checkpoint(tmp_path / "a" / "b")
    monkeypatch.chdir(here)
    refused(Path(), "current")
    refused(here.parent, "current")
    assert (papers / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["prunectl.json", "model.safetensors", "pytorch_model.bin"])
def test_force_replaces_a_checkpoint(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / kind).write_bytes(b"x")
    (target / "sub").mkdir()
    with pytest.raises(OutputConflict, match="not empty"):
        check_target(target, force=False, protected=[])
    job(target, 1)
    assert state(target) == 1


OURS = {
    "files": [{"name": "sub/vocab.dat"}],
    "tensors": [{"file": "model.safetensors"}],
}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["firmware.bin", "thesis.tex"], "is not a checkpoint"),
        (["notes.safetensors"], "is not a checkpoint"),
        (["model.safetensors", "thesis.tex"], "holds thesis.tex"),
        (["model-00001-of-00002.safetensors", "photos/a.json"], "holds photos/a.json"),
        (["pytorch_model-00001-of-00002.bin", ".env"], "holds .env"),
        (["config.json", "thesis.tex"], "holds thesis.tex"),
        (["prunectl.json", "thesis.tex"], "holds thesis.tex"),
        (["prunectl.json", "notes.txt"], "holds notes.txt"),
        (["prunectl.json", "other/vocab.dat"], "holds other/vocab.dat"),
        (["prunectl.json", ".venv/.keep"], "holds .venv/.keep"),
        (["model.safetensors", "LICENSE", "1_Pooling/config.json", "onnx/model.onnx"], None),
        (["pytorch_model.bin", ".cache/huggingface/x.lock", "merges.txt", "modeling_x.py"], None),
        (["config.json", "weird_name.bin"], None),
        (["prunectl.json", "model.safetensors", "sub/vocab.dat", "README.md", ".mine"], None),
    ],
)
def test_force_deletes_only_a_model(tmp_path: Path, files: list[str], said: str | None) -> None:
    target = tmp_path / "out"
    contents = {"config.json": '{"model_type": "bert"}', "prunectl.json": json.dumps(OURS)}
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(contents.get(Path(name).name, "years of work"))
    if said is None:
        job(target, 1)
        assert state(target) == 1
        return
    refused(target, re.escape(said))
    assert sorted(p for p in target.rglob("*") if p.is_file()) == sorted(target / n for n in files)


def test_a_link_to_a_folder_is_not_ours(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "out")
    (target / "elsewhere").symlink_to(tmp_path)
    refused(target, "holds elsewhere")


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    job(tmp_path / "out", 1)
    assert state(tmp_path / "out") == 1


def test_an_empty_folder_and_a_link_to_a_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    job(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert state(tmp_path / "real") == 1


def test_something_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with OutputFolder(target, "x", force=False, protected=[]) as out:
        out.write_bytes("a", b"b")
        target.mkdir()
        (target / "theirs").write_text("x")
        with pytest.raises(OutputConflict):
            out.commit()
    assert (target / "theirs").read_text() == "x"
    assert left_over(target) == []


def test_a_refusal_on_entry_keeps_an_unfinished_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_until_killed(target, 1, AT_COMMIT)
    checkpoint(target)
    with (
        pytest.raises(OutputConflict),
        OutputFolder(target, "fp-1", force=False, protected=[]),
    ):
        pass
    shutil.rmtree(target)
    assert job(target, 1) == []


def test_a_folder_that_may_not_be_written() -> None:
    # Not tmp_path: pytest shuts its folders to other users.
    with tempfile.TemporaryDirectory() as shut:
        Path(shut).chmod(0o555)

        def refused_twice() -> None:
            if os.getuid() == 0:
                os.setuid(65534)  # root may write everywhere
            for name in ("out", "a/b/out"):
                with pytest.raises(CannotWrite, match="cannot write: Permission denied"):
                    OutputFolder(Path(shut) / name, "x", force=False, protected=[]).__enter__()

        assert forked(refused_twice) == 0
        assert list(Path(shut).iterdir()) == []
        Path(shut).chmod(0o755)


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with (
        pytest.raises(CannotWrite, match="Read-only"),
        OutputFolder(tmp_path / "a" / "out", "x", force=False, protected=[]),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_space_is_counted_with_what_is_already_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    free = shutil.disk_usage(tmp_path).free
    check_space(target, free // 2)
    with pytest.raises(NoSpace) as caught:
        check_space(target, 2 * free + (1 << 40))
    assert caught.value.needed == 2 * free + (1 << 40)
    work_folder(target).mkdir()
    held = work_folder(target) / SHARDS[0]
    held.write_bytes(bytes(1 << 20))
    with held.open("rb+") as file:
        os.fsync(file.fileno())
    with pytest.raises(NoSpace) as caught:
        check_space(target, 1 << 60)
    now = shutil.disk_usage(tmp_path).free
    assert abs(caught.value.free - now - held.stat().st_blocks * 512) < 1 << 26


def test_a_full_disk_names_no_size_that_is_not_known() -> None:
    with pytest.raises(NoSpace) as caught, os_errors(Path("out")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == "out: no space is left"


# --- side files ---------------------------------------------------------------------------------


def test_side_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer.model"
    source.write_bytes(os.urandom(5 << 20))
    source.chmod(0o700)
    (tmp_path / "link").symlink_to(source)
    target = tmp_path / "out"
    with OutputFolder(target, "x", force=False, protected=[]) as out:
        record = out.write_side_file("sub/folder/tokenizer.model", tmp_path / "link")
        out.write_bytes("note.txt", b"")
        out.commit()
    copy = target / "sub" / "folder" / "tokenizer.model"
    umask = os.umask(0)
    os.umask(umask)
    assert copy.read_bytes() == source.read_bytes()
    assert not copy.is_symlink()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o666 & ~umask
    assert (record.name, record.size) == ("sub/folder/tokenizer.model", 5 << 20)
    from blake3 import blake3

    assert record.blake3 == blake3(source.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "./a", "a\\..\\b", "a\0b", SHARDS[0]],
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    with OutputFolder(tmp_path / "in" / "out", "x", force=False, protected=[]) as out:
        out.open_shard(LAYOUT.shards[0])
        with pytest.raises(CannotWrite):
            out.write_bytes(name, b"x")
        with pytest.raises(CannotWrite):
            out.write_side_file(name, Path(__file__))
    assert list(tmp_path.rglob("*")) == [tmp_path / "in"]


def test_a_side_file_that_is_gone(tmp_path: Path) -> None:
    with (
        OutputFolder(tmp_path / "out", "x", force=False, protected=[]) as out,
        pytest.raises(CannotWrite, match="No such file"),
    ):
        out.write_side_file("a", tmp_path / "gone")


# --- names and places ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 256, "File name too long"),
        (f"a/{'n' * 256}/b", "File name too long"),
        ("d/" * 2100, "File name too long"),
        ("n" * 255, "255 bytes, 226 fit"),
        ("ü" * 114, "228 bytes, 226 fit"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/x", "Too many levels of symbolic links"),
    ],
)
def test_a_path_that_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((OutputConflict, CannotWrite), match=message):
        check_target(tmp_path / name, force=True, protected=[])
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_the_longest_name_that_is_allowed_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / "there" / ("n" * 226)
    job(target, 1)
    assert state(target) == 1


@pytest.mark.parametrize("put", ["a file", "a link"])
@pytest.mark.parametrize("place", [work_folder, replaced_folder, journal_file, calibrated_folder])
def test_a_hidden_name_that_is_taken_is_named(
    tmp_path: Path, place: Callable[[Path], Path], put: str
) -> None:
    target = tmp_path / "out"
    taken = place(target)
    if put == "a link":
        taken.symlink_to(tmp_path / "elsewhere")
    elif place is journal_file:
        taken.mkdir()
    else:
        taken.write_text("somebody's own")
    with pytest.raises(OutputConflict, match=re.escape(taken.name)):
        OutputFolder(target, "fp-1", force=True, protected=[])
    assert list(tmp_path.iterdir()) == [taken]


def test_parents_go_if_the_lock_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*arguments: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(journal_module, "_open_locked", no_descriptor)
    with pytest.raises(CannotWrite, match="Too many open files"):
        job(tmp_path / "a" / "b" / "out", 1)
    assert list(tmp_path.iterdir()) == []


BIND = """
import sys
from pathlib import Path
from prunectl.errors import OutputConflict
from prunectl.output.target import check_target
for target in sys.argv[1:]:
    try:
        check_target(Path(target), force=True, protected=[])
    except OutputConflict as error:
        print(error)
"""


def test_a_folder_that_is_bound_from_the_same_disk_is_a_mount_point(tmp_path: Path) -> None:
    bound, inside = tmp_path / "a \\ b", tmp_path / "a \\ b" / "inside"
    bound.mkdir()
    (tmp_path / "from").mkdir()
    unshare = shutil.which("unshare")
    mount = ["sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh"]
    bind = [unshare or "unshare", "-m", *mount, tmp_path / "from", bound]
    if unshare is None or subprocess.run([*bind, "true"], capture_output=True).returncode:
        pytest.skip("folders can be bound by root only")
    command = [*bind, sys.executable, "-c", BIND, bound, inside]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{bound}: is a mount point, which cannot be replaced in one step\n"


# --- the system refuses -------------------------------------------------------------------------


def test_a_journal_that_cannot_be_removed_does_not_fail_a_complete_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    unlink = Path.unlink

    def fails(path: Path, missing_ok: bool = False) -> None:
        if path == journal_file(target):
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, missing_ok)

    events: list[Event] = []
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fails)
        job(target, 1, events.append)
    assert state(target) == 1
    text = "is complete, but its journal could not be removed: Input/output error"
    assert events == [Note(f"{target}: {text}", warning=True)]
    job(target, 2)  # the next run does it
    assert left_over(target) == []


@pytest.mark.parametrize(
    ("number", "free", "said"),
    [
        (errno.EDQUOT, 1 << 40, "the disk quota is used up"),
        (errno.ENOSPC, 1 << 40, "no space is left"),
        (errno.ENOSPC, 10, "1,000 bytes are needed and 10 are free"),
    ],
)
def test_a_full_quota_or_disk_is_said_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, free: int, said: str
) -> None:
    monkeypatch.setattr(osfiles, "free_bytes", lambda path: free)
    with pytest.raises(NoSpace) as caught, osfiles.os_errors(tmp_path, 1000):
        raise OSError(number, os.strerror(number))
    assert caught.value.message == f"{tmp_path}: {said}"
