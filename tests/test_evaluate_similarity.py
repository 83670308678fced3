"""Similarity of sentences, against vectors that are pooled by hand and ranks that are counted."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModel, AutoTokenizer

from prunectl.checkpoint.opening import open_checkpoint
from prunectl.data.errors import BadData, MissingColumn
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch, NoData
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.settings import EvalSettings
from prunectl.evaluation.similarity import Similarity
from prunectl.evaluation.verb import evaluate

STS = Path(__file__).parent / "data" / "sts" / "test.csv"


def rows_of(path: Path = STS) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ranks(values: list[float]) -> list[float]:
    """Those that are equal share the mean of their places."""
    return [
        sum(other < one for other in values) + (sum(other == one for other in values) + 1) / 2
        for one in values
    ]


def spearman(first: list[float], second: list[float]) -> float:
    a, b = ranks(first), ranks(second)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return both / spread


def cosines(folder: Path, rows: list[dict[str, str]], mode: str, length: int) -> list[float]:
    """One sentence at a time, by transformers alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def vector(text: str) -> torch.Tensor:
        made = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            states = model(**made).last_hidden_state[0]
        found: torch.Tensor = states[0] if mode == "cls" else states.mean(0)
        return found

    return [
        float(torch.cosine_similarity(vector(row["sentence1"]), vector(row["sentence2"]), dim=0))
        for row in rows
    ]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with the vocabulary of the sentences, and a head that is not used."""
    folder = tmp_path_factory.mktemp("encoder")
    tiny_models.build("bert", folder)
    words = {w for row in rows_of() for one in row.values() for w in one.lower().strip(".").split()}
    some = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "'", *sorted(words)]
    (folder / "vocab.txt").write_text("\n".join(some[:61]) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def prepared(folder: Path, data: Path | str = STS, **options: Any) -> Similarity:
    metric = prepare(open_checkpoint(folder), EvalSettings("similarity", (str(data),), **options))
    assert isinstance(metric, Similarity)
    return metric


@pytest.fixture
def known_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """61 words are few for these sentences."""
    monkeypatch.setattr("prunectl.data.tokens.MOST_UNKNOWN", 1.0)


@pytest.mark.real
def test_a_real_encoder_ranks_pairs_as_people_do(
    real_model: Callable[[str], Path],
) -> None:
    folder = real_model("minilm")
    result = evaluate(folder, EvalSettings("similarity", (str(STS),)))
    rows = rows_of()
    gold = [float(row["score"]) for row in rows]
    want = cosines(folder, rows, "mean", 256)
    assert result.score == pytest.approx(spearman(gold, want), abs=1e-12)
    assert result.score > 0.9
    assert result.interval is not None
    assert result.interval.low < result.score < result.interval.high
    assert result.record["pooling"] == "mean"
    assert result.record["pooling_from"] == "1_Pooling/config.json"
    assert result.record["sequence_length"] == 256


@pytest.mark.usefixtures("known_words")
@pytest.mark.parametrize(
    ("mode", "batch_size"),
    [("mean", 5), ("cls", 1), ("old mean", 5), ("old cls", 5), ("none", 1)],
)
def test_vectors_are_pooled_as_the_folder_says(
    encoder: Path, tmp_path: Path, mode: str, batch_size: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)
    declared: dict[str, dict[str, Any]] = {
        "mean": {"pooling_mode": "mean"},
        "cls": {"pooling_mode": "cls"},
        "old mean": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        "old cls": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    }
    if mode in declared:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(declared[mode]))
    metric = prepared(folder, batch_size=batch_size)
    result = metric.score(LoadedModel(folder))  # type: ignore[arg-type]
    kind = "cls" if "cls" in mode else "mean"
    assert metric.record["pooling"] == kind
    assert metric.record["sequence_length"] == 20, "what the model takes"
    rows = rows_of()
    gold = [float(row["score"]) for row in rows]
    want = cosines(folder, rows, kind, 20)
    np.testing.assert_array_equal(result.values[:, 0], gold)
    np.testing.assert_allclose(result.values[:, 1], want, atol=1e-6)
    assert result.value == pytest.approx(spearman(gold, result.values[:, 1].tolist()))


class LoadedModel:
    """A model of a folder, as a metric sees it."""

    def __init__(self, folder: Path) -> None:
        import transformers

        config = json.loads((folder / "config.json").read_text())
        cls: Any = getattr(transformers, config["architectures"][0])
        self.model: Any = cls.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.usefixtures("known_words")
def test_heads_and_poolers_may_be_missing_and_nothing_else(encoder: Path) -> None:
    metric = prepared(encoder)
    assert metric.own == "bert"
    assert metric.tolerates("cls.predictions.bias")
    assert metric.tolerates("bert.pooler.dense.weight")
    assert not metric.tolerates("bert.embeddings.word_embeddings.weight")
    settings = EvalSettings("similarity", (str(STS),))
    result = evaluate(encoder, settings)
    assert result.samples == 24
    assert -1 <= result.score <= 1


@pytest.mark.usefixtures("known_words")
@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        (("text1", "text2", "label"), ".csv"),
        (("sentence_A", "sentence_B", "relatedness_score"), ".jsonl"),
        (("Sentence1", "Sentence2", "Similarity_Score"), ".json"),
    ],
)
def test_columns_of_known_sets(
    encoder: Path, tmp_path: Path, names: tuple[str, ...], suffix: str
) -> None:
    rows = [dict(zip(names, row.values(), strict=True)) for row in rows_of()]
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    metric = prepared(encoder, path)
    assert metric.record["columns"] == list(names)
    assert metric.gold == prepared(encoder).gold


@pytest.mark.usefixtures("known_words")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sentence1,sentence2,score\na,b,1\n", "1 pairs, and at least 2 are needed"),
        ("sentence1,sentence2,score\na,b,1\nb,c,1\n", "all its pairs have the same 'score'"),
        ("sentence1,sentence2,score\na,b,1\nb,c,high\n", "row 2: 'high' in 'score' is no score"),
        ("sentence1,sentence2,score\na,b,1\nb,c,nan\n", "row 2: 'nan' in 'score' is no score"),
        ("sentence1,sentence2,score\na,b,1\nb,,2\n", "row 2 lacks 'sentence2'"),
        ("sentence1,sentence2,score\n", "it has no rows"),
    ],
)
def test_bad_pairs(encoder: Path, tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(BadData, match=why):
        prepared(encoder, path)


def test_columns_that_are_missing(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for header, lacking in (("x,sentence2,score", "sentence1"), ("sentence1,x,score", "sentence2"),
                            ("sentence1,sentence2,x", "score")):  # fmt: skip
        path.write_text(f"{header}\na,b,1\nb,c,2\n")
        with pytest.raises(MissingColumn, match=f"no column '{lacking}'"):
            prepared(encoder, path)


def test_models_that_do_not_fit(encoder: Path, tmp_path: Path) -> None:
    for model in ("demo",):
        with pytest.raises(MetricMismatch, match="of kind causal-lm"):
            prepare(open_checkpoint(model), EvalSettings("similarity", (str(STS),)))
    for name, why in (("clip", "reads images too"), ("vit", "of kind vision")):
        tiny_models.build(name, tmp_path / name)
        with pytest.raises(MetricMismatch, match=why):
            prepare(open_checkpoint(tmp_path / name), EvalSettings("similarity", (str(STS),)))
    with pytest.raises(MetricMismatch) as caught:
        prepare(open_checkpoint(tmp_path / "vit"), EvalSettings("perplexity", ("text:a.txt",)))
    assert caught.value.hint == "for this kind of model: --metric classification"
    with pytest.raises(NoData):
        prepare(open_checkpoint(encoder), EvalSettings("similarity"))
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(MetricMismatch, match="asks for 'lasttoken', and mean and cls are known"):
        prepared(folder)


@pytest.mark.usefixtures("known_words")
def test_models_that_are_broken(encoder: Path) -> None:
    metric = prepared(encoder)
    broken = LoadedModel(encoder)
    with torch.no_grad():
        for parameter in broken.model.bert.encoder.layer[-1].parameters():
            parameter.fill_(math.nan)
    with pytest.raises(EvaluationFailed, match="the vectors of 24 pairs are NaN or zero"):
        metric.score(broken)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in broken.model.bert.encoder.layer[-1].parameters():
            parameter.zero_()
        broken.model.bert.encoder.layer[-1].output.LayerNorm.bias.fill_(1.0)
    with pytest.raises(EvaluationFailed, match="all pairs are equally similar"):
        metric.score(broken)  # type: ignore[arg-type]
