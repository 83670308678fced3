"""Two classifiers of handwritten digits: one trained with labels, one mostly without them.

The data are the 1797 digits of 8 x 8 pixels that scikit-learn carries (Alpaydin and Kaynak 1998).
Both are Vision Transformers of the same shape, saved in float32. The self-supervised one learns to
tell by how many quarter turns an image was rotated, which needs no labels (Gidaris et al. 2018).
Then a linear layer is fitted on the frozen encoder, and all of it is fine-tuned with labels, for a
quarter of the steps at half the learning rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from demo_training import Run, Shape, say, shuffled, train

DIGITS = 10
TURNS = 4
TEST_SHARE = 5
"""One image in so many is held out."""
PROBE_STEPS = 100
PROBE_DECAY = 1e-3


def load_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, then those held out, in an order that ``seed`` decides.

    Images are float32 of shape (n, 1, 8, 8) from -1 to 1, labels int64 of shape (n,).
    """
    from sklearn import datasets  # a need of development only

    data = datasets.load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(data.images).float()[order, None] / 8 - 1
    labels = torch.from_numpy(data.target).long()[order]
    held = len(labels) // TEST_SHARE
    return images[held:], labels[held:], images[:held], labels[:held]


def new_classifier(shape: Shape, labels: int) -> ViTForImageClassification:
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_labels=labels,
    )
    return ViTForImageClassification(config)


def save(model: ViTForImageClassification, folder: Path) -> None:
    model.save_pretrained(folder)


def fit(
    model: ViTForImageClassification, images: Tensor, labels: Tensor, run: Run
) -> dict[str, float]:
    """Train all of ``model`` to tell the labels."""
    order = shuffled(len(labels), run.batch, torch.Generator().manual_seed(run.seed))

    def loss_of_next_batch() -> Tensor:
        chosen = next(order)
        return cross_entropy(model(pixel_values=images[chosen]).logits, labels[chosen])

    return train(model, loss_of_next_batch, run, lambda path: save(model, path))


@torch.inference_mode()
def accuracy(model: ViTForImageClassification, images: Tensor, labels: Tensor) -> float:
    """The share of the images whose largest logit is at their label."""
    found = model(pixel_values=images).logits.argmax(-1)
    return (found == labels).double().mean().item()


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each image in all four directions, and how many quarter turns that took."""
    turns = torch.cat([torch.rot90(images, turn, (-2, -1)) for turn in range(TURNS)])
    return turns, torch.arange(TURNS).repeat_interleave(len(images))


def fit_head(features: Tensor, labels: Tensor, seed: int) -> nn.Linear:
    """Multinomial logistic regression by L-BFGS: features (n, hidden) -> logits of the digits."""
    torch.manual_seed(seed)
    head = nn.Linear(features.shape[1], DIGITS)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        decay = PROBE_DECAY * head.weight.square().sum()
        loss = cross_entropy(head(features), labels) + decay
        loss.backward()
        return loss

    optimizer.step(closure)
    return head


def train_supervised(run: Run) -> dict[str, Any]:
    """Train with labels from random weights; returns the numbers."""
    images, labels, test_images, test_labels = load_digits(run.seed)
    torch.manual_seed(run.seed)
    model = new_classifier(run.shape, DIGITS)
    trained = fit(model, images, labels, run)
    save(model, run.output / "model")
    return counts(model, labels, test_labels) | {
        **trained,
        "accuracy": accuracy(model, test_images, test_labels),
    }


def train_self_supervised(run: Run) -> dict[str, Any]:
    """Train on rotations without labels, then fine-tune with them; returns the numbers."""
    images, labels, test_images, test_labels = load_digits(run.seed)
    torch.manual_seed(run.seed)
    pretrained = new_classifier(run.shape, TURNS)
    trained = fit(pretrained, *turned(images), run)
    rotation = accuracy(pretrained, *turned(test_images))
    model = new_classifier(run.shape, DIGITS).eval()
    model.vit.load_state_dict(pretrained.vit.state_dict())
    with torch.no_grad():
        # What the head sees: the class token after the last norm.
        features = model.vit(pixel_values=images).last_hidden_state[:, 0]
    model.classifier.load_state_dict(fit_head(features, labels, run.seed).state_dict())
    probe = accuracy(model, test_images, test_labels)
    say(f"held out: {rotation:.4f} of the rotations, {probe:.4f} of the digits with a linear head")
    short = replace(
        run, steps=max(1, run.steps // 4), learning_rate=run.learning_rate / 2, save_every=0
    )
    tuned = fit(model, images, labels, short)
    save(model, run.output / "model")
    return counts(model, labels, test_labels) | {
        **trained,
        "rotation_accuracy": rotation,
        "probe_accuracy": probe,
        "tuning_seconds": tuned["training_seconds"],
        "accuracy": accuracy(model, test_images, test_labels),
    }


def counts(model: nn.Module, labels: Tensor, test_labels: Tensor) -> dict[str, Any]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_images": len(labels),
        "heldout_images": len(test_labels),
    }
