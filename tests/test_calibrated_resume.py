"""A calibrated prune that was cut off: what waits beside the output is checked and gone on from."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import transformers
from full import few
from safetensors import safe_open

from prunectl import NM, PruneSettings, Rule, export, prune, verify
from prunectl.calibration.store import CalibratedStore
from prunectl.errors import DamagedWork, OutputConflict
from prunectl.events import Advanced, Event, Note, PhaseStarted
from prunectl.output import journal as journal_module
from prunectl.output.resumable import ResumableFolder
from prunectl.output.target import calibrated_folder, calibrated_journal, clean_up_calibration
from prunectl.parallel.run import PLAIN_RUN
from prunectl.plan.settings import Calibration

BLOCKS = 4
RANDOM = Calibration(("random",), samples=3, sequence_length=10)
SPARSEGPT = PruneSettings(sparsity=0.5, method="sparsegpt", calibration=RANDOM)  # type: ignore[arg-type]
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of four blocks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=BLOCKS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=20,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing interrupts writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prune(source, out, SPARSEGPT)
    return reference.contents(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@contextmanager
def stopped_after(blocks: int) -> Iterator[None]:
    """Ctrl-C once so many blocks are finished, which ends the ``with`` block."""
    finish, done = CalibratedStore.finish, []

    def stop(self: CalibratedStore, block: str) -> None:
        finish(self, block)
        done.append(block)
        if len(done) == blocks:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalibratedStore, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def cut_off(source: Path, out: Path, choice: PruneSettings, blocks: int) -> list[Event]:
    """Ctrl-C once so many blocks are finished; returns the events."""
    events: list[Event] = []
    with stopped_after(blocks):
        prune(source, out, choice, on_event=events.append)
    assert not out.exists()
    return events


def go_on(
    source: Path, out: Path, choice: PruneSettings = SPARSEGPT, **more: Any
) -> tuple[list[int], list[Event]]:
    """The same call again; returns the layers that were computed, and the events."""
    events: list[Event] = []
    put, layers = CalibratedStore.put, []

    def watched(self: CalibratedStore, name: str, *rest: Any) -> None:
        layers.append(int(name.split(".")[2]))
        put(self, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalibratedStore, "put", watched)
        prune(source, out, choice, on_event=events.append, **more)
    assert verify(out).ok
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return list(dict.fromkeys(layers)), events


def notes(events: Sequence[Event]) -> list[str]:
    """What was said, but for the forecast of memory."""
    texts = [event.text for event in events if isinstance(event, Note)]
    return [text for text in texts if not text.startswith("Calibration takes")]


def block_file(out: Path, block: int) -> Path:
    return calibrated_folder(out) / f"block-{block:05d}.safetensors"


# --- damage -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("block", "damage"), few([(0, "a bit"), (1, "header"), (1, "cut"), (1, "gone"), (2, "a bit")])
)
def test_a_damaged_block_is_computed_anew_and_no_other(
    source: Path, out: Path, whole: dict[str, bytes], block: int, damage: str
) -> None:
    cut_off(source, out, SPARSEGPT, 3)
    path = block_file(out, block)
    if damage == "a bit":
        reference.flip_bit(path)
    elif damage == "header":
        reference.flip_bit(path, 20)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    layers, events = go_on(source, out)
    assert layers == [block, 3]
    assert notes(events) == [
        f"{out}: continuing from 2 finished blocks of an earlier run; "
        "one block was damaged and is written again"
    ]
    assert reference.contents(out) == whole


def rewrite(out: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change lines of the journal, each with its digest."""
    path = calibrated_journal(out)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        del line["blake3"]
    change(lines)
    path.write_bytes(b"".join(map(journal_module._encode, lines)))


def test_blocks_behind_one_that_comes_out_otherwise_are_computed_anew(
    source: Path, out: Path, whole: dict[str, bytes]
) -> None:
    """As if another machine, which rounds otherwise, had computed what was damaged since."""
    cut_off(source, out, SPARSEGPT, 3)

    def other(lines: list[dict[str, Any]]) -> None:
        assert lines[2]["shard"] == "block-00001.safetensors"
        lines[2]["records"][0]["blake3"] = "0" * 64

    rewrite(out, other)
    layers, events = go_on(source, out)
    assert layers == [1, 2, 3]
    assert notes(events)[1:] == [
        f"{out}: model.layers.1 was recomputed with other bytes: "
        "the blocks after it are recomputed too"
    ]
    assert reference.contents(out) == whole


def test_a_damaged_journal_counts_up_to_the_damage(
    source: Path, out: Path, whole: dict[str, bytes]
) -> None:
    cut_off(source, out, SPARSEGPT, 3)
    path = calibrated_journal(out)
    lines = path.read_text().splitlines(keepends=True)
    changed = re.sub(r'"error":0\.(\d)', lambda m: f'"error":0.{9 - int(m[1])}', lines[2], count=1)
    assert changed != lines[2]
    path.write_text("".join([*lines[:2], changed, *lines[3:]]))
    layers, events = go_on(source, out)
    assert layers == [1, 2, 3]
    assert notes(events) == [f"{out}: continuing from 1 finished block of an earlier run"]
    assert reference.contents(out) == whole


