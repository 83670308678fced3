"""What metrics share that fine-tune a model before they score it: its class, and the tuning."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.checkpoint.model_kind import Kind
from prunectl.errors import InvalidOption
from prunectl.evaluation.errors import MetricMismatch
from prunectl.evaluation.heads import NoSuchHead, class_with_head
from prunectl.evaluation.metric import Head, Request
from prunectl.evaluation.recipes import Recipe
from prunectl.evaluation.settings import Training
from prunectl.evaluation.tasks import Task
from prunectl.evaluation.training import Samples, train
from prunectl.evaluation.training_state import discard, fingerprint
from prunectl.events import OnEvent

if TYPE_CHECKING:
    from prunectl.evaluation.loaded_model import LoadedModel

POOLER = ".pooler."
_INPUTS = ("train", "classes", "sequence_length", "overlap", "image")
"""Parts of a record that decide what a model is fed in training."""


@dataclass(frozen=True, slots=True)
class HeadClass:
    """A model class with a head for a task.

    Attributes:
        auto: name of transformers' class that chooses it.
        base: what names of the parameters begin with that are not the head's.
        accepted: names of its inputs.
        config: of the model, as the checkpoint has it.
    """

    auto: str
    base: str
    accepted: frozenset[str]
    config: Any

    def is_head(self, parameter: str) -> bool:
        """Whether a parameter is trained from new where the checkpoint lacks it."""
        return not parameter.startswith(f"{self.base}.") or POOLER in parameter

    def head(self, request: Request, pad: int | None, **config: Any) -> Head:
        """The head of a model that pads by the token ``pad``."""
        own = self.config
        # Encoders may count positions from their own padding; where a sequence ends that is padded
        # is what the others need to know.
        is_encoder = request.model_kind.kind is Kind.ENCODER
        if pad is not None and not (is_encoder and getattr(own, "pad_token_id", None) is not None):
            config["pad_token_id"] = pad
        starts = getattr(own, "decoder_start_token_id", None) is not None
        if pad is not None and request.model_kind.kind is Kind.SEQ2SEQ and not starts:
            config["decoder_start_token_id"] = pad  # as T5 has it
        return Head(self.auto, {"use_cache": False, **config})


def head_class(request: Request, auto: str) -> HeadClass:
    """The class that transformers has for a task and this model.

    Raises:
        UnknownArchitecture: config.json cannot be used.
        MetricMismatch: there is none.
    """
    try:
        cls, config = class_with_head(request.checkpoint, auto)
    except NoSuchHead as error:
        settings, model = request.settings, request.checkpoint.model
        raise MetricMismatch(settings.metric, model, error.why) from None
    names = inspect.signature(cls.forward).parameters
    return HeadClass(auto, cls.base_model_prefix, frozenset(names), config)


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
        train(loaded.model, loaded.held(), data, recipe, seed, on_event, folder=folder)
    yield
    discard(folder)
