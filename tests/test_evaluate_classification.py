"""Classification: against plain runs of transformers' own model, on all shapes of data, and bad
input."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
import transformers
from full import few
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_tokenizers import WORDS

from prunectl import PruneSettings, open_checkpoint, prune
from prunectl.data.errors import BadData, BadTokenizer, MissingColumn
from prunectl.errors import BadCheckpoint, HubUnreachable, InvalidOption
from prunectl.evaluation import labels
from prunectl.evaluation.classification import Classification
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch
from prunectl.evaluation.examples import drawn
from prunectl.evaluation.loaded_model import LoadedModel, open_loaded_model
from prunectl.evaluation.metric import prepare
from prunectl.evaluation.result import Evaluation
from prunectl.evaluation.settings import EvalSettings, Training
from prunectl.evaluation.verb import evaluate
from prunectl.events import Event, Note

RECIPE = Training(epochs=4, learning_rate=3e-3, train_batch_size=8)
QUICK = replace(RECIPE, epochs=6, learning_rate=1e-2)
ONCE = replace(RECIPE, epochs=1)
Model = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A function from a tiny model's name to its folder, with a tokenizer of whole words."""
    root = tmp_path_factory.mktemp("models")

    def build(name: str = "bert_base", **options: Any) -> Path:
        folder = root / f"{name}-{'-'.join(map(str, options.items()))}"
        if not folder.exists():
            tiny_models.build(name, folder)
            tiny_tokenizers.save(folder, **options)
        return folder

    return build