@pytest.mark.parametrize("complete", few([False, True]))
def test_what_is_damaged_before_it_is_in_the_output(
    source: Path, out: Path, whole: dict[str, bytes], complete: bool
) -> None:
    """The digest is that of what was computed, and not of what was read."""
    if complete:
        cut_off(source, out, SPARSEGPT, BLOCKS)
    damaged = []

    def damage(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "writing weights":
            with safe_open(block_file(out, 2), "pt") as file:
                damaged.extend(list(file.keys())[-1:])
            reference.flip_bit(block_file(out, 2))

    with pytest.raises(DamagedWork, match=r"layers\.2.*changed on disk") as failed:
        prune(source, out, SPARSEGPT, on_event=damage)
    assert failed.value.path == str(out)
    assert damaged
    assert not out.exists()
    layers, events = go_on(source, out)
    assert layers == [2]
    assert "one block was damaged" in notes(events)[0]
    assert reference.contents(out) == whole


# --- what was measured ----------------------------------------------------------------------------
MEASURED = {
    "budget": ({"sparsity": 0.3, "pattern": NM(2, 4), "method": "sparsegpt"}, "measuring errors"),
    "global": ({"sparsity": 0.4, "scope": "global", "method": "wanda"}, "comparing weights"),
    "refined": (
        {"sparsity": 0.3, "pattern": NM(2, 4), "method": "magnitude", "refine": True},
        "measuring errors",
    ),
}


def phases(events: Sequence[Event]) -> list[str]:
    return [event.phase for event in events if isinstance(event, PhaseStarted)]


@pytest.mark.parametrize("blocks", few([0, 2], 2))
@pytest.mark.parametrize(("options", "phase"), few(MEASURED.values()), ids=MEASURED)
def test_a_measuring_pass_is_not_repeated(
    source: Path, out: Path, options: dict[str, Any], phase: str, blocks: int
) -> None:
    choice = PruneSettings(calibration=RANDOM, **options)
    prune(source, out.with_name("whole"), choice)
    expected = reference.contents(out.with_name("whole"))
    out = out.parent / "there" / "out"
    if blocks:
        first = cut_off(source, out, choice, blocks)
    else:
        first = []

        def stop(event: Event) -> None:
            first.append(event)
            if isinstance(event, Advanced) and event.phase == "calibrating":
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            prune(source, out, choice, on_event=stop)
    assert phases(first).count(phase) == 1
    assert not [text for text in notes(first) if "earlier run" in text]
    kept = f"{blocks} finished blocks" if blocks else "the measurements"
    assert notes(first)[-1] == f"{out}: kept {kept}; the same command continues from there"
    layers, events = go_on(source, out, choice)
    assert phase not in phases(events)
    assert layers == list(range(blocks, BLOCKS))
    again = "2 finished blocks" if blocks else "the measurements"
    assert notes(events)[0] == f"{out}: continuing from {again} of an earlier run"
    assert reference.contents(out) == expected


def test_of_several_pools_those_that_were_measured_are_not_measured_again(
    source: Path, out: Path
) -> None:
    rules = tuple(Rule((f"re:layers.{i}.",), sparsity=0.3, pattern=NM(2, 4)) for i in range(BLOCKS))
    choice = PruneSettings(
        sparsity=0.4, scope="tensor", method="sparsegpt", rules=rules, calibration=RANDOM,  # type: ignore[arg-type]
    )  # fmt: skip
    prune(source, out.with_name("whole"), choice)
    expected = reference.contents(out.with_name("whole"))
    out = out.parent / "there" / "out"
    first: list[Event] = []

    def stop(event: Event) -> None:
        first.append(event)
        if phases(first).count("measuring errors") == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        prune(source, out, choice, on_event=stop)
    _, events = go_on(source, out, choice)
    assert phases(events).count("measuring errors") == BLOCKS - 2
    assert reference.contents(out) == expected


# --- what is said ---------------------------------------------------------------------------------
LINE = ("-s", "0.5", "--method", "sparsegpt", "--calibration", "random", "--samples", "3",
        "--sequence-length", "10", "-o", "out")  # fmt: skip


def test_ctrl_c_says_that_the_same_command_goes_on(
    source: Path, tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = CalibratedStore.finish

    def stop(self: CalibratedStore, block: str) -> None:
        finish(self, block)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(CalibratedStore, "finish", stop)
        code, shown, err = typed("prune", source, *LINE)
    assert (code, shown) == (130, "")
    assert err.splitlines()[1:] == [
        "out: kept 1 finished block; the same command continues from there",
        "interrupted",
    ]
    code, _, err = typed("prune", source, *LINE)
    assert code == 0
    assert "out: continuing from 1 finished block of an earlier run" in err.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_while_the_output_is_written_says_it_once(source: Path, out: Path) -> None:
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, Advanced) and event.phase == "writing weights":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        prune(source, out, SPARSEGPT, max_shard_size=10_000, on_event=stop)
    told = [text for text in notes(events) if "the same command continues" in text]
    assert len(told) == 1
    assert stopped.value.__notes__ == told
    assert go_on(source, out, max_shard_size=10_000)[0] == []


def test_ctrl_c_before_anything_is_finished_leaves_nothing(source: Path, out: Path) -> None:
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, Advanced):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        prune(source, out, SPARSEGPT, on_event=stop)
    assert notes(events) == []
    assert list(out.parent.iterdir()) == []


