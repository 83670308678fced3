"""A prune that is killed or stopped: the target is as it was, and the same call goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import reference
import torch
from forked import die, dying_after, forked

from prunectl import PruneResult, PruneSettings, prune, verify
from prunectl.errors import OutputConflict
from prunectl.events import Advanced, Event, Note
from prunectl.output.journal import Journal
from prunectl.output.target import journal_file, work_folder

SHARDS = 6
LIMIT = 1_000_000
HALF = PruneSettings(sparsity=0.5)

# Prunes in a process of its own, which goes on in the middle when its stdin is closed.
CHILD = """
import sys
from prunectl import PruneSettings, prune
from prunectl.events import Advanced

def on_event(event):
    if isinstance(event, Advanced) and event.phase == "writing weights":
        print("writing", flush=True)
        sys.stdin.read()

result = prune(*sys.argv[1:], PruneSettings(sparsity=0.5), max_shard_size=1_000_000, jobs=1,
               on_event=on_event)
print("resumed", result.resumed_shards, flush=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tensor of 800 kB for each of six shards; roles are told from names, without torch."""
    torch.manual_seed(0)
    tensors = {
        f"model.layers.{i}.mlp.up_proj.weight": torch.randn(400, 500).round(decimals=2)
        for i in range(SHARDS)
    }
    folder = reference.save(tmp_path_factory.mktemp("models") / "source", tensors)
    (folder / "LICENSE").write_text("free")
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing interrupts writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(source, out).shards == SHARDS
    return reference.contents(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(
    source: Path, out: Path, choice: PruneSettings = HALF, *, force: bool = False
) -> PruneResult:
    return prune(source, out, choice, max_shard_size=LIMIT, force=force)


def killed(
    source: Path, out: Path, shards: int = 0, *, tensors: int = 0, force: bool = False
) -> None:
    """Prune until so many shards are noted as finished, or so many tensors are written."""
    seen = 0

    def on_event(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Advanced) and event.phase == "writing weights"
        if tensors and seen == tensors:
            die()

    def work() -> None:
        if shards:
            dying_after(Journal, "add", shards)
        prune(source, out, HALF, max_shard_size=LIMIT, force=force, jobs=1, on_event=on_event)

    assert forked(work) == -signal.SIGKILL


def finished(out: Path) -> list[str]:
    """Shards that the journal beside the output calls finished."""
    lines = journal_file(out).read_text().splitlines()[1:]
    return [json.loads(line)["shard"] for line in lines]


def assert_complete(out: Path, whole: dict[str, bytes]) -> None:
    assert reference.contents(out) == whole
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.fixture
def waiting(source: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of writing ``out``."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, source, out],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == "writing\n"
    yield child
    if child.poll() is None:
        child.kill()
    child.communicate()


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, SHARDS + 1))
def test_killed_after_a_shard(
    source: Path, out: Path, whole: dict[str, bytes], number: int
) -> None:
    killed(source, out, number)
    assert not out.exists()
    assert len(finished(out)) == number
    result = run(source, out)
    assert result.resumed_shards == number
    assert_complete(out, whole)
    assert verify(out).ok


@pytest.mark.parametrize("number", [1, 3])
def test_killed_after_a_tensor(
    source: Path, out: Path, whole: dict[str, bytes], number: int
) -> None:
    killed(source, out, tensors=number)
    assert not out.exists()
    done = len(finished(out))
    assert done <= number
    assert run(source, out).resumed_shards == done
    assert_complete(out, whole)


def test_killed_again_and_again(source: Path, out: Path, whole: dict[str, bytes]) -> None:
    for number in range(1, 4):
        killed(source, out, 1)
        assert len(finished(out)) == number
    assert run(source, out).resumed_shards == 3
    assert_complete(out, whole)


def test_what_is_resumed_is_said(source: Path, out: Path) -> None:
    killed(source, out, 2)
    events: list[Event] = []
    prune(source, out, HALF, max_shard_size=LIMIT, on_event=events.append)
    assert any(isinstance(e, Note) and "2 finished shards" in e.text for e in events)
    written = sum(e.count for e in events if isinstance(e, Advanced) and "writing" in e.phase)
    assert written == (SHARDS - 2) * 800_000


@pytest.mark.parametrize(
    ("choice", "limit"),
    [
        (PruneSettings(sparsity=0.6), LIMIT),
        (PruneSettings(sparsity=0.5, exclude=("model.layers.5",)), LIMIT),
        (HALF, 2 * LIMIT),
    ],
)
def test_other_arguments_begin_anew(
    source: Path, out: Path, tmp_path: Path, choice: PruneSettings, limit: int
) -> None:
    killed(source, out, 3)
    result = prune(source, out, choice, max_shard_size=limit)
    assert result.resumed_shards == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    prune(source, tmp_path / "clean", choice, max_shard_size=limit)
    assert reference.contents(out) == reference.contents(tmp_path / "clean")


def test_a_source_that_changed_begins_anew(out: Path, tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(400, 500) for i in range(SHARDS)}
    source = reference.save(tmp_path / "source", tensors)
    killed(source, out, 3)
    reference.save(source, {name: tensor * 2 for name, tensor in tensors.items()})
    assert run(source, out).resumed_shards == 0
    assert verify(out).ok


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
def test_a_finished_shard_that_was_damaged_is_written_again(
    source: Path, out: Path, whole: dict[str, bytes], damage: str
) -> None:
    killed(source, out, 3)
    shard = work_folder(out) / finished(out)[1]
    if damage == "a bit":
        reference.flip_bit(shard)
    elif damage == "cut":
        os.truncate(shard, shard.stat().st_size - 1)
    else:
        shard.unlink()
    events: list[Event] = []
    result = prune(source, out, HALF, max_shard_size=LIMIT, on_event=events.append)
    assert result.resumed_shards == 2
    text = (
        "continuing from 2 finished shards of an earlier run; "
        "one shard was damaged and is written again"
    )
    assert Note(f"{out}: {text}", warning=True) in events
    assert_complete(out, whole)


def test_a_run_that_ends_again_does_not_take_the_damaged_shard_either(
    source: Path, out: Path, whole: dict[str, bytes]
) -> None:
    killed(source, out, 3)
    reference.flip_bit(work_folder(out) / finished(out)[1])
    killed(source, out, tensors=1)
    assert run(source, out).resumed_shards >= 2
    assert_complete(out, whole)


# --- stopped ------------------------------------------------------------------------------------


def test_ctrl_c_leaves_the_target_absent(
    source: Path, out: Path, whole: dict[str, bytes], waiting: subprocess.Popen[str]
) -> None:
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=300)
    assert waiting.returncode not in (0, None)
    assert not out.exists()
    run(source, out)
    assert_complete(out, whole)


@pytest.mark.full
def test_ctrl_c_on_the_command_line(source: Path, out: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from prunectl.parallel.streaming import Scratch\n"
         "blocks = Scratch.blocks\n"
         "def slow(*args, **more):\n"
         "    for block in blocks(*args, **more):\n"
         "        print('reading', flush=True); sys.stdin.read(); time.sleep(0.2); yield block\n"
         "Scratch.blocks = slow\n"
         "import sys\nfrom prunectl.__main__ import main\nsys.exit(main())",
         "prune", source, "-s", "0.5", "-o", out, "--jobs", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == "reading\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert list(tmp_path.iterdir()) == []


def test_an_error_half_way_keeps_what_is_finished(
    source: Path, out: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    add, seen = Journal.add, []

    def full(self: Journal, shard: object, records: object) -> object:
        seen.append(shard)
        if len(seen) == 3:
            raise OSError(5, "Input/output error")
        return add(self, shard, records)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", full)
        with pytest.raises(Exception, match="Input/output error"):
            run(source, out)
    assert not out.exists()
    assert run(source, out).resumed_shards >= 2
    assert_complete(out, whole)


# --- replaced -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, SHARDS])
def test_a_killed_replacement_leaves_the_old_output(
    source: Path, out: Path, whole: dict[str, bytes], number: int
) -> None:
    run(source, out, PruneSettings(sparsity=0.1))
    old = reference.contents(out)
    assert old != whole
    killed(source, out, number, force=True)
    assert reference.contents(out) == old
    assert verify(out).ok
    with pytest.raises(OutputConflict, match="not empty"):
        run(source, out)
    assert run(source, out, force=True).resumed_shards > 0
    assert_complete(out, whole)


def test_a_replacement_removes_what_was_there(
    source: Path, out: Path, whole: dict[str, bytes]
) -> None:
    run(source, out, PruneSettings(sparsity=0.1))
    before = set(out.iterdir())
    (out / "stray.txt").write_text("somebody's own")
    with pytest.raises(OutputConflict, match=r"stray\.txt"):
        run(source, out, force=True)
    assert set(out.iterdir()) == before | {out / "stray.txt"}
    (out / "stray.txt").unlink()
    run(source, out, force=True)
    assert_complete(out, whole)


# --- together -----------------------------------------------------------------------------------


def test_two_at_once_on_one_output(
    source: Path, out: Path, whole: dict[str, bytes], waiting: subprocess.Popen[str]
) -> None:
    with pytest.raises(OutputConflict, match="another prunectl is writing this output"):
        run(source, out)
    output, errors = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, errors
    assert output.endswith("resumed 0\n")
    assert_complete(out, whole)