def texts(count: int, seed: int, classes: int = 2) -> list[tuple[str, int]]:
    """Texts of words, and their class: that of the first word, which comes twice."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = rng.integers(0, len(WORDS), rng.integers(3, 9)).tolist()
        kind = int(rng.integers(0, classes))
        words[0] = words[-1] = kind
        found.append((" ".join(WORDS[one] for one in words), kind))
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if "t" in path.suffix else ","
            )
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def named(rows: list[tuple[str, int]], names: tuple[Any, ...] = ("ham", "spam", "odd")) -> Any:
    return [{"text": text, "label": names[kind]} for text, kind in rows]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write(folder / "train.jsonl", named(texts(80, 0)))
    write(folder / "test.jsonl", named(texts(41, 1)))
    return folder


def settings_of(data: Path | str, training: Training = RECIPE, **options: Any) -> EvalSettings:
    return EvalSettings("classification", data=(str(data),), training=training, **options)


def scored(folder: Path, data: Path | str, *events: Any, **options: Any) -> Evaluation:
    return evaluate(folder, settings_of(data, **options), on_event=list(events).append)


@contextmanager
def opened(folder: Path, settings: EvalSettings) -> Iterator[tuple[Classification, LoadedModel]]:
    checkpoint = open_checkpoint(folder)
    metric = prepare(checkpoint, settings)
    assert isinstance(metric, Classification)
    with open_loaded_model(checkpoint, metric, device="cpu", dtype="auto") as (loaded, _):
        yield metric, loaded


# --- against a plain run --------------------------------------------------------------------------


def plain_run(model: Any, rows: list[tuple[str, int]], test: list[str], seed: int) -> list[int]:
    """Train a BERT of transformers' own class as RECIPE says, and tell the classes of texts."""

    def inputs(some: list[str]) -> dict[str, torch.Tensor]:
        ids = [[2, *(5 + WORDS.index(word) for word in text.split()), 3] for text in some]
        length = max(map(len, ids))
        return {
            "input_ids": torch.tensor([one + [0] * (length - len(one)) for one in ids]),
            "attention_mask": torch.tensor([[1] * len(o) + [0] * (length - len(o)) for o in ids]),
        }

    from prunectl.evaluation.training import order

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, 4 * 10)
    torch.manual_seed(seed)
    model.train()
    for step in itertools.chain(*(order(80, 8, seed, epoch) for epoch in range(4))):
        found = model(**inputs([rows[index][0] for index in step]))
        target = torch.tensor([rows[index][1] for index in step])
        torch.nn.functional.cross_entropy(found.logits, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        return [int(model(**inputs([one])).logits.argmax()) for one in test]


def test_the_score_is_that_of_a_plain_run(model: Model, data: Path) -> None:
    import sklearn.metrics

    rows, test = texts(80, 0), texts(41, 1)
    with opened(model(), settings_of(data)) as (metric, loaded):
        config = transformers.BertConfig.from_pretrained(model())
        theirs = transformers.BertForSequenceClassification(config)
        theirs.load_state_dict(loaded.model.state_dict())
        score = metric.score(loaded, seed=5)
    told = plain_run(theirs, rows, [text for text, _ in test], 5)
    there = [kind for _, kind in test]
    assert score.values.tolist() == [[a, b] for a, b in zip(there, told, strict=True)]
    assert score.value == np.mean(np.array(there) == told) > 0.9
    assert score.parts["f1"] == sklearn.metrics.f1_score(there, told)
    assert score.parts["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(there, told))


def test_what_is_recorded(model: Model, data: Path) -> None:
    result = scored(model(), data, training=ONCE)
    record = result.record
    assert (result.samples, result.unit, result.higher_is_better) == (41, "rows", True)
    assert record["classes"] == ["ham", "spam"]
    assert (record["split"], record["train"]["split"]) == ("test", "train")
    assert (record["rows"], record["train"]["rows"]) == (41, 80)
    assert record["blake3"] != record["train"]["blake3"]
    assert record["sequence_length"] == 20  # what the model takes
    counts = Counter(kind for _, kind in texts(41, 1))
    assert record["most_frequent_class"] == round(max(counts.values()) / 41, 4)
    json.dumps(result.to_json(), allow_nan=False)


def test_a_pruned_model_s_zeros_are_held(model: Model, data: Path, tmp_path: Path) -> None:
    prune(model(), tmp_path / "out", PruneSettings(sparsity=0.5))
    tiny_tokenizers.save(tmp_path / "out")
    with opened(tmp_path / "out", settings_of(data, training=ONCE)) as (metric, loaded):
        held = loaded.held()
        assert (
            sum(int(one.gone.sum()) for one in held) == sum(one.gone.numel() for one in held) // 2
        )
        before = [one.weight.clone() for one in held]
        metric.score(loaded, seed=0)
        for one, old in zip(held, before, strict=True):
            assert (one.weight[one.gone] == 0).all()
            assert (one.weight[~one.gone] != old[~one.gone]).any()
    assert scored(tmp_path / "out", data, training=Training(max_steps=1)).sparsity == 0.5


def test_weights_are_trained_in_fp32_whatever_the_checkpoint_s_dtype(
    data: Path, tmp_path: Path
) -> None:
    tiny_models.build("llama", tmp_path / "half", torch.bfloat16)
    tiny_tokenizers.save(tmp_path / "half")
    with opened(tmp_path / "half", settings_of(data, training=ONCE)) as (metric, loaded):
        metric.score(loaded)
        assert {one.dtype for one in loaded.model.parameters()} == {torch.float32}
    with pytest.raises(InvalidOption, match="float16"):
        scored(tmp_path / "half", data, dtype="float16")


def test_an_interrupted_evaluation_goes_on(model: Model, data: Path, tmp_path: Path) -> None:
    states = tmp_path / "states"
    twice = replace(RECIPE, epochs=2)
    training = replace(twice, checkpoints=states)
    expected = scored(model(), data, training=twice)

    class Stopped(Exception):
        pass

    def stop(event: Event) -> None:
        if states.exists() and list(states.glob("*/checkpoint-10/trainer_state.json")):
            raise Stopped

    with pytest.raises(Stopped):
        evaluate(model(), settings_of(data, training=training), on_event=stop)
    assert len(list(states.iterdir())) == 1
    notes: list[Event] = []
    # Another seed begins anew, and does not touch what is there.
    evaluate(model(), settings_of(data, training=training, seed=9), on_event=notes.append)
    resumed = "fine-tuning resumes after epoch 1 of 2"
    assert resumed not in [one.text for one in notes if isinstance(one, Note)]
    assert len(list(states.iterdir())) == 1
    result = evaluate(model(), settings_of(data, training=training), on_event=notes.append)
    assert resumed in [one.text for one in notes if isinstance(one, Note)]
    assert result.score == expected.score
    assert list(states.iterdir()) == []


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", few(["gpt2", "llama", "roberta", "distilbert", "albert", "bart", "t5"], "llama")
)
def test_other_architectures_learn_it(model: Model, data: Path, name: str) -> None:
    folder = model(name)
    if name == "t5":  # looks for what ends a text, which is 3 in tiny tokenizers
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    assert scored(folder, data, training=QUICK).score > 0.75


def test_what_a_model_refuses_is_said_in_its_words(model: Model, data: Path) -> None:
    folder = model("t5", bert=False)  # no text ends with the token that a T5 classifies by
    why = "transformers cannot run the model on these data: Each example must contain"
    with pytest.raises(EvaluationFailed, match=f"fine-tuning: {why}") as caught:
        scored(folder, data, training=Training(epochs=1))
    assert "tokenizer" in caught.value.hint
    with (
        opened(folder, settings_of(data)) as (metric, loaded),
        pytest.raises(EvaluationFailed, match=f"classification: {why}"),
    ):
        metric.outputs(loaded.model, metric.scored)


def test_a_tokenizer_without_padding_pads_by_what_ends_a_text(model: Model, data: Path) -> None:
    folder = model("gpt2", bert=False, padding=False)
    notes: list[Event] = []
    with opened(folder, settings_of(data)) as (metric, loaded):
        assert loaded.model.config.pad_token_id == 3
        batch = metric.scored.batch([0, 1, 2, 3])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ((ids == 3) == (mask == 0)).all()
        assert (mask == 0).any()
    result = evaluate(folder, settings_of(data, training=ONCE), on_event=notes.append)
    assert "the tokenizer has no padding token: '</s>', which ends a text, pads" in [
        one.text for one in notes if isinstance(one, Note)
    ]
    # Padding changes nothing: one at a time, nothing is padded.
    assert scored(folder, data, training=ONCE, batch_size=1).score == result.score


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(model: Model, data: Path) -> None:
    folder = model("gpt2", bert=False, padding=False, eos_token=None)
    with pytest.raises(BadTokenizer, match="no token to pad with"):
        scored(folder, data)


def test_a_head_of_the_checkpoint_s_own_is_gone_on_from(data: Path, tmp_path: Path) -> None:
    tiny_models.build("bert_classifier", tmp_path / "m")
    tiny_tokenizers.save(tmp_path / "m")
    with opened(tmp_path / "m", settings_of(data)) as (_, loaded):
        assert loaded.made_up == ()


def test_a_head_of_another_size_is_made_anew(tmp_path: Path) -> None:
    tiny_models.build("bert_classifier", tmp_path / "m")
    tiny_tokenizers.save(tmp_path / "m")
    write(tmp_path / "d" / "train.csv", named(texts(80, 0, 3)))
    write(tmp_path / "d" / "test.csv", named(texts(40, 1, 3)))
    with opened(tmp_path / "m", settings_of(tmp_path / "d")) as (_, loaded):
        assert set(loaded.made_up) == {"classifier.weight", "classifier.bias"}
        assert (loaded.model.classifier.weight != 0).any()


# --- without training -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose first output is ``spam``."""
    root = tmp_path_factory.mktemp("trained")
    write(root / "data" / "train.jsonl", named(texts(80, 0)))
    write(root / "data" / "test.jsonl", named(texts(41, 1)))
    with opened(model(), settings_of(root / "data")) as (metric, loaded):
        metric.score(loaded, seed=0)
        config = loaded.model.config
        with torch.no_grad():
            for one in loaded.model.classifier.parameters():
                one.copy_(one.flip(0))
        config.id2label, config.label2id = {0: "SPAM", 1: "HAM"}, {"SPAM": 0, "HAM": 1}
        loaded.model.save_pretrained(root / "model")
    tiny_tokenizers.save(root / "model")
    return root / "model"


def test_a_trained_classifier_is_scored_as_it_is(trained: Path, data: Path) -> None:
    result = scored(trained, data / "test.jsonl", training=Training(epochs=0))
    assert result.score > 0.9
    assert result.record["classes"] == ["spam", "ham"]
    assert "train" not in result.record
    assert "recipe" not in result.record


def test_training_keeps_a_model_s_order_of_the_same_classes(trained: Path, data: Path) -> None:
    with opened(trained, settings_of(data)) as (metric, _):
        assert metric.classes == ("spam", "ham")


def test_classes_by_number_are_those_of_a_model_without_names(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"label2id": {"LABEL_0": 0, "LABEL_1": 1}, "id2label": None}
    (folder / "config.json").write_text(json.dumps(config))
    numbers = write(tmp_path / "test.csv", named(texts(41, 1), (1, 0)))
    assert scored(folder, numbers, training=Training(epochs=0)).score > 0.9
    with pytest.raises(MetricMismatch, match="LABEL_0, LABEL_1, and those of the data ham, spam"):
        scored(folder, data / "test.jsonl", training=Training(epochs=0))


def test_a_checkpoint_without_a_head_has_to_be_trained(model: Model, tmp_path: Path) -> None:
    numbers = write(tmp_path / "test.csv", named(texts(41, 1), (0, 1)))
    with pytest.raises(BadCheckpoint, match=r"lacks classifier.weight, classifier.bias"):
        scored(model(), numbers, training=Training(epochs=0))


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.full
def test_handwritten_digits_are_told_apart(tiny: Model, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for at, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = ("train", "test")[at % 4 == 0]
        path = tmp_path / split / str(digit) / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if at < 1000:
            Image.fromarray((pixels * 15).astype(np.uint8)).save(path)
    training = Training(epochs=6, learning_rate=5e-3, train_batch_size=32)
    result = scored(tiny("vit"), tmp_path, training=training)
    assert result.score > 0.6
    assert (result.samples, len(result.record["classes"])) == (250, 10)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        ("csv", ("no", "yes")),
        ("csv", (False, True)),
        ("tsv", (0, 1)),
        ("tsv", (0.0, 1.0)),
        ("jsonl", (False, True)),
        ("jsonl", (0.0, 1.0)),
        ("jsonl", (7, 13)),
    ],
)
def test_classes_of_all_kinds(model: Model, tmp_path: Path, suffix: str, names: Any) -> None:
    write(tmp_path / f"train.{suffix}", named(texts(30, 0), names))
    write(tmp_path / "test.jsonl", named(texts(20, 1), names))
    folder = tmp_path / "data"
    folder.mkdir()
    settings = settings_of(tmp_path / "test.jsonl", train_data=str(tmp_path / f"train.{suffix}"))
    metric = prepare(open_checkpoint(model()), settings)
    assert isinstance(metric, Classification)
    expected = tuple(f"{one:g}" if type(one) is float else str(one) for one in names)
    assert metric.classes == expected
    assert metric.scored.labels["labels"].tolist() == [kind for _, kind in texts(20, 1)]
    assert metric.train is not None
    assert metric.train.labels["labels"].tolist() == [kind for _, kind in texts(30, 0)]


