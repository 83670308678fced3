"""Ctrl-C at random moments of long commands: a word, nothing half, and the next run goes on.

tests/test_resume.py and tests/test_calibrated_resume.py stop at chosen places.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny_models
import tiny_tokenizers
from hubserver import WRITER, Hub
from test_calibration_samples import WORDS

import prunectl

pytestmark = pytest.mark.slow

MOMENTS = 8
TIMED = ("seconds", "machine", "command", "output", "from_cache")
Run = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A command: its arguments, given the folder that it runs in, and what it must come to."""

    args: Callable[[Path], list[str]]
    result: Callable[[Path], object]


@pytest.fixture(scope="module")
def run(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("forks")
    environment = os.environ | hub.environment(WRITER) | {
        "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
        "PRUNECTL_CACHE_DIR": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forking_script.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip

    def run_it(args: list[str], folder: Path, calls: int = 0) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        asked = {"args": args, "folder": str(folder), "calls": calls}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        found: dict[str, Any] = json.loads(process.stdout.readline())
        return found

    yield run_it
    process.communicate()


@pytest.fixture(scope="module")
def cases(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    home = tmp_path_factory.mktemp("models")
    tiny_models.build("llama", home / "llama")
    tiny_models.build("bert_base", home / "bert")
    tiny_tokenizers.save(home / "bert")
    prunectl.prune(
        home / "llama", home / "pruned", prunectl.PruneSettings(sparsity=0.5), max_shard_size=30_000
    )
    write_rows(home / "data")
    training = (
        f"--metric classification --data {home / 'data'} --epochs 3 --learning-rate 1e-2 "
        "--train-batch-size 8 --device cpu"
    ).split()
    samples = "--calibration random --samples 3 --sequence-length 10"
    calibration = f"--method sparsegpt {samples}".split()
    bert, llama = str(home / "bert"), str(home / "llama")
    return {
        "calibrated": Case(
            lambda folder: ["prune", llama, "-s", "0.5", *calibration, "-o", "out"],
            lambda folder: reference.contents(folder / "out"),
        ),
        "sweep": Case(
            lambda folder: ["sweep", bert, *training, "-s", "0.2,0.5", "--results", "points",
                            "--json"],
            told,
        ),
        "lottery": Case(
            lambda folder: ["lottery", bert, *training, "-s", "0.6", "--rounds", "1", "-o", "out"],
            lambda folder: [
                untimed(json.loads((folder / "out/lottery.json").read_text())),
                reference.contents(folder / "out/masks"),
            ],
        ),
        "evaluate": Case(
            lambda folder: ["evaluate", bert, *training, "--checkpoints", "states", "--json"], told
        ),
        "push": Case(
            lambda folder: ["push", str(home / "pruned"), f"writer/{folder.name}"],
            lambda folder: {
                name: data.replace(folder.name.encode(), b"REPO")
                for name, data in hub.files(f"writer/{folder.name}").items()
            },
        ),
    }  # fmt: skip


def write_rows(folder: Path) -> None:
    """Texts whose first and last word tell the class."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train.csv", 64), ("test.csv", 60)):
        with (folder / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for _ in range(count):
                words = rng.integers(2, len(WORDS), rng.integers(3, 8)).tolist()
                words[0] = words[-1] = kind = int(rng.integers(0, 2))
                rows.writerow([" ".join(WORDS[one] for one in words), kind])


def told(folder: Path) -> object:
    return untimed(json.loads((folder / "stdout").read_text()))


def untimed(value: Any) -> Any:
    """A result without what no two runs have in common."""
    if isinstance(value, dict):
        return {name: untimed(one) for name, one in value.items() if name not in TIMED}
    return [untimed(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["calibrated", "sweep", "lottery", "evaluate", "push"])
def test_ctrl_c_at_any_moment(run: Run, cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    case, chance = cases[name], random.Random(name)

    def start(number: str) -> Path:
        folder = tmp_path / f"{name}-{number}"
        folder.mkdir()
        return folder

    whole = start("whole")
    done = run(case.args(whole), whole)
    assert done["code"] == 0, (whole / "stderr").read_text()
    expected, stopped = case.result(whole), 0
    for number in range(MOMENTS):
        folder, moment = start(str(number)), chance.randrange(1, done["calls"])
        found = run(case.args(folder), folder, moment)
        said = (folder / "stderr").read_text()
        assert not found["left"], moment
        assert found["code"] in (0, 130), said
        assert "Traceback" not in said
        assert ("interrupted" in said) == (found["code"] == 130), said
        stopped += found["code"] == 130
        if name == "calibrated" and (folder / "out").exists():
            assert case.result(folder) == expected  # interrupted behind the last step
            continue
        again = run(case.args(folder), folder)
        assert again["code"] == 0, (folder / "stderr").read_text()
        assert case.result(folder) == expected, moment
    assert stopped > MOMENTS / 2
