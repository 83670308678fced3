"""Question answering: spans, windows and scores against plain references, and bad input."""

from __future__ import annotations

import functools
import json
import re
import string
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
from full import few
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import WORDS

from prunectl import demo, open_checkpoint
from prunectl.checkpoint.model_kind import model_kind_of
from prunectl.checkpoint.module_tree import build_on_meta, model_class
from prunectl.data.errors import BadData, MissingColumn
from prunectl.data.tokens import load_tokenizer
from prunectl.errors import BadCheckpoint, InvalidOption
from prunectl.evaluation import squad
from prunectl.evaluation.errors import MetricMismatch
from prunectl.evaluation.loaded_model import open_loaded_model
from prunectl.evaluation.metric import Request, prepare
from prunectl.evaluation.qa import QA
from prunectl.evaluation.qa_windows import windows_of
from prunectl.evaluation.result import Evaluation
from prunectl.evaluation.settings import EvalSettings, Training
from prunectl.evaluation.squad import Question
from prunectl.evaluation.verb import evaluate
from prunectl.events import Event, Note

RECIPE = Training(epochs=6, learning_rate=1e-2, train_batch_size=8)
Model = Callable[..., Path]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A function from a tiny model's name to its folder, with a tokenizer of whole words."""
    root = tmp_path_factory.mktemp("models")

    def build(name: str = "bert_base", **options: Any) -> Path:
        if not (root / name).exists():
            tiny_models.build(name, root / name)
            tiny_tokenizers.save(root / name, **options)
        return root / name

    return build