def test_a_dataset_s_classes_have_its_names_and_order(model: Model, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["zebra", "ant", "cow"])
    )

    def split(seed: int, kinds: int) -> Any:
        some = named(texts(30, seed, kinds), (0, 1, 2))
        return datasets.Dataset.from_list(some, features=features)

    whole = datasets.DatasetDict({"train": split(0, 3), "validation": split(1, 2)})
    whole.save_to_disk(tmp_path / "set")
    metric = prepare(open_checkpoint(model()), settings_of(tmp_path / "set"))
    assert metric.record["classes"] == ["zebra", "ant", "cow"]
    assert isinstance(metric, Classification)
    assert metric.scored.labels["labels"].tolist() == [kind for _, kind in texts(30, 1)]


def test_tasks_of_glue_have_their_own_columns_and_splits(model: Model, tmp_path: Path) -> None:
    def pairs(count: int, seed: int) -> list[dict[str, Any]]:
        """A pair is of class 1 if both have the same first word."""
        rows = []
        for (first, _), (second, _) in zip(texts(count, seed), texts(count, seed + 9), strict=True):
            kind = int(first.split()[0] == second.split()[0])
            rows.append({"question1": first, "question2": second, "label": kind, "idx": 1})
        return rows

    write(tmp_path / "train.tsv", pairs(60, 0))
    write(tmp_path / "dev.tsv", pairs(30, 1))
    write(tmp_path / "test.tsv", [one | {"label": -1} for one in pairs(30, 2)])
    with opened(model(), settings_of(tmp_path, ONCE, task="QQP")) as (metric, loaded):
        ids = metric.scored.batch([0])
        assert ids["input_ids"][0].tolist().count(3) == 2  # both texts, each ended
        assert ids["token_type_ids"].unique().tolist() == [0, 1]
        score = metric.score(loaded)
        assert score.parts["f1"] == labels.f1(*score.values.T, 2)  # which is scikit-learn's
    record = metric.record
    assert record["columns"] == ["question1", "question2", "label"]
    assert (record["task"], record["split"], record["rows"]) == ("QQP", "validation", 30)
    assert record["recipe"]["epochs"] == 1


