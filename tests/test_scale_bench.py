"""The benchmark of scale: models that it makes, commands that it runs, what it makes of them."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

import experts
import hub_folder
import make_checkpoint
import measuring
import prunectl
import scale
from prunectl.checkpoint.remote import FIRST_BYTES
from prunectl.plan.job import plan_prune

pytestmark = pytest.mark.full


def arguments_of(bench: scale.Bench, part: str, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of a part, none of which is run; on a folder that is not there."""
    seen: list[list[str]] = []

    def look(jobs: list[measuring.Job], of: str, nbytes: int) -> list[scale.Row]:
        seen.extend(job.command for job in jobs)
        return []

    monkeypatch.setattr(bench, "measured", look)
    monkeypatch.setattr(scale, "run", lambda *_: None)
    monkeypatch.setattr(scale, "in_a_process", lambda make: None)
    monkeypatch.setattr(scale, "read_once", lambda model: None)
    assert list(scale.PARTS[part](bench)) == []
    return seen


@pytest.mark.parametrize("part", scale.PARTS)
def test_its_commands_are_ones_that_prunectl_takes(
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: Callable[..., tuple[int, str, str]],
) -> None:
    """They stop at the model, which is not there, or at the Hub, which is offline: all options have
    been read by then."""
    options = ["--work", str(tmp_path), "--prunectl", "prunectl"]
    bench = scale.Bench(scale.arguments([*options, "--sizes", "0.001", "--size-gb", "0.001"]))
    commands = arguments_of(bench, part, monkeypatch)
    verbs = set()
    for command in commands:
        if command[0] == "prunectl":
            words = command[1:]
        elif "prunectl" in command:  # after torchrun's own words
            words = command[command.index("prunectl") + 1 :]
        else:
            continue
        code, out, err = typed(*words)
        assert (code, out) == (1, ""), err
        if "--remote" in words:
            assert "offline mode is on" in err
        else:
            assert "does not exist" in err or "no such" in err.lower() or "not found" in err, err
        verbs.add(words[0])
    assert "prune" in verbs


def test_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "TIMED", scale.TIMED[::3])  # the others only take longer
    found = tmp_path / "found.json"
    options = ["--rounds", "1", "--work", str(tmp_path / "work"), "--json", str(found)]
    prunectl_command = tmp_path / "prunectl"
    prunectl_command.write_text(f'#!/bin/sh\nexec {sys.executable} -m prunectl "$@"\n')
    prunectl_command.chmod(0o755)
    options += ["--prunectl", str(prunectl_command), "--sizes", "0.001", "1000000000"]
    scale.main(["--parts", "sizes", *options])
    out, err = capsys.readouterr()
    rows = json.loads(found.read_text())["parts"]["sizes"]["rows"]
    assert [row["job"] for row in rows] == [measuring.COPY, *scale.TIMED]
    assert all(row["seconds"] > 0 and row["peak_rss_mib"] > 10 for row in rows)
    assert rows[0]["ratio"] == 1
    assert out.count("| 0.001 GB |") == len(rows)
    assert "1e+09 GB left out" in err
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"cache"}


def test_experts_are_prunable_matrices_of_a_real_class(tmp_path: Path) -> None:
    shape = experts.many_small(60)
    make_checkpoint.write_checkpoint(tmp_path / "made", shape, dtype="bf16", shards=2)
    checkpoint = prunectl.open_checkpoint(tmp_path / "made")
    assert len(checkpoint.tensors) == len(shape.tensors())
    plan = plan_prune(checkpoint, prunectl.PruneSettings(sparsity=0.4))
    prunable = {one.spec.name for one in plan.tensors if one.prunable}
    assert sum(".experts." in name for name in prunable) == 60
    assert "model.layers.0.mlp.gate.weight" not in prunable
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(info.values())
    assert sum(p.numel() for p in model.parameters()) == make_checkpoint.count(shape.tensors())
    assert make_checkpoint.count(experts.trillion(10**12).tensors()) == pytest.approx(
        1e12, rel=0.05
    )
    assert len(experts.many_small(100_000).tensors()) == pytest.approx(100_000, rel=0.02)


def test_a_hollow_checkpoint_takes_no_disk(tmp_path: Path) -> None:
    shape = make_checkpoint.shape_for(10**9, tied=False)
    total = make_checkpoint.write_checkpoint(
        tmp_path / "made", shape, dtype="bf16", shards=3, hollow=True
    )
    files = list((tmp_path / "made").glob("*.safetensors"))
    assert total == pytest.approx(2e9, rel=0.1)
    assert sum(path.stat().st_size for path in files) > total
    assert sum(path.stat().st_blocks * 512 for path in files) < 10**6
    checkpoint = prunectl.open_checkpoint(tmp_path / "made")
    assert sum(tensor.spec.nbytes for tensor in checkpoint.tensors) == total


@pytest.mark.parametrize("words", ["analyze --remote", "prune -s 0.4 --dry-run --remote"])
def test_of_a_model_on_the_hub_headers_are_all_that_is_read(words: str, tmp_path: Path) -> None:
    shape = make_checkpoint.shape_for(10**9, tied=False)
    total = make_checkpoint.write_checkpoint(
        tmp_path / "made", shape, dtype="bf16", shards=3, hollow=True
    )
    bench = scale.Bench(scale.arguments(["--work", str(tmp_path), "--prunectl", "prunectl"]))
    bench.prunectl = [sys.executable, "-m", "prunectl"]
    with hub_folder.hub_of(tmp_path / "made", tmp_path / "home") as hub:
        job = bench.remote_job(words, hub, cold=False)
        for _ in range(2):
            job.prepare()
            measuring.run_job(job, bench.cache)
        held = {path.name for path in hub.home.glob("hub/*/snapshots/*/*")}
    assert held == {"config.json", "model.safetensors.index.json"}
    assert not hub.home.exists()
    first, second = job.received
    assert first == second, "the second has nothing from the first"
    weights = {path.name for path in (tmp_path / "made").glob("*.safetensors")}
    assert {name: first[name] for name in weights} == dict.fromkeys(weights, FIRST_BYTES)
    (row,) = measuring.summary([job])
    assert row["received_bytes"] == sum(first.values()) < total / 1000
    shown = scale.table([{"of": "2 GB", "gb_per_second": 1.0} | row])
    assert f"| {sum(first.values()) / 10**6:.1f} |" in shown


def test_a_folder_is_served_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    data = bytes(range(256)) * 5000  # more than is sent at once
    (tmp_path / "made" / "model.safetensors").write_bytes(data)
    (tmp_path / "made" / "config.json").write_bytes(b"{}")
    with hub_folder.hub_of(tmp_path / "made", tmp_path / "home") as hub:
        files = f"{hub.environment['HF_ENDPOINT']}/{hub_folder.REPO}/resolve/main/"

        def read(name: str, span: str = "") -> bytes:
            headers = {"Range": f"bytes={span}"} if span else {}
            request = urllib.request.Request(files + name, headers=headers)
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read()  # type: ignore[no-any-return]

        assert read("config.json") == b"{}"
        assert read("model.safetensors") == data
        assert read("model.safetensors", "1000-1200000") == data[1000:1200001]
        assert read("model.safetensors", "1279000-9999999") == data[1279000:]
        assert hub.sent() == {
            "config.json": 2,
            "model.safetensors": len(data) + 1199001 + len(data) - 1279000,
        }
        assert hub.sent() == {}
