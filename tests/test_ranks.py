"""Several processes on one command: the same bytes as by one, and an end in common."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from forked_ranks import ends, start
from hypothesis import given
from hypothesis import strategies as st
from ranks_script import parsed
from tiny_models import make

import prunectl
from prunectl.events import Advanced, Event
from prunectl.output.target import work_folder
from prunectl.parallel.ranks import piles, slices

SCRIPT = "import sys, ranks_script; sys.exit(ranks_script.main())"
SIZES = st.lists(st.integers(0, 10**6), max_size=60)


# --- shares -----------------------------------------------------------------------------------


@given(SIZES, st.integers(1, 9))
def test_slices_are_runs_that_hold_every_item_once(sizes: list[int], count: int) -> None:
    found = slices(sizes, count)
    assert len(found) == count
    assert [i for run in found for i in run] == list(range(len(sizes)))
    # No run is larger than an equal share by more than the items at its two ends.
    largest = max(sizes, default=0)
    assert all(sum(sizes[i] for i in run) <= sum(sizes) / count + largest for run in found)


@given(SIZES, st.integers(1, 9))
def test_piles_hold_every_item_once_and_are_even(sizes: list[int], count: int) -> None:
    found = piles(sizes, count)
    assert sorted(i for pile in found for i in pile) == list(range(len(sizes)))
    heights = [sum(sizes[i] for i in pile) for pile in found]
    assert max(heights) - min(heights) <= max(sizes, default=0)


# --- the same bytes ---------------------------------------------------------------------------

PRUNES: dict[str, dict[str, Any]] = {
    "global": {"sparsity": 0.4},
    "tensor": {"sparsity": 0.3, "scope": "tensor"},
    "row": {"sparsity": 0.3, "scope": "row"},
    "2:4": {"pattern": "2:4"},
    "budget": {"pattern": "2:4", "sparsity": 0.2},
    "rows": {"pattern": "2:4", "sparsity": 0.2, "budget": "rows"},
}


def launched(count: int, jobs: list[dict[str, Any]], folder: Path) -> list[list[str]]:
    """Have so many ranks carry out jobs; what each of them says of each job."""
    ended = _ended(count, jobs, folder)
    assert [code for code, _, _ in ended] == [0] * count, ended
    return [json.loads((folder / f"answers/{rank}.json").read_text()) for rank in range(count)]


def killed(job: dict[str, Any], trap: dict[str, Any], folder: Path) -> None:
    """Have two ranks carry out a job in which one is killed; both end, and there is no output."""
    ended = _ended(2, [job | {"trap": {"what": "kill", **trap}}], folder)
    other = 1 - trap["rank"]
    assert (ended[trap["rank"]][0], ended[other][0]) == (-signal.SIGKILL, 0), ended
    *_, said = json.loads((folder / f"answers/{other}.json").read_text())
    assert said.startswith("RanksLost: the processes lost one another: "), said
    assert not (folder / job["output"]).exists()


def _ended(count: int, jobs: list[dict[str, Any]], folder: Path) -> list[tuple[Any, str, str]]:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return ends(start(count, ["jobs.json", "answers"], folder, SCRIPT))


def bytes_in(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of all kinds in one folder: files in shards, a pickle, tied, stacked experts."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind in {"llama": "llama", "tied": "gpt2", "experts": "mixtral"}.items():
        make(kind).to(torch.bfloat16).save_pretrained(folder / name, max_shard_size="20KB")
    wide = make("bert")
    wide.save_pretrained(folder / "wide")
    make("llama").to(torch.float16).save_pretrained(folder / "pickled")
    weights = folder / "pickled/model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), folder / "pickled/pytorch_model.bin")
    weights.unlink()
    return folder


WAYS = {"wide": PRUNES, "llama": {"global": PRUNES["global"], "rows": PRUNES["rows"]}}
EXPORTS = [
    {"verb": "export", "model": "wide 2:4", "output": f"stored {layout}", "layout": layout}
    | {"shard": "30KB"}
    for layout in ("packed", "dense", "nm")
]


@pytest.fixture(scope="module")
def jobs(models: Path) -> list[dict[str, Any]]:
    """Prunings and exports."""
    return [
        {"verb": "prune", "model": str(path), "settings": settings, "output": f"{path.name} {way}"}
        | {"shard": "20KB"}
        for path in sorted(models.iterdir())
        for way, settings in WAYS.get(path.name, {"global": PRUNES["global"]}).items()
    ] + EXPORTS


@pytest.fixture(scope="module")
def alone(jobs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    for job in jobs:
        model, output, shard = folder / job["model"], folder / job["output"], job["shard"]
        if job["verb"] == "export":
            prunectl.export(model, output, job["layout"], max_shard_size=shard)
        else:
            settings = prunectl.PruneSettings(**parsed(job["settings"]))
            prunectl.prune(model, output, settings, max_shard_size=shard, use_cache=False)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_write_the_bytes_that_one_process_writes(
    count: int, models: Path, jobs: list[dict[str, Any]], alone: Path, tmp_path: Path
) -> None:
    checks = [{"verb": "verify", "output": name} for name in ("wide rows", "stored packed")]
    analyze = {"verb": "analyze", "model": str(models / "wide")}
    cached = analyze | {"cache": True}
    analyses = [cached, cached, cached | {"full": 1}, analyze]  # one cannot take the cache over
    answers = launched(count, [*jobs, *checks, *analyses], tmp_path)
    assert all(answer == answers[0] for answer in answers), "all ranks know the same"
    for job in jobs:
        assert bytes_in(tmp_path / job["output"]) == bytes_in(alone / job["output"]), job
    for check, text in zip(checks, answers[0][-6:-4], strict=True):
        told: list[Event] = []
        report = prunectl.verify(tmp_path / check["output"], on_event=told.append)
        ok, tensors, zeros, shares = json.loads(text)
        assert (ok, tensors, zeros) == (True, report.tensors, report.zeros), check
        # Each tells of its own part as it is done; those of others come all at once, and last.
        assert sum(shares) == sum(one.count for one in told if isinstance(one, Advanced))
        assert len(shares) == count
        assert min(shares) > 0
    document = prunectl.analyze(models / "wide", use_cache=False).to_json()
    del document["seconds"]
    found = [json.loads(text) for text in answers[0][-4:]]
    assert [one.pop("from_cache") for one in found] == [False, True, False, False]
    del document["from_cache"]
    assert found == [json.loads(json.dumps(document))] * 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# --- an end in common -------------------------------------------------------------------------

WHOLE = {"verb": "prune", "settings": {"pattern": "2:4"}, "shard": "20KB"}


DIFFERING = {"verb": "analyze", "output": "x", "shard": "5GB", "settings": {"sparsity": 0.4}}
OTHERS: list[dict[str, Any]] = [
    {"others": {"1": {"patterns": ["4:8"]}}},
    {"others": {"1": {"verb": "prune"}}},
    {"verb": "prune", "others": {"1": {"settings": {"sparsity": 0.3}}}},
    {"verb": "prune", "others": {"1": {"settings": {"pattern": "2:4"}}}},
]
"""Commands of which one rank is given another than the first."""


@pytest.mark.full
def test_when_one_rank_fails_all_end_with_its_words(models: Path, tmp_path: Path) -> None:
    """In one launch after another way to fail; what is left behind is gone on from."""
    model = str(models / "llama")
    begin = "PhaseStarted writing weights"

    def trap(what: str, rank: int, at: str = begin) -> dict[str, Any]:
        return {"what": what, "rank": rank, "at": at}

    jobs = [
        WHOLE | {"model": model, "output": "full", "trap": trap("small files", 1)},
        WHOLE | {"model": model, "output": "first", "trap": trap("small files", 0)},
        WHOLE | {"model": model, "output": "odd", "trap": trap("error", 1)},
        WHOLE | {"model": model, "output": "hung", "trap": trap("stop", 1)},
        WHOLE | {"model": model, "output": "here", "others": {"1": {"output": "elsewhere"}}},
        WHOLE | {"model": model, "output": "x", "others": {"1": {"model": str(models / "wide")}}},
        WHOLE | {"model": str(tmp_path / "spoilt"), "output": "nan"},
        WHOLE | {"model": model, "output": "fine", "others": {}},
        *({"model": model, **DIFFERING} | more for more in OTHERS),
    ]
    shutil.copytree(models / "wide", tmp_path / "spoilt")
    _put_nan(tmp_path / "spoilt")
    first, second = launched(2, jobs, tmp_path)
    host = socket.gethostname()
    assert re.match(rf"RankFailed: rank 1 on {host}: full.*File too large", first[0]), first[0]
    assert re.match(r"CannotWrite: full.*File too large", second[0])
    assert re.match(r"CannotWrite: first.*File too large", first[1])
    assert re.match(rf"RankFailed: rank 0 on {host}: first.*File too large", second[1])
    assert re.match(rf"RankFailed: rank 1 on {host}: ValueError: an error of one rank", first[2])
    assert second[2].startswith("ValueError: an error of one rank")
    assert "rank 1 on its host: has sent no heartbeat for 2 s" in first[3]
    assert "this one has sent no heartbeat for 2 s; the others gave up on it" in second[3]
    for said in (first[4], second[4]):
        assert said.startswith("RanksDiffer: rank 1 and rank 0 do not see the same output folder")
    for said in (first[5], second[5]):
        assert said.startswith("RanksDiffer: rank 1 and rank 0 do not see the same weights")
    assert sorted(said.partition(":")[0] for said in (first[6], second[6])) in (
        ["NaNWeights", "NaNWeights"], ["NaNWeights", "RankFailed"],
    )  # fmt: skip
    assert "NaN" in first[6]
    assert "NaN" in second[6]
    assert first[7] == second[7]
    assert first[7].endswith(" 0 resumed")
    for said in (*first[8:], *second[8:]):
        assert said.startswith("RanksDiffer: rank 1 and rank 0 do not see the same command")
    assert len(first) == len(second) == 8 + len(OTHERS)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {"fine", "answers"}
    assert not {"full", "first", "odd", "hung", "here", "elsewhere", "x", "nan"} & {
        path.name for path in tmp_path.iterdir()
    }


def _put_nan(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("output.dense.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.full
@pytest.mark.parametrize(
    ("at", "time"), [("PhaseStarted measuring weights", 1), ("Advanced writing weights", 2)]
)
def test_after_a_kill_the_same_command_goes_on(
    at: str, time: int, models: Path, tmp_path: Path
) -> None:
    job = WHOLE | {"model": str(models / "wide"), "output": "out", "settings": {"sparsity": 0.4}}
    killed(job, {"rank": 1, "at": at, "time": time}, tmp_path)
    # Another number of processes goes on: the shards are the same.
    settings = prunectl.PruneSettings(sparsity=0.4)
    more: dict[str, Any] = {"max_shard_size": "20KB", "use_cache": False}
    result = prunectl.prune(models / "wide", tmp_path / "out", settings, **more)
    whole = prunectl.prune(models / "wide", tmp_path / "whole", settings, **more)
    assert whole.resumed_shards == 0
    if at.endswith("writing weights"):  # those of both are gone on from
        assert 0 < result.resumed_shards <= whole.shards
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.full
def test_each_finished_shard_is_checked_by_one_rank(models: Path, tmp_path: Path) -> None:
    """One of them holds a flipped bit; two ranks go on from what two made, until one was killed."""
    job = WHOLE | {"model": str(models / "wide"), "output": "out", "settings": {"sparsity": 0.4}}
    killed(job, {"rank": 0, "at": "PhaseDone writing weights"}, tmp_path)
    shards = sorted(work_folder(tmp_path / "out").glob("*.safetensors"))
    reference.flip_bit(shards[1])
    answers = launched(2, [job | {"checked": "checking earlier shards"}], tmp_path)
    checked = [json.loads(said.pop().partition("checked ")[2]) for said in answers]
    assert all(checked)
    assert sorted(name for names in checked for name in names) == [path.name for path in shards]
    settings = prunectl.PruneSettings(sparsity=0.4)
    prunectl.prune(models / "wide", tmp_path / "whole", settings, max_shard_size="20KB")
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "whole")
