"""How a model is fine-tuned: the recipes of the paper, and what a user sets of them.

"The Emergence of Essential Sparsity in Large Pre-trained Models" (arXiv 2306.03805): AdamW, linear
decay to zero. Weight decay, warmup and clipping are not stated there; they are those of the
Trainer of transformers, on which such recipes run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


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
        max_steps: most optimizer steps; the decay ends with them.
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

RECIPES = {
    "mnli": TEXT,
    "qqp": TEXT,
    "rte": TEXT,
    "qnli": replace(TEXT, epochs=4),
    "sst2": replace(TEXT, epochs=5),
    "squad": QUESTIONS,
    "cifar10": IMAGES,
    "cifar100": IMAGES,
    "fashion-mnist": IMAGES,
    "tiny-imagenet": replace(IMAGES, epochs=5),
}
"""The paper's recipes by task."""