def test_mnli_is_scored_on_matched_and_mismatched(model: Model, tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        return [
            {"premise": text, "hypothesis": WORDS[4], "label": kind}
            for text, kind in texts(count, seed, 3)
        ]

    write(tmp_path / "train.jsonl", rows(60, 0))
    write(tmp_path / "validation_matched.jsonl", rows(30, 1))
    write(tmp_path / "validation_mismatched.jsonl", rows(20, 2))
    settings = settings_of(tmp_path, ONCE, task="mnli", samples=25)
    with opened(model(), settings) as (metric, loaded):
        score = metric.score(loaded)
        found = metric.outputs(loaded.model, metric.further["mismatched"])
        told = np.array([logits.argmax() for (logits,) in found])
    assert metric.record["split"] == "validation_matched"
    assert score.values.shape == (25, 2)
    there = metric.further["mismatched"].labels["labels"]
    assert len(there) == 20
    assert score.parts["mismatched"] == float((there == told).mean())
    assert set(score.parts) == {"macro f1", "mcc", "majority", "mismatched"}
    own = score.values[:, 0].tolist()
    assert score.parts["majority"] == max(own.count(one) for one in own) / len(own)


@pytest.mark.parametrize("task", ["qnli", "sst2", "cifar10", "fashion-mnist", "tiny-imagenet"])
def test_tasks_are_looked_for_on_the_hub(model: Model, task: str, tiny: Model) -> None:
    folder = model() if task in ("qnli", "sst2") else tiny("vit")
    with pytest.raises(HubUnreachable, match=r"glue|cifar10|fashion_mnist|tiny-imagenet"):
        evaluate(folder, EvalSettings("classification", task=task))


def test_one_split_is_divided_and_that_is_recorded(model: Model, tmp_path: Path) -> None:
    rows = named(texts(60, 0)) + [{"text": WORDS[3], "label": "ham"}] * 40
    path = write(tmp_path / "mails.csv", rows)
    metric = prepare(open_checkpoint(model()), settings_of(path, seed=3))
    assert metric.record["held_out"] == {"share": 0.2, "seed": 3}
    counts = Counter(one["label"] for one in rows)
    assert metric.samples == sum(int(0.2 * one + 0.5) for one in counts.values())
    assert metric.record["train"]["rows"] == 100 - metric.samples
    other = prepare(open_checkpoint(model()), settings_of(path, seed=4))
    assert other.record["blake3"] != metric.record["blake3"]


def test_validation_is_scored_on_where_the_test_has_no_classes(model: Model, data: Path) -> None:
    write(data / "valid.jsonl", named(texts(17, 4)))
    assert prepare(open_checkpoint(model()), settings_of(data)).record["split"] == "test"
    for rows in ([{"text": "word1", "label": -1}], [{"text": "word1"}]):
        write(data / "test.jsonl", rows * 9)
        assert prepare(open_checkpoint(model()), settings_of(data)).record["split"] == "validation"


def test_rows_without_a_text_or_a_class_are_left_out_and_said(model: Model, data: Path) -> None:
    rows = [{"text": None, "label": "ham"}, {"text": " ", "label": "ham"}, {"text": "word1"}]
    with (data / "test.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    notes: list[Event] = []
    result = evaluate(model(), settings_of(data, ONCE), on_event=notes.append)
    assert result.samples == 41
    assert any("3 rows without" in one.text for one in notes if isinstance(one, Note))


def test_a_longer_text_is_cut(model: Model, tmp_path: Path) -> None:
    rows = [{"text": " ".join([word] * 40), "label": word} for word in WORDS[:2]] * 20
    path = write(tmp_path / "d.csv", rows)
    for length, expected in ((None, 20), (8, 8), (50, 20)):
        metric = prepare(open_checkpoint(model()), settings_of(path, sequence_length=length))
        assert isinstance(metric, Classification)
        assert metric.scored.batch([0])["input_ids"].shape == (1, expected)
        assert bool(metric.notes) == (length == 50)


# --- images ---------------------------------------------------------------------------------------


def picture(kind: int, seed: int) -> Image.Image:
    """Noise, light or dark."""
    pixels = np.random.default_rng(seed).integers(0, 120, (20, 20, 3))
    return Image.fromarray((pixels + 130 * kind).astype(np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split, count in (("train", 40), ("test", 20)):
        for at in range(count):
            path = tmp_path / "pictures" / split / ("dark", "light")[at % 2] / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(at % 2, at if split == "train" else 100 + at).save(path)
    return tmp_path / "pictures"


def test_a_folder_of_images(tiny: Model, pictures: Path) -> None:
    metric = prepare(open_checkpoint(tiny("vit")), settings_of(pictures, Training()))
    recipe = metric.record["recipe"]
    assert (recipe["epochs"], recipe["train_batch_size"], recipe["learning_rate"]) == (8, 64, 2e-5)
    result = scored(tiny("vit"), pictures)
    assert result.score > 0.9
    assert result.record["classes"] == ["dark", "light"]
    assert result.record["image"] == "3x16x16"
    assert result.record["recipe"]["train_batch_size"] == 8


@pytest.mark.parametrize(
    ("task", "image", "label"),
    few([("cifar100", "img", "fine_label"), ("cifar10", "img", "label"), (None, "image", "label")]),
)
def test_image_sets_of_the_hub_s_shapes(
    tiny: Model, tmp_path: Path, task: str | None, image: str, label: str
) -> None:
    import datasets

    classes = datasets.ClassLabel(names=["dark", "light"])
    features = datasets.Features({image: datasets.Image(), label: classes})
    features |= {"coarse_label": datasets.ClassLabel(names=["all"])}

    def split(count: int, seed: int) -> Any:
        rows = [
            {image: picture(at % 2, at + seed), label: at % 2, "coarse_label": 0}
            for at in range(count)
        ]
        return datasets.Dataset.from_list(rows, features=datasets.Features(features))

    whole = datasets.DatasetDict({"train": split(40, 0), "test": split(20, 100)})
    whole.save_to_disk(tmp_path / "set")
    result = scored(tiny("vit"), tmp_path / "set", task=task, training=ONCE)
    assert result.record["columns"] == [image, label]


def test_a_broken_image_to_score_on_is_found_before_the_training(
    tiny: Model, pictures: Path
) -> None:
    split = next(one for one in pictures.iterdir() if one.name != "train")
    (split / "dark" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(BadData, match=r"dark/broken\.png cannot be read"):
        prepare(open_checkpoint(tiny("vit")), settings_of(pictures, Training()))


# --- bad input ------------------------------------------------------------------------------------


def test_empty_data(model: Model, data: Path) -> None:
    (data / "test.jsonl").write_text("")
    with pytest.raises(BadData, match="no rows"):
        scored(model(), data)
    write(data / "test.jsonl", [{"text": "", "label": ""}] * 3)
    with pytest.raises(BadData, match="none of its 3 rows has a class"):
        scored(model(), data)


def test_one_class_only(model: Model, data: Path) -> None:
    write(data / "train.jsonl", [{"text": "word1", "label": "ham"}] * 9)
    with pytest.raises(BadData, match="one class only, 'ham'"):
        scored(model(), data)


def test_a_class_that_is_not_trained_on(model: Model, data: Path) -> None:
    with (data / "test.jsonl").open("a") as file:
        file.write(json.dumps({"text": "word1", "label": "phishing"}) + "\n")
    with pytest.raises(BadData, match="class 'phishing' of 1 of its rows") as caught:
        scored(model(), data)
    assert "'ham', 'spam'" in caught.value.hint


def test_a_column_that_is_missing(model: Model, data: Path) -> None:
    with pytest.raises(MissingColumn, match="no column 'body'; it has text, label"):
        scored(model(), data, text_columns=("body",))
    with pytest.raises(MissingColumn, match="no column 'kind'"):
        scored(model(), data, label_column="kind")
    with pytest.raises(MissingColumn, match="'question1'"):
        scored(model(), data, task="qqp")
    write(data / "train.jsonl", [{"text": "word1", "kind": 1}] * 9)
    with pytest.raises(MissingColumn, match=r"train.*no column 'label'"):
        scored(model(), data)


def test_no_split_to_train_on(model: Model, data: Path) -> None:
    (data / "train.jsonl").rename(data / "validation.jsonl")
    with pytest.raises(BadData, match="no split to train on besides") as caught:
        scored(model(), data)
    assert "--train-data" in caught.value.hint


def test_scores_are_no_classes(model: Model, tmp_path: Path) -> None:
    rows = [{"text": text, "label": at / 7} for at, (text, _) in enumerate(texts(80, 0))]
    with pytest.raises(BadData, match="no class") as caught:
        scored(model(), write(tmp_path / "d.jsonl", rows))
    assert "similarity" in caught.value.hint
    with pytest.raises(BadData, match="80 values in 80 rows"):
        scored(model(), write(tmp_path / "d.csv", rows))


def test_cells_that_are_neither_text_nor_a_class(model: Model, tmp_path: Path) -> None:
    rows = [{"text": {"a": 1}, "label": 1}, {"text": "b", "label": 0}] * 9
    with pytest.raises(BadData, match="neither text nor an image"):
        scored(model(), write(tmp_path / "d.jsonl", rows))
    rows = [{"text": "a", "label": [1]}, {"text": "b", "label": [0]}] * 9
    with pytest.raises(BadData, match=r"holds \[1\], which is no class"):
        scored(model(), write(tmp_path / "d.jsonl", rows))


def test_a_task_that_is_not_known(model: Model, data: Path) -> None:
    with pytest.raises(InvalidOption, match="--task 'cola'") as caught:
        scored(model(), data, task="cola")
    assert "mnli" in caught.value.hint


def test_a_metric_that_does_not_fit_the_model(
    model: Model, tiny: Model, data: Path, pictures: Path
) -> None:
    with pytest.raises(MetricMismatch, match="it reads text, and task cifar10 is about images"):
        scored(model(), pictures, task="cifar10")
    with pytest.raises(MetricMismatch, match="it reads images, and task rte is about text"):
        scored(tiny("vit"), data, task="rte")
    with pytest.raises(MetricMismatch, match="it reads text, and the data are images"):
        scored(model(), pictures)
    with pytest.raises(MetricMismatch, match="it reads images, and the data are text"):
        scored(tiny("vit"), data)
    with pytest.raises(MetricMismatch, match="no AutoModelForSequenceClassification"):
        scored(model("granitemoe"), data)


def test_outputs_that_are_nan(model: Model, data: Path) -> None:
    with opened(model(), settings_of(data)) as (metric, loaded):
        loaded.model.classifier.bias.data[1] = np.nan
        with pytest.raises(EvaluationFailed, match="outputs of 41 rows are NaN"):
            metric.outputs(loaded.model, metric.scored)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_takes_all_of_it(
    model: Model, tmp_path: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    rows = [{"a": text, "b": WORDS[0], "kind": kind} for text, kind in texts(40, 0)]
    write(tmp_path / "a.csv", rows)
    write(tmp_path / "b.csv", rows[:10])
    words = "--metric classification --data b.csv --train-data a.csv --text-column a"
    words += " --text-column b --label-column kind --epochs 2 --learning-rate 0.01"
    words += " --train-batch-size 16 --weight-decay 0.1 --warmup 0.2 --gradient-accumulation 2"
    words += " --mixed-precision bf16 --max-grad-norm 0.5 --max-steps 3 --train-samples 30"
    code, out, err = typed("evaluate", model(), *words.split(), "--checkpoints", "s", "--json")
    assert code == 0, err
    record = json.loads(out)["record"]
    assert record["columns"] == ["a", "b", "kind"]
    assert (record["rows"], record["train"]["rows"]) == (10, 30)
    assert record["recipe"] == {
        "epochs": 2,
        "learning_rate": 0.01,
        "train_batch_size": 16,
        "weight_decay": 0.1,
        "warmup": 0.2,
        "gradient_accumulation": 2,
        "mixed_precision": "bf16",
        "max_grad_norm": 0.5,
        "max_steps": 3,
    }
    assert list((tmp_path / "s").iterdir()) == []
    code, out, _ = typed("evaluate", model(), *words.split())
    assert code == 0
    assert "accuracy" not in out
    assert "mcc" in out
    code, _, err = typed("evaluate", model(), "--task", "qqp")
    assert code == 2
    assert "--metric perplexity does not take --task" in " ".join(err.split())


# --- the parts ------------------------------------------------------------------------------------

pairs_of_classes = st.integers(2, 5).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.lists(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)),
            min_size=1,
            max_size=60,
        ),
    )
)


@given(pairs_of_classes)
def test_scores_are_those_of_scikit_learn(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, rows = case
    there, told = np.array(rows, np.int64).T
    import sklearn.metrics

    every = list(range(count))
    average = {"average": "macro"} if count > 2 else {}
    f1 = sklearn.metrics.f1_score(there, told, labels=every, zero_division=0.0, **average)
    if count == 2:
        f1 = sklearn.metrics.f1_score(there, told, zero_division=0.0)
    assert labels.f1(there, told, count) == pytest.approx(f1)
    assert labels.accuracy(there, told) == sklearn.metrics.accuracy_score(there, told)
    mcc = 0.0
    if len(set(there.tolist()) | set(told.tolist())) > 1:
        mcc = sklearn.metrics.matthews_corrcoef(there, told)
    assert labels.matthews(there, told, count) == pytest.approx(mcc)


@given(
    st.lists(st.sampled_from("aaabbc"), min_size=1, max_size=80),
    st.integers(1, 90),
    st.integers(0, 5),
)
def test_drawn_rows_keep_shares(groups: list[str], count: int, seed: int) -> None:
    found = drawn(groups, count, seed)
    assert found == sorted(set(found)) == drawn(groups, count, seed)
    assert len(found) == min(count, len(groups))
    whole, some = Counter(groups), Counter(groups[index] for index in found)
    if len(whole) <= count < len(groups):
        assert set(some) == set(whole)
        assert all(some[one] <= whole[one] for one in whole)
        exact = {one: whole[one] * count / len(groups) for one in whole}
        if all(share >= 1 for share in exact.values()):
            assert all(abs(some[one] - exact[one]) < 1 for one in whole)
