"""Datasets with the names, files, columns and classes that the paper's have on the Hub, in small.

Each is a repository as the Hub has it: Parquet (or lines of JSON) in a folder a config, and a
README.md whose header names configs, splits, columns and classes. What the class of a row is can be
seen in it, so that a model learns it in a few steps.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image
from tiny_tokenizers import WORDS

Row = dict[str, Any]
Files = dict[str, bytes]

TRAIN, SCORED = 40, 16
"""Rows of a split."""

_TEXT, _CLASSES = datasets.Value("string"), datasets.ClassLabel


def glue() -> Files:
    tasks = {
        "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
        "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
        "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"]),
        "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"]),
        "sst2": (("sentence",), ["negative", "positive"]),
    }
    configs = {}
    for name, (columns, classes) in tasks.items():
        fields = dict.fromkeys(columns, _TEXT)
        features = fields | {"label": _CLASSES(names=classes), "idx": datasets.Value("int32")}
        ends = ("_matched", "_mismatched") if name == "mnli" else ("",)
        splits = {"train": _texts(columns, len(classes), TRAIN, 0)}
        for end in ends:
            splits[f"validation{end}"] = _texts(columns, len(classes), SCORED, 1)
            splits[f"test{end}"] = [row | {"label": -1} for row in _texts(columns, 1, SCORED, 2)]
        configs[name] = (features, splits)
    return _parquet(configs)


def squad() -> Files:
    """The answer is the word behind the one that the question names."""
    features = {
        "id": _TEXT, "title": _TEXT, "context": _TEXT, "question": _TEXT,
        "answers": {"text": datasets.List(_TEXT),
                    "answer_start": datasets.List(datasets.Value("int32"))},
    }  # fmt: skip

    def rows(count: int, seed: int) -> Iterator[Row]:
        rng = np.random.default_rng(seed)
        for number in range(count):
            words = [WORDS[one] for one in rng.choice(len(WORDS), 12, replace=False)]
            at = int(rng.integers(0, 11))
            answer = {"text": [words[at + 1]], "answer_start": [len(" ".join(words[: at + 1])) + 1]}
            yield {"id": f"{seed}-{number}", "title": "Words", "context": " ".join(words),
                   "question": words[at], "answers": answer}  # fmt: skip

    splits = {"train": list(rows(TRAIN, 0)), "validation": list(rows(SCORED, 1))}
    return _parquet({"plain_text": (features, splits)})


def images(
    config: str, column: str, label: str, classes: int, scored: str, size: int, mode: str = "RGB"
) -> Files:
    """Light or dark noise; of many classes only two are there."""
    names = [f"class {one}" for one in range(classes)]
    features = {column: datasets.Image(), label: _CLASSES(names=names)}
    if label == "fine_label":
        features["coarse_label"] = _CLASSES(names=names[:20])

    def rows(count: int, seed: int) -> Iterator[Row]:
        rng = np.random.default_rng(seed)
        shape = (size, size) if mode == "L" else (size, size, 3)
        for number in range(count):
            kind = number % 2
            pixels = rng.integers(0, 120, shape) + 130 * kind
            data = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
            row = {column: {"bytes": data.getvalue(), "path": None}, label: kind}
            yield row | ({"coarse_label": 0} if label == "fine_label" else {})

    splits = {"train": list(rows(TRAIN, 0)), scored: list(rows(SCORED, 1))}
    return _parquet({config: (features, splits)}, "data" if config == "default" else config)


def mmlu(rows: list[Row]) -> Files:
    """Questions with a number for the answer, which is right for ``test``."""
    features = {
        "question": _TEXT, "subject": _TEXT, "choices": datasets.List(_TEXT),
        "answer": _CLASSES(names=["A", "B", "C", "D"]),
    }  # fmt: skip
    splits = {"test": rows, "validation": rows[:3], "dev": rows[:3]}
    splits["auxiliary_train"] = [row | {"subject": ""} for row in rows]
    return _parquet({"all": (features, splits)})


def svamp(rows: list[Row]) -> Files:
    columns = ("ID", "Body", "Question", "Equation", "Answer", "Type", "question_concat")
    splits = {"train": rows, "test": rows}
    return _parquet({"default": (dict.fromkeys(columns, _TEXT), splits)}, "data")


def c4() -> Files:
    """Compressed lines of JSON, and no list of columns."""

    def lines(seed: int) -> bytes:
        texts = [row["text"] for row in _texts(("text",), 9, 200, seed)]
        more = {"timestamp": "2019-04-25T12:57:54Z", "url": "https://localhost/"}
        return gzip.compress("".join(json.dumps({"text": t} | more) + "\n" for t in texts).encode())

    files = {
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    }
    card = DatasetCardData()
    paths = {split: f"en/c4-{split}.*.json.gz" for split in files}
    _configs({"en": paths}).to_dataset_card_data(card)
    made = {path: lines(seed) for seed, path in enumerate(files.values())}
    return made | {"README.md": _readme(card)}


MADE: dict[str, Callable[[], Files]] = {
    "nyu-mll/glue": glue,
    "rajpurkar/squad": squad,
    "uoft-cs/cifar10": lambda: images("plain_text", "img", "label", 10, "test", 32),
    "uoft-cs/cifar100": lambda: images("cifar100", "img", "fine_label", 100, "test", 32),
    "zalando-datasets/fashion_mnist":
        lambda: images("fashion_mnist", "image", "label", 10, "test", 28, "L"),
    "zh-plus/tiny-imagenet": lambda: images("default", "image", "label", 200, "valid", 64),
    "allenai/c4": c4,
}  # fmt: skip
"""All but those whose answers are a model's own: ``cais/mmlu`` and ``ChilleD/SVAMP``."""


def _texts(columns: tuple[str, ...], classes: int, count: int, seed: int) -> list[Row]:
    """Texts of words; all but one are the class's."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        kind = number % classes
        row: Row = {"label": kind, "idx": number}
        for column in columns:
            other = WORDS[int(rng.integers(classes, len(WORDS)))]
            row[column] = " ".join([WORDS[kind], WORDS[kind], other, WORDS[kind]])
        rows.append(row)
    return rows


def _parquet(
    configs: dict[str, tuple[dict[str, Any], dict[str, list[Row]]]], folder: str = ""
) -> Files:
    """The repository of datasets that are Parquet: a folder a config, or the one named."""
    files: Files = {}
    infos, paths = {}, {}
    for config, (features, splits) in configs.items():
        place = folder or config
        known = datasets.SplitDict()
        for split, rows in splits.items():
            data = io.BytesIO()
            made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
            size = made.to_parquet(data)
            files[f"{place}/{split}-00000-of-00001.parquet"] = data.getvalue()
            known.add(datasets.SplitInfo(split, num_bytes=size, num_examples=len(rows)))
        infos[config] = datasets.DatasetInfo(features=datasets.Features(features), splits=known)
        paths[config] = {split: f"{place}/{split}-*" for split in splits}
    card = DatasetCardData()
    DatasetInfosDict(infos).to_dataset_card_data(card)
    _configs(paths).to_dataset_card_data(card)
    return files | {"README.md": _readme(card)}


def _configs(paths: dict[str, dict[str, str]]) -> MetadataConfigs:
    return MetadataConfigs(
        {
            config: {"data_files": [{"split": s, "path": path} for s, path in splits.items()]}
            for config, splits in paths.items()
        }
    )


def _readme(card: DatasetCardData) -> bytes:
    return str(DatasetCard(f"---\n{card.to_yaml()}\n---\n")).encode()