def asked(count: int, seed: int, words: int = 10) -> list[Row]:
    """Texts of words, in which the answer is the one word of the first five."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        chosen = rng.integers(5, len(WORDS), words).tolist()
        place = int(rng.integers(0, words))
        chosen[place] = int(rng.integers(0, 5))
        texts = [WORDS[one] for one in chosen]
        start = len(" ".join(texts[:place])) + (place > 0)
        answers = {"text": [texts[place]] * 2, "answer_start": [start] * 2}
        question = f"{WORDS[9]} {WORDS[8]}"
        rows.append({"question": question, "context": " ".join(texts), "answers": answers})
    return rows


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_squad(rows: list[Row]) -> dict[str, Any]:
    """The original format."""

    def answers(row: Row) -> list[Row]:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        return [{"text": text, "answer_start": start} for text, start in pairs]

    paragraphs = [
        {
            "context": row["context"],
            "qas": [{"id": str(at), "question": row["question"], "answers": answers(row)}],
        }
        for at, row in enumerate(rows)
    ]
    return {"version": "1.1", "data": [{"title": "all", "paragraphs": paragraphs}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "train.jsonl", asked(80, 0))
    write(tmp_path / "data" / "validation.jsonl", asked(30, 1))
    return tmp_path / "data"


def settings_of(data: Path, training: Training = RECIPE, **options: Any) -> EvalSettings:
    return EvalSettings("qa", data=(str(data),), training=training, **options)


def scored(folder: Path, data: Path, **options: Any) -> Evaluation:
    return evaluate(folder, settings_of(data, **options))


def prepared(folder: Path, data: Path, **options: Any) -> QA:
    metric = prepare(open_checkpoint(folder), settings_of(data, **options))
    assert isinstance(metric, QA)
    return metric


def request_of(folder: Path) -> Request:
    model_kind = model_kind_of(build_on_meta(*model_class(folder, trust_remote_code=False)), folder)
    return Request(open_checkpoint(folder), model_kind, EvalSettings("qa"))


# --- the whole ------------------------------------------------------------------------------------


def test_a_model_learns_where_answers_are(model: Model, data: Path) -> None:
    dull = replace(RECIPE, max_steps=1, learning_rate=0.0)
    before = scored(model(), data, training=dull)
    result = scored(model(), data)
    assert result.score > before.score + 0.3
    assert result.parts["exact match"] <= result.score
    assert (result.samples, result.unit) == (30, "questions")
    record = result.record
    assert (record["split"], record["train"]["split"]) == ("validation", "train")
    assert (record["questions"], record["train"]["questions"]) == (30, 80)
    assert (record["sequence_length"], record["overlap"]) == (20, 6)
    assert record["recipe"]["epochs"] == 6


def test_answers_are_the_best_spans_of_a_plain_run(model: Model, data: Path) -> None:
    write(data / "validation.jsonl", asked(12, 3, words=30))
    metric = prepared(model(), data)
    with open_loaded_model(open_checkpoint(model()), metric, device="cpu", dtype="auto") as (
        loaded,
        _,
    ):
        told = metric.answers(metric.outputs(loaded.model, metric.scored))
        theirs = []
        for row in asked(12, 3, words=30):
            words, question = row["context"].split(), row["question"].split()
            best = (-np.inf, "")
            room = 20 - 2 - 3  # <s> question </s> words </s>
            for at in range(0, len(words), room - 6):
                part = words[at : at + room]
                ids = [2, *(5 + WORDS.index(one) for one in question), 3]
                types = [0] * len(ids) + [1] * (len(part) + 1)
                ids += [*(5 + WORDS.index(one) for one in part), 3]
                with torch.no_grad():
                    found = loaded.model(
                        input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])
                    )
                starts, ends = (one[0, 4:-1] for one in (found.start_logits, found.end_logits))
                for low in range(len(part)):
                    for high in range(low, min(low + 30, len(part))):
                        score = float(starts[low] + ends[high])
                        if score > best[0] + 1e-6:
                            best = (score, " ".join(part[low : high + 1]))
                if at + room >= len(words):
                    break
            theirs.append(best[1])
    assert told == theirs
    assert metric.record["windows"] > 12


@pytest.mark.parametrize("name", few(["llama", "distilbert", "roberta", "gpt2"]))
def test_other_architectures(model: Model, data: Path, name: str) -> None:
    result = scored(model(name), data, training=replace(RECIPE, epochs=1))
    assert 0 < result.score <= 1


def test_a_trained_model_is_asked_as_it_is(model: Model, data: Path, tmp_path: Path) -> None:
    metric = prepared(model(), data)
    with open_loaded_model(open_checkpoint(model()), metric, device="cpu", dtype="auto") as (
        loaded,
        _,
    ):
        score = metric.score(loaded, seed=0)
        loaded.model.save_pretrained(tmp_path / "trained")
    tiny_tokenizers.save(tmp_path / "trained")
    again = scored(tmp_path / "trained", data / "validation.jsonl", training=Training(epochs=0))
    assert again.score == score.value
    with pytest.raises(BadCheckpoint, match=r"lacks qa_outputs"):
        scored(model(), data / "validation.jsonl", training=Training(epochs=0))


# --- data -----------------------------------------------------------------------------------------


def test_all_shapes_are_the_same_questions(model: Model, data: Path, tmp_path: Path) -> None:
    expected = prepared(model(), data).record
    original = tmp_path / "original"
    original.mkdir()
    (original / "train-v1.1.json").write_text(json.dumps(as_squad(asked(80, 0))))
    (original / "dev-v1.1.json").write_text(json.dumps(as_squad(asked(30, 1))))
    import datasets

    saved = {"train": asked(80, 0), "validation": asked(30, 1)}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in saved.items()}
    ).save_to_disk(tmp_path / "saved")
    texts = tmp_path / "texts"
    for name, rows in saved.items():
        write(texts / f"{name}.jsonl", [one | {"answers": one["answers"]["text"]} for one in rows])
    for folder in (original, tmp_path / "saved", texts):
        record = prepared(model(), folder, task="squad").record
        assert record["blake3"] == expected["blake3"]
        # Without 'answer_start', an answer is where its text is first: word1 in word12, too.
        same = record["train"]["blake3"] == expected["train"]["blake3"]
        assert same == (folder is not texts)
        assert record["split"] == "validation"


def test_one_split_is_divided_by_texts(model: Model, tmp_path: Path) -> None:
    rows = [one | {"question": word} for one in asked(20, 0) for word in WORDS[:3]]
    metric = prepared(model(), write(tmp_path / "d.jsonl", rows))
    assert metric.record["held_out"] == {"share": 0.2, "seed": 0, "of": "texts"}
    assert (metric.samples, metric.record["train"]["questions"]) == (12, 48)
    texts = {one.context for one in metric.questions}
    assert len(texts) == 4


def test_questions_without_an_answer_are_left_out_and_said(model: Model, data: Path) -> None:
    unanswerable = asked(3, 5)
    for one in unanswerable:
        one["answers"] = {"text": [], "answer_start": []}
    write(data / "validation.jsonl", asked(30, 1) + unanswerable)
    misplaced = asked(2, 6)
    for one in misplaced:
        one["answers"]["answer_start"] = [9999, -1]
    write(data / "train.jsonl", asked(80, 0) + misplaced)
    notes: list[Event] = []
    result = evaluate(model(), settings_of(data), on_event=notes.append)
    texts = [one.text for one in notes if isinstance(one, Note)]
    assert any("3 questions without an answer are left out" in one for one in texts)
    assert any("2 answers are not in their text: not trained on" in one for one in texts)
    assert (result.samples, result.record["train"]["questions"]) == (30, 80)


# --- windows and spans ----------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=60),
    st.integers(0, 59),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(16, 40),
)
def test_windows_hold_the_text_and_spans_the_answer(
    words: list[str], place: int, count: int, asks: int, length: int
) -> None:
    request, tokenizer = held()
    place = place % len(words)
    answer = " ".join(words[place : place + count])
    context = "  ".join(["", *words[:place], answer, *words[place + count :]])
    start = len("  ".join(["", *words[:place], ""]))
    question = Question(" ".join(WORDS[:asks]), context, (answer,), start)
    windows = windows_of(request, tokenizer, [question], length, frozenset({"token_type_ids"}))
    seen = {int(low) for one in windows for low in one.offsets[:, 0]}
    assert seen == {match.start() for match in re.finditer(r"\S+", context)}
    marked = []
    for one in windows:
        ids = one.tokens["input_ids"]
        assert len(ids) <= length
        assert ids[one.begin] == 2
        low, high = one.span(question)
        if (low, high) != (one.begin, one.begin):
            chars = one.offsets[[low - one.first, high - one.first]]
            marked.append(context[chars[0, 0] : chars[1, 1]])
        whole = one.offsets[0, 0] <= start and one.offsets[-1, 1] >= start + len(answer)
        assert whole == ((low, high) != (one.begin, one.begin))
    # An answer of four tokens is whole in some window, as five or more overlap.
    assert set(marked) == {answer}


@functools.cache
def held() -> tuple[Request, Any]:
    with tempfile.TemporaryDirectory() as name:
        tiny_models.build("bert_base", Path(name))
        tiny_tokenizers.save(Path(name), cls_token="<s>")
        return request_of(Path(name)), load_tokenizer(open_checkpoint(name))


def test_a_real_tokenizer_s_spans_are_the_answers(real_model: Callable[[str], Path]) -> None:
    request = request_of(real_model("minilm"))
    tokenizer = load_tokenizer(request.checkpoint)
    text = demo.heldout_text().read_text()[:6000]
    rng = np.random.default_rng(0)
    places = [m.span() for m in re.finditer(r"[A-Za-z]+(?: [a-z]+){0,2}", text)]
    chosen = [places[int(at)] for at in rng.integers(0, len(places), 60)]
    questions = [
        Question("What does he say of it?", text, (text[low:high],), low) for low, high in chosen
    ]
    accepted = frozenset({"token_type_ids"})
    for window in windows_of(request, tokenizer, questions, 64, accepted):
        low, high = window.span(questions[window.question])
        if low != window.begin:
            chars = window.offsets[[low - window.first, high - window.first]]
            assert text[chars[0, 0] : chars[1, 1]] == questions[window.question].answers[0]


# --- scores ---------------------------------------------------------------------------------------


def official(told: str, right: str) -> tuple[float, float]:
    """As the program that came with SQuAD 1.1 goes: normalise, count words, F1 of both ratios."""

    def clean(text: str) -> str:
        text = "".join(one for one in text.lower() if one not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    predicted, truth = clean(told).split(), clean(right).split()
    same = sum((Counter(predicted) & Counter(truth)).values())
    if same == 0:
        return 0.0, float(clean(told) == clean(right))
    precision, recall = same / len(predicted), same / len(truth)
    return 2 * precision * recall / (precision + recall), float(clean(told) == clean(right))


some_text = st.lists(
    st.sampled_from(["the", "A", "an", "cat's", "Cat", "in-law", "3.5", "é", " ", "The.", "\n"]),
    max_size=8,
).map(" ".join)


@given(some_text, st.lists(some_text, min_size=1, max_size=3))
def test_scores_are_the_official_ones(told: str, answers: list[str]) -> None:
    pairs = [official(told, one) for one in answers]
    assert squad.f1(told, answers) == pytest.approx(max(f1 for f1, _ in pairs))
    assert squad.exact_match(told, answers) == max(exact for _, exact in pairs)


# --- bad input ------------------------------------------------------------------------------------


def test_columns_that_are_missing(model: Model, data: Path) -> None:
    write(data / "validation.jsonl", [{"question": "a", "answers": []}])
    with pytest.raises(MissingColumn, match="no column 'context'"):
        scored(model(), data)
    write(data / "validation.jsonl", [{"paragraphs": [{"context": "a"}]}])
    with pytest.raises(MissingColumn, match="no column 'qas'"):
        scored(model(), data)
    write(data / "validation.jsonl", [{"paragraphs": 3}])
    with pytest.raises(BadData, match="'paragraphs' is no list of objects"):
        scored(model(), data)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": 3}, "'question' holds 3, not text"),
        ({"context": None}, "'context' holds None"),
        ({"answers": {"text": [1], "answer_start": [0]}}, "'answers' holds"),
        ({"answers": 7}, "'answers' holds 7, not texts"),
        ({"answers": {"text": [], "answer_start": []}}, "none of its 1 questions has an answer"),
    ],
)
def test_cells_of_another_kind(model: Model, data: Path, row: Row, message: str) -> None:
    write(data / "validation.jsonl", [asked(1, 0)[0] | row])
    with pytest.raises(BadData, match=message):
        scored(model(), data)


def test_no_answer_to_train_on(model: Model, data: Path) -> None:
    rows = asked(3, 0)
    for one in rows:
        one["answers"] = {"text": ["nowhere"], "answer_start": [0]}
    write(data / "train.jsonl", rows)
    with pytest.raises(BadData, match="no answer is where"):
        scored(model(), data)


def test_windows_that_are_too_short(model: Model, data: Path) -> None:
    with pytest.raises(InvalidOption, match="--sequence-length 12 is too short"):
        scored(model(), data, sequence_length=12)


def test_a_metric_that_does_not_fit(model: Model, tiny: Model, data: Path) -> None:
    with pytest.raises(MetricMismatch, match="no AutoModelForQuestionAnswering"):
        scored(model("phi"), data)
    with pytest.raises(MetricMismatch, match="no AutoModelForQuestionAnswering"):
        scored(tiny("vit"), data)
