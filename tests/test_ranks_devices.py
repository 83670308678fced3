"""Which ranks' devices nccl joins, and that what passes is the same whichever way it goes.

Without GPUs the devices are pretended, and a second group of gloo does what nccl would; tests
marked ``gpu`` want two real ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from forked_ranks import SECONDS, ends, start

from prunectl.parallel.devices import Place, errors_are_raised, name_of, why_by_host

pytestmark = pytest.mark.full

Said = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have written what they saw, and what they pruned."""
    folder = tmp_path_factory.mktemp("devices")
    program = "import ranks_devices_script; ranks_devices_script.main()"
    ended = ends(start(2, [str(tiny("llama")), str(folder)], folder, program))
    assert [code for code, _, _ in ended] == [0, 0], ended
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> Said:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("places", "why"),
    [
        (["cuda:0 a", "cuda:1 b"], ""),
        (["cuda:0 a", "cuda:1 b", "cuda:0 c"], ""),  # on two hosts
        (["cuda:0 a", "cpu "], "rank 1 computes on cpu"),
        (["cpu ", "cpu "], "rank 0 computes on cpu"),
        (["cuda:0 a", "cuda:1 "], "rank 1 cannot use cuda:1 by NCCL"),
        (["cuda:0 a", "cuda:0 a"], "ranks 0 and 1 share cuda:0"),
        (["cuda:0 a", "cuda:1 b", "cuda:1 b"], "ranks 1 and 2 share cuda:1"),
    ],
)
def test_who_is_joined(places: list[str], why: str) -> None:
    assert why_by_host([Place(*one.split(" ")) for one in places]) == why


def test_the_cpu_has_no_name_and_cuda_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*args: object) -> None:
        raise AssertionError("CUDA was asked")

    for one in ("is_available", "device_count", "get_device_properties", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, one, touched)
    assert name_of(torch.device("cpu")) == ""


def test_a_device_that_cannot_be_used_has_no_name() -> None:
    """There is none here, or, on a machine with GPUs, not so many."""
    assert name_of(torch.device("cuda", 63)) == ""


def test_the_settings_of_nccl_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "0")
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    with errors_are_raised():
        assert os.environ["TORCH_NCCL_BLOCKING_WAIT"] == "1"
        assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert os.environ["TORCH_NCCL_BLOCKING_WAIT"] == "0"
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in os.environ


NOTES = {
    "own": ["sums are computed by NCCL"],
    "lacking": ["sums are computed through the host: rank 1 computes on cpu"],
    "shared": ["sums are computed through the host: ranks 0 and 1 share cuda:1"],
    "own again": ["sums are computed by NCCL"],
    "broken": [
        "! sums are computed through the host: NCCL cannot connect rank 1 (no way); "
        "NCCL_DEBUG=INFO shows more"
    ],
    "silent": [
        "! sums are computed through the host: NCCL cannot connect rank N (no answer for 1 s); "
        "NCCL_DEBUG=INFO shows more"
    ],
    "own at last": ["sums are computed by NCCL"],
}


@pytest.mark.parametrize("case", NOTES)
def test_tensors_pass_where_they_are_or_through_the_host(said: Said, case: str) -> None:
    """And where a rank does not get to the others by nccl, none uses it, and all go on."""
    is_joined = case.startswith("own")
    first, second = (one[case]["notes"] for one in said)
    assert not second
    if case == "silent":  # of both, at the same time
        first = [re.sub(r"rank \d", "rank N", text) for text in first]
    assert first == NOTES[case]
    for rank, everything in enumerate(said):
        seen = everything[case]
        own = f"cuda:{rank}"
        here = "cpu" if case == "lacking" and rank == 1 else own
        assert seen["device"] == (own if is_joined else "None")
        assert seen["total"] == [here, [0.0, 3.0, 6.0, 9.0, 12.0]]
        assert seen["apart"] == [here if rank == 0 else "cpu", [2.0, 2.0, 2.0]]
        assert seen["told"] == ["cpu", "torch.bfloat16", [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]
        # What only one rank has on its device is added up by the host.
        assert seen["reduced"] == ([own] if is_joined else [])


def test_calibration_adds_up_on_the_devices(said: Said, folder: Path) -> None:
    """And its output is that of the CPU, but for what is recorded of it."""
    assert [one["cuda"] for one in said] == [["cuda:0"], ["cuda:1"]]
    assert [one["cpu"] for one in said] == [[], []]
    found, want = (reference.contents(folder / name) for name in ("cuda", "cpu"))
    assert found.keys() == want.keys()
    weights = [name for name in want if name.endswith("tensors")]
    assert weights
    assert all(found[name] == want[name] for name in weights)


def test_a_rank_that_waits_on_its_device_ends_with_the_other(said: Said) -> None:
    waiting, wrong = (one["fails"] for one in said)
    assert waiting[0] == "RankFailed"
    assert waiting[1].endswith("ValueError: an error of one rank")
    assert wrong[0] == "ValueError"
    assert max(waiting[2], wrong[2]) < 50


def test_what_is_cut_off_ends(said: Said) -> None:
    waiting, cut = (one["is cut"] for one in said)
    assert cut[:2] == ["RanksLost", "the processes lost one another: this one was cut off"]
    assert waiting[0] == "RankFailed"
    assert waiting[1].endswith("this one was cut off")
    assert max(waiting[2], cut[2]) < 50


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two CUDA devices")
@pytest.mark.parametrize("wrong", ["", "kill"])
def test_two_real_devices(tiny: Callable[[str], Path], tmp_path: Path, wrong: str) -> None:
    """Counts are those of the CPU, by nccl; and where a rank is killed, the other ends too."""
    trap = {"what": wrong, "rank": 1, "at": "Advanced calibrating"}
    settings = {"method": "sparsegpt", "sparsity": 0.5}
    calibration = {"source": ["random"], "samples": 8, "sequence_length": 16, "dtype": "float32"}
    jobs = [
        {"verb": "prune", "model": str(tiny("llama")), "output": device, "rows": 16, "shard": "5GB",
         "settings": settings | {"calibration": calibration | {"device": device}}}
        | ({"trap": trap} if wrong else {})
        for device in ("auto", "cpu")
    ]  # fmt: skip
    (tmp_path / "jobs.json").write_text(json.dumps(jobs[: 1 if wrong else 2]))
    torchrun = Path(sys.executable).with_name("torchrun")
    script = Path(__file__).with_name("ranks_script.py")
    done = subprocess.run(
        [torchrun, "--nproc-per-node=2", script, "jobs.json", "answers"],
        cwd=tmp_path, env={**os.environ, "NCCL_DEBUG": "VERSION"}, capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == (1 if wrong else 0), done.stderr
    assert "NCCL version" in done.stdout + done.stderr
    if not wrong:
        first, second = (json.loads((tmp_path / f"answers/{r}.json").read_text()) for r in range(2))
        assert first == second
        assert first[0] == first[1]
