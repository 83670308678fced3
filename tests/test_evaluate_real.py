"""Metrics on real models and real data, against a plain loop of one's own."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import is_required

import lee
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.verb import evaluate

pytestmark = pytest.mark.real


def test_pairs_of_news(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """People's judgements of pairs of news: Spearman's correlation is that of a plain loop."""
    from scipy.stats import spearmanr
    from transformers import AutoModel, AutoTokenizer

    try:
        folder = lee.fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        if is_required():
            raise
        pytest.skip(f"the pairs cannot be fetched: {error}")
    with (folder / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1225
    some = sorted({row["sentence1"] for row in rows})[:9]
    pairs = [row for row in rows if row["sentence1"] in some and row["sentence2"] in some]
    with (tmp_path / "test.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(pairs[0]))
        table.writeheader()
        table.writerows(pairs)
    model = real_model("minilm")
    found = evaluate(model, EvalSettings(metric="similarity", data=(str(tmp_path),)))

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    vectors = {}
    for text in {row[side] for row in pairs for side in ("sentence1", "sentence2")}:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            mean = encoder.float().eval()(**inputs).last_hidden_state[0].mean(0)
        vectors[text] = mean / mean.norm()
    own = [float(vectors[row["sentence1"]] @ vectors[row["sentence2"]]) for row in pairs]
    expected = spearmanr([float(row["score"]) for row in pairs], own).statistic
    assert found.samples == len(pairs)
    assert found.score == pytest.approx(expected, abs=1e-9)
