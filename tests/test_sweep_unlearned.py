"""A model that can do nothing tells nothing of sparsity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunectl.errors import InvalidOption
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate
from prunectl.studies.lottery.settings import LotterySettings
from prunectl.studies.lottery.verb import lottery
from prunectl.studies.sweep.curves import Redraws, Requested, read_curve
from prunectl.studies.sweep.points import Point
from prunectl.studies.sweep.result import Status
from prunectl.studies.sweep.settings import EpsilonMode, SweepSettings, Tolerance
from prunectl.studies.sweep.verb import sweep

THERE = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1])


def requested(sparsity: float, told: np.ndarray) -> Requested:
    values = np.stack([THERE, told], axis=1).astype(np.float64)
    score = float((told == THERE).mean())
    return Requested(
        sparsity, {0: Point(sparsity, sparsity, score, values, {"majority": 0.7}, 1.0)}
    )


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (np.zeros(10, int), Status.UNLEARNED),
        (np.ones(10, int), Status.UNLEARNED),
        (THERE, Status.NOT_REACHED),
    ],
)
def test_a_curve_that_begins_at_chance_has_no_turning_point(
    told: np.ndarray, status: Status
) -> None:
    redraws = Redraws(lambda values: float((values[:, 0] == values[:, 1]).mean()), 0)
    points = [requested(0.0, told), requested(0.5, told)]
    found = read_curve(points, redraws, Tolerance(), higher_is_better=True)
    assert found.essential.status is status
    assert (found.essential.sparsity is None) == (status is Status.UNLEARNED)


def sums(folder: Path) -> Path:
    rows = [{"question": f"What is {n} and {n}?", "answer": 1000 + 2 * n} for n in range(3)]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_model_that_cannot_count_has_no_essential_sparsity(tmp_path: Path) -> None:
    """A model that is right never loses nothing by pruning, which would all be free."""
    evaluation = EvalSettings("arithmetic", (str(sums(tmp_path)),), max_new_tokens=2)
    tolerance = Tolerance(0.01, EpsilonMode.ABSOLUTE)
    settings = SweepSettings(evaluation, sparsity="0.5,0.9", tolerance=tolerance)
    (curve,) = sweep("demo", settings, use_cache=False).curves
    assert curve.dense.score == 0
    assert (curve.essential.status, curve.command) == (Status.UNLEARNED, None)
    assert len(curve.points) == 1


@pytest.mark.parametrize("option", ["--json", "-q"])
def test_where_no_screen_says_it_the_exit_code_is_explained(
    option: str, tmp_path: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    words = f"sweep demo --metric arithmetic --data {sums(tmp_path)} --max-new-tokens 2 --no-cache"
    code, out, err = typed(*words.split(), "--sparsity", "0.5", option)
    assert code == 1
    assert bool(out) == (option == "--json")
    assert "warning: demo, unstructured: The dense model is no better" in err


@pytest.mark.parametrize("verb", [evaluate, sweep, lottery])
def test_a_device_that_is_not_there_is_said_before_anything_is_read(
    verb: Callable[..., object], tmp_path: Path
) -> None:
    evaluation = EvalSettings("classification", device="cuda:999")
    wanted: dict[object, tuple[object, ...]] = {
        evaluate: (evaluation,),
        sweep: (SweepSettings(evaluation),),
        lottery: (tmp_path / "out", LotterySettings(evaluation)),
    }
    with pytest.raises(InvalidOption, match="--device cuda:999"):
        verb(tmp_path / "nowhere", *wanted[verb])
