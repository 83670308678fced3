"""What metrics share that fine-tune a model before they score it: its class, and the tuning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from prunectl.errors import InvalidOption
from prunectl.evaluation.metric import Request
from prunectl.evaluation.settings import Training
from prunectl.evaluation.tasks import Recipe, Task
from prunectl.events import OnEvent
from prunectl.to_json import to_json

if TYPE_CHECKING:
    import torch

    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.training import Samples

_INPUTS = ("train", "classes", "sequence_length", "overlap", "image")
"""Parts of a record that decide what a model is fed in training."""


def recipe_of(request: Request, task: Task) -> Recipe:
    """How the model is trained.

    Raises:
        InvalidOption: in a dtype that cannot be.
    """
    dtype = request.settings.dtype
    if dtype in ("float16", "fp16", "half"):
        raise InvalidOption(
            f"--dtype {dtype}: weights cannot be trained in it",
            hint="--mixed-precision fp16 computes in it, with weights in float32",
        )
    return resolve(task.recipe, request.settings.training)


def resolve(recipe: Recipe, training: Training | None) -> Recipe:
    """A recipe with what the user has set instead."""
    training = training or Training()
    names = {one.name for one in fields(Training)} & {one.name for one in fields(Recipe)}
    given = {name: value for name in names if (value := getattr(training, name)) is not None}
    return replace(recipe, **given)


@contextmanager
def tuned(
    loaded: LoadedModel,
    data: Samples | None,
    recipe: Recipe,
    *,
    record: Mapping[str, Any],
    seed: int,
    checkpoints: Path | None,
    on_event: OnEvent,
) -> Iterator[None]:
    """Train the loaded model; inside of the block it is scored.

    Args:
        data: None where nothing is trained.
        record: the metric's: what is trained on, and how it becomes the model's inputs.
        checkpoints: takes states in a folder of their own, which goes when the score is there.

    Raises:
        EvaluationFailed, InvalidOption, NoSpace, CannotWrite: see
            :func:`prunectl.evaluation.training.train`.
    """
    folder = None
    if data is not None:
        if checkpoints is not None:
            inputs = json.dumps({name: record.get(name) for name in _INPUTS}, sort_keys=True)
            folder = checkpoints / fingerprint(loaded.model, recipe, inputs, seed)
        from prunectl.evaluation.training import train

        train(loaded.model, loaded.held(), data, recipe, seed, on_event, folder=folder)
    yield
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def fingerprint(model: torch.nn.Module, recipe: Recipe, data: str, seed: int) -> str:
    """What a training begins from and does, in 32 hexadecimal digits.

    Args:
        data: a hash of what is trained on.
    """
    import torch

    hasher = blake3(json.dumps([to_json(recipe), data, seed]).encode())
    for name, tensor in model.state_dict().items():
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(whole.view(torch.uint8).numpy())
    return hasher.hexdigest(16)
