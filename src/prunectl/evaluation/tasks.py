"""Tasks that are known by their names: where their data are, which columns and splits count, and
how a model is fine-tuned for them.

The recipes are those of "The Emergence of Essential Sparsity in Large Pre-trained Models" (arXiv
2306.03805): AdamW, linear decay to zero. The paper states neither weight decay nor warm-up nor
clipping: these are the defaults of transformers' Trainer, on which such recipes run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prunectl.errors import InvalidOption

SCORED = ("test", "validation", "all")
"""Splits that are scored on where no task says which: the first that is there and has answers."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A fine-tuning by AdamW with a learning rate that decays linearly to zero.

    Attributes:
        epochs: passes over the data; 0 leaves the model as it is.
        learning_rate: the highest.
        train_batch_size: samples in an optimizer step, on all devices together.
        weight_decay: of matrices; biases and norms have none.
        warmup: share of the steps, 0..1, over which the learning rate grows from zero.
        gradient_accumulation: passes that a step's samples are run in, to need less memory.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        max_grad_norm: gradients are scaled down to it; 0 leaves them as they are.
        max_steps: optimizer steps at most; the decay ends with them.
    """

    epochs: int
    learning_rate: float
    train_batch_size: int
    weight_decay: float = 0.0
    warmup: float = 0.0
    gradient_accumulation: int = 1
    mixed_precision: str = "no"
    max_grad_norm: float = 1.0
    max_steps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All that is set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


TEXT = Recipe(epochs=3, learning_rate=2e-5, train_batch_size=32)
QUESTIONS = Recipe(epochs=3, learning_rate=3e-5, train_batch_size=16)
IMAGES = Recipe(epochs=8, learning_rate=2e-5, train_batch_size=64)


@dataclass(frozen=True, slots=True)
class Task:
    """A task, or what holds for data of no known task.

    Attributes:
        recipe: how it is trained.
        help: what it asks, in a few words.
        data: its source on the Hub.
        inputs: one or two columns of text, or one of images; empty: they are looked for.
        label: the column of classes; None: it is looked for.
        scored: names of the split that is scored on, the first that is there.
        further: more splits, each a part of the score by that name.
        skipped: splits without labels.
        images: whether it is about images; None: the data decide.
    """

    recipe: Recipe
    help: str = ""
    data: str | None = None
    inputs: tuple[str, ...] = ()
    label: str | None = None
    scored: tuple[str, ...] = SCORED
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    images: bool | None = None


_UNLABELED = ("test", "test_matched", "test_mismatched")


def _glue(name: str, text: str, *inputs: str, epochs: int = 3) -> Task:
    return Task(
        replace(TEXT, epochs=epochs),
        f"GLUE: {text}",
        f"hf:nyu-mll/glue:{name}",
        inputs,
        "label",
        ("validation", "all"),
        {},
        _UNLABELED,
        False,
    )


def _images(
    text: str, dataset: str, column: str, label: str, *scored: str, epochs: int = 8
) -> Task:
    recipe, inputs = replace(IMAGES, epochs=epochs), (column,)
    data, splits = f"hf:{dataset}", (*scored, "all")
    return Task(recipe, f"images of {text}", data, inputs, label, splits, images=True)


CLASSIFICATION = {
    "mnli": replace(
        _glue("mnli", "does one sentence follow from the other", "premise", "hypothesis"),
        scored=("validation_matched", "dev_matched", "validation", "all"),
        further={"mismatched": ("validation_mismatched", "dev_mismatched")},
    ),
    "qnli": _glue("qnli", "does the sentence hold the answer", "question", "sentence", epochs=4),
    "qqp": _glue("qqp", "do two questions ask the same", "question1", "question2"),
    "rte": _glue(
        "rte", "does one sentence follow from the other, few rows", "sentence1", "sentence2"
    ),
    "sst2": _glue("sst2", "is the sentence of a review kind or unkind", "sentence", epochs=5),
    "cifar10": _images("10 classes", "uoft-cs/cifar10", "img", "label", "test"),
    "cifar100": _images("100 classes", "uoft-cs/cifar100", "img", "fine_label", "test"),
    "fashion-mnist": _images(
        "10 kinds of clothes", "zalando-datasets/fashion_mnist", "image", "label", "test"
    ),
    "tiny-imagenet": _images(
        "200 classes", "zh-plus/tiny-imagenet", "image", "label", "valid", "validation", epochs=5
    ),
}
QA = {
    "squad": Task(
        QUESTIONS, "the answer in a text", "hf:rajpurkar/squad", scored=("validation", "all")
    )
}

UNNAMED_TEXT, UNNAMED_IMAGES, UNNAMED_QUESTIONS = Task(TEXT), Task(IMAGES), Task(QUESTIONS)
"""For data of no known task."""


def task_of(name: str | None, known: Mapping[str, Task], unnamed: Task, metric: str) -> Task:
    """The task of a name.

    Raises:
        InvalidOption: the metric does not know it.
    """
    if name is None:
        return unnamed
    if name.casefold() not in known:
        raise InvalidOption(
            f"--task '{name}' is not one of --metric {metric}",
            hint=f"one of {', '.join(known)}; other data need no task: --data FILE",
        )
    return known[name.casefold()]
