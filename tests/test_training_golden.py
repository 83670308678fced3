"""Fine-tuning gives the scores that it gave before, which are in ``data/golden_training.json``.

They were written down with the former loop, on accelerate, by

    PYTHONPATH=scripts:tests OMP_NUM_THREADS=1 python tests/test_training_golden.py
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_evaluate_qa as qa
import tiny_models
import tiny_tokenizers

import fetch_models
from prunectl import LotterySettings, PruneSettings, lottery, open_checkpoint, prune
from prunectl.evaluation.loaded_model import open_loaded_model
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.settings import EvalSettings, Training

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden_training.json"
SEEDS = (0, 1, 2)
TRAINING = Training(epochs=3, train_batch_size=8, warmup=0.2, weight_decay=0.01)
RATES = {"minilm": 2e-4, "demo": 2e-3}


def mails(model: str, seed: int = 0) -> EvalSettings:
    return EvalSettings(
        "classification",
        data=(str(DATA / "mails"),),
        sequence_length=48,
        training=replace(TRAINING, learning_rate=RATES[model]),
        seed=seed,
        device="cpu",
    )


def trained(model: str | Path, settings: EvalSettings) -> dict[str, Any]:
    """The score, its parts, and the norm of all weights after the training."""
    checkpoint = open_checkpoint(model)
    metric = prepare(checkpoint, settings)
    with open_loaded_model(checkpoint, metric, device="cpu", dtype="auto", seed=settings.seed) as (
        loaded,
        _,
    ):
        score = metric.score(loaded, seed=settings.seed)
        norms = [float((p.detach().double() ** 2).sum()) for p in loaded.model.parameters()]
    parts = {name: round(one, 6) for name, one in score.parts.items()}
    return {"score": round(score.value, 6), **parts, "norm": round(float(np.sqrt(sum(norms))), 4)}


def on_mails(minilm: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Half of the weights are pruned and held."""
    prune(minilm, folder / "half", PruneSettings(sparsity=0.5), force=True)
    return {"minilm half": trained(folder / "half", mails("minilm", seed))}


def on_questions(folder: Path, seed: int) -> dict[str, Any]:
    """The questions of the tests, on their tiny BERT."""
    if not folder.exists():
        tiny_models.build("bert_base", folder / "bert")
        tiny_tokenizers.save(folder / "bert")
        qa.write(folder / "data" / "train.jsonl", qa.asked(80, 0))
        qa.write(folder / "data" / "validation.jsonl", qa.asked(30, 1))
    training = replace(qa.RECIPE, epochs=2)
    settings = qa.settings_of(folder / "data", training, seed=seed, device="cpu")
    return {"qa bert_base": trained(folder / "bert", settings)}


def by_lottery(folder: Path, seed: int) -> dict[str, Any]:
    """One round on the demo model: its ticket has the mask that a training has made."""
    settings = LotterySettings(mails("demo"), sparsity=0.5, rounds=1, seeds=(seed,))
    found = lottery("demo", folder / f"ticket-{seed}", settings)
    (last,) = found.rounds
    scored = {"dense": found.dense, "ticket": last.ticket, "one-shot": last.one_shot}
    return {f"demo {name}": {"score": one.score} for name, one in scored.items()}


def check(found: dict[str, Any], seed: int) -> None:
    """The score may differ by one of 32 samples, the norm by what rounding adds up to."""
    golden = json.loads(GOLDEN.read_text())[str(seed)]
    for name, one in found.items():
        assert one["score"] == pytest.approx(golden[name]["score"], abs=0.04), name
        assert one.get("norm") == pytest.approx(golden[name].get("norm"), rel=1e-5), name


@pytest.mark.full
def test_questions_are_answered_as_before(tmp_path: Path) -> None:
    check(on_questions(tmp_path / "qa", 0), 0)


@pytest.mark.full
def test_mails_are_told_apart_as_before(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """80 mails of SpamAssassin's corpus (Apache-2.0), cut to 250 characters, addresses replaced."""
    check(on_mails(real_model("minilm"), tmp_path, 2), 2)


def measured(minilm: Path, folder: Path, seed: int) -> dict[str, Any]:
    return (
        on_questions(folder / "qa", seed)
        | by_lottery(folder, seed)
        | {"minilm dense": trained(minilm, mails("minilm", seed))}
        | on_mails(minilm, folder, seed)
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        minilm = fetch_models.cache_dir() / "minilm"
        found = {str(seed): measured(minilm, Path(folder), seed) for seed in SEEDS}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