def test_messages_name_the_output(source: Path, out: Path, whole: dict[str, bytes]) -> None:
    events = cut_off(source, out, SPARSEGPT, 1)
    other = PruneSettings(sparsity=0.4, method="sparsegpt", calibration=RANDOM)  # type: ignore[arg-type]
    prune(source, out, other, on_event=events.append)
    said = notes(events)
    assert said[-1] == f"{out}: discarding unfinished blocks of another run"
    second = out.with_name("second")
    with (
        CalibratedStore(second, "", PLAIN_RUN),
        pytest.raises(OutputConflict, match="another prunectl is writing") as refused,
    ):
        prune(source, second, SPARSEGPT, on_event=events.append)
    assert refused.value.path == str(second)
    cut_off(source, second, SPARSEGPT, 1)
    calibrated_folder(second).rename(second.with_name("moved"))
    calibrated_folder(second).write_bytes(b"")  # no folder, and perhaps somebody's
    with pytest.raises(OutputConflict, match="next to it, which is not a folder") as failed:
        prune(source, second, SPARSEGPT, on_event=events.append)
    assert failed.value.path == str(second)
    assert not [text for text in notes(events) if "prunectl-calibrated" in text]


def test_another_prune_for_the_same_output_leaves_a_running_calibration_its_work(
    source: Path, out: Path, whole: dict[str, bytes]
) -> None:
    """It is refused before it begins; and if it has begun first, it does not sweep when it ends."""
    magnitude, done = PruneSettings(sparsity=0.5), []
    finish = CalibratedStore.finish

    def meanwhile(self: CalibratedStore, block: str) -> None:
        finish(self, block)
        done.append(block)
        if len(done) == 2:
            for another in (lambda: prune(source, out, magnitude), lambda: export("demo", out)):
                with pytest.raises(OutputConflict, match="another prunectl is writing"):
                    another()
            clean_up_calibration(out)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalibratedStore, "finish", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            prune(source, out, SPARSEGPT)
    assert go_on(source, out)[0] == [2, 3]
    assert reference.contents(out) == whole


def test_what_a_calibration_left_is_swept_with_the_output(source: Path, out: Path) -> None:
    cut_off(source, out, SPARSEGPT, 1)
    assert calibrated_folder(out).is_dir()
    prune(source, out, PruneSettings(sparsity=0.5))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_what_a_run_left_that_was_killed_in_the_end_is_swept_by_the_next(
    source: Path, out: Path, whole: dict[str, bytes]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableFolder, "discard", lambda self: None)
        patch.setattr("prunectl.pruning.verb.clean_up_calibration", lambda real: None)
        prune(source, out, SPARSEGPT)
    assert calibrated_folder(out).is_dir()
    with pytest.raises(OutputConflict, match="exists and is not empty"):
        prune(source, out, SPARSEGPT)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert reference.contents(out) == whole


def test_a_calibration_that_is_to_replace_an_output_waits_while_others_are_refused(
    source: Path, out: Path
) -> None:
    prune(source, out, PruneSettings(sparsity=0.5))
    with stopped_after(1):
        prune(source, out, SPARSEGPT, force=True)
    with pytest.raises(OutputConflict, match="exists and is not empty"):
        prune(source, out, SPARSEGPT)
    assert go_on(source, out, force=True)[0] == [1, 2, 3]


@pytest.mark.parametrize("damaged", few([False, True], True))
def test_shares_of_a_row_budget_are_those_of_a_run_that_nothing_interrupts(
    source: Path, tmp_path: Path, damaged: bool
) -> None:
    """What a matrix is off by goes to the one after it, and finished blocks gave what they gave."""
    choice = PruneSettings(
        sparsity=0.17, pattern=NM(2, 4), budget="rows", method="wanda", calibration=RANDOM
    )  # type: ignore[arg-type]
    prune(source, tmp_path / "whole" / "out", choice)
    cut_off(source, tmp_path / "cut" / "out", choice, 3)
    if damaged:
        reference.flip_bit(block_file(tmp_path / "cut" / "out", 1))
    layers, _ = go_on(source, tmp_path / "cut" / "out", choice)
    assert layers == ([1, 3] if damaged else [3])
    assert reference.contents(tmp_path / "cut" / "out") == reference.contents(
        tmp_path / "whole" / "out"
    )
