"""The shared part of metrics that fine-tune the model before scoring it: classification and qa.

Rows are read and drawn (:mod:`prunectl.evaluation.examples`), converted to model inputs, trained on
and scored. Each metric adds how it reads the model's outputs, and how it grades them.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from blake3 import blake3

from prunectl.checkpoint.model_kind import Kind
from prunectl.errors import InvalidOption
from prunectl.evaluation.errors import EvaluationFailed
from prunectl.evaluation.examples import HELD_OUT, Data, One, Reader, facts_of
from prunectl.evaluation.heads import Head, NoSuchHead, class_with_head
from prunectl.evaluation.inputs import Floats, Samples, outputs
from prunectl.evaluation.metric import Request, Score
from prunectl.evaluation.settings import EvalSettings, Training
from prunectl.evaluation.tasks import Recipe, Task
from prunectl.events import OnEvent, ignore_events
from prunectl.to_json import to_json

if TYPE_CHECKING:
    import torch

    from prunectl.evaluation.loaded_model import LoadedModel
    from prunectl.evaluation.metric import Values

_POOLER = ".pooler."
_INPUTS = ("train", "classes", "sequence_length", "overlap", "image")
"""Members of a record that determine the inputs of training."""


@dataclass(frozen=True, slots=True)
class HeadClass:
    """A model class with a head for a task.

    Attributes:
        auto: name of transformers' auto class that chooses it.
        base: prefix of the names of parameters outside the head.
        accepted: names of the inputs that the model accepts.
        config: the model's config, as in the checkpoint.
    """

    auto: str
    base: str
    accepted: frozenset[str]
    config: Any

    def is_head(self, parameter: str) -> bool:
        """Whether a parameter belongs to the head or a pooler, which training can initialize."""
        return not parameter.startswith(f"{self.base}.") or _POOLER in parameter

    def head(self, request: Request, pad: int | None, **config: Any) -> Head:
        """The head, for inputs padded with the token ``pad`` (None: no padding)."""
        own = self.config
        # An encoder may count positions from the padding token of its config, which is kept. Other
        # models find the end of a sequence by the padding token, which must be the one used.
        is_encoder = request.model_kind.kind is Kind.ENCODER
        if pad is not None and not (is_encoder and getattr(own, "pad_token_id", None) is not None):
            config["pad_token_id"] = pad
        has_start = getattr(own, "decoder_start_token_id", None) is not None
        if pad is not None and request.model_kind.kind is Kind.SEQ2SEQ and not has_start:
            config["decoder_start_token_id"] = pad  # as in T5
        return Head(self.auto, {"use_cache": False, **config})


def head_class(request: Request, auto: str) -> HeadClass:
    """The class that transformers has for a task with this model.

    Raises:
        UnknownArchitecture: config.json cannot be used.
        MetricMismatch: transformers has no such class.
    """
    try:
        cls, config = class_with_head(request.checkpoint, auto)
    except NoSuchHead as error:
        raise request.mismatch(error.why) from None
    names = inspect.signature(cls.forward).parameters
    return HeadClass(auto, cls.base_model_prefix, frozenset(names), config)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TunedMetric:
    """A metric that may train the model in place before scoring it; see
    :class:`prunectl.evaluation.metric.Metric`.

    Attributes:
        train: samples to train on; None if the model is not trained.
        scored: samples to score on.
        further: more samples to score on, by the name of their part of the score.
        batch: default number of samples in a batch while scoring.
        fed: what the inputs are called, in the plural.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    fed: ClassVar[str]
    batch: ClassVar[int]
    higher_is_better: ClassVar[bool] = True

    train: Samples | None
    scored: Samples
    further: Mapping[str, Samples]
    settings: EvalSettings
    recipe: Recipe
    head_class: HeadClass
    head: Head
    record: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def samples(self) -> int:
        return len(self.scored)

    @property
    def trains(self) -> bool:
        return self.train is not None

    def tolerates(self, parameter: str) -> bool:
        return self.trains and self.head_class.is_head(parameter)

    def statistic(self, values: Values) -> float:
        raise NotImplementedError

    def read(self, found: Any) -> tuple[Floats, ...]:
        """The parts of a batch's outputs that grading needs: arrays with a row for each sample."""
        raise NotImplementedError

    def graded(self, found: Mapping[str, list[tuple[Floats, ...]]], on_event: OnEvent) -> Score:
        """The score, from the outputs of each sample by part; part '' is ``scored``."""
        raise NotImplementedError

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Train the model in place and score it.

        With ``--checkpoints``, this training has a subfolder for its checkpoints, which is removed
        once the model is scored.

        Raises:
            EvaluationFailed: the loss or the outputs are not numbers.
            InvalidOption, NoSpace, CannotWrite: see :func:`prunectl.evaluation.training.train`.
        """
        folder = self.settings.training.checkpoints if self.settings.training else None
        if self.train is not None:
            from prunectl.evaluation.training import train

            if folder is not None:
                inputs = json.dumps({one: self.record.get(one) for one in _INPUTS}, sort_keys=True)
                folder /= fingerprint(loaded.model, self.recipe, inputs, seed)
            held = loaded.held()
            train(loaded.model, held, self.train, self.recipe, seed, on_event, folder=folder)
        parts = {"": self.scored, **self.further}
        found = {part: self.outputs(loaded.model, one, on_event) for part, one in parts.items()}
        score = self.graded(found, on_event)
        if folder is not None and self.train is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return score

    def outputs(
        self, model: Any, samples: Samples, on_event: OnEvent = ignore_events
    ) -> list[tuple[Floats, ...]]:
        """The result of :meth:`read` for each sample.

        Raises:
            EvaluationFailed: an output is NaN.
        """
        size = self.settings.batch_size or self.batch
        found = outputs(
            model,
            samples,
            self.read,
            batch_size=size,
            phase=self.name,
            unit=self.fed,
            on_event=on_event,
        )
        if bad := sum(any(np.isnan(one).any() for one in arrays) for arrays in found):
            raise EvaluationFailed(self.name, f"the outputs of {bad:,} {self.fed} are NaN")
        return found


def recipe_of(request: Request, task: Task) -> Recipe:
    """The task's recipe, with the user's settings in place of its own.

    Raises:
        InvalidOption: weights cannot be trained in the dtype.
    """
    dtype = request.settings.dtype
    if dtype in ("float16", "fp16", "half"):
        raise InvalidOption(
            f"--dtype {dtype}: weights cannot be trained in this dtype",
            hint="--mixed-precision fp16 computes in float16, with weights in float32",
        )
    return resolve(task.recipe, request.settings.training)


def resolve(recipe: Recipe, training: Training | None) -> Recipe:
    """Replace settings of a recipe by those that the user has set."""
    names = {one.name for one in fields(Training)} & {one.name for one in fields(Recipe)}
    given = {name: getattr(training, name) for name in names} if training else {}
    return replace(recipe, **{name: one for name, one in given.items() if one is not None})


def record_of(
    request: Request,
    data: Data[One],
    reader: Reader[One],
    recipe: Recipe,
    available: int,
    facts: Mapping[str, Any],
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The record of a metric: see :class:`prunectl.evaluation.metric.Metric`.

    Args:
        available: number of rows from which the scored rows were drawn.
        facts: members about the metric's protocol.
        columns: members about the columns of the data.
    """
    settings, chosen = request.settings, data.chosen
    record: dict[str, Any] = {
        "metric": settings.metric,
        "task": settings.task,
        **facts_of(chosen.scored),
        **request.facts,
        "blake3": reader.digest(data.scored, False),
        **columns,
        reader.name: len(data.scored),
        f"{reader.name}_available": available,
        **facts,
    }
    if data.train is not None:
        record["train"] = {
            **facts_of(chosen.train or chosen.scored),
            "blake3": reader.digest(data.train, True),
            reader.name: len(data.train),
        }
        record["recipe"] = recipe.to_json()
    if data.divided:
        record["held_out"] = {"share": HELD_OUT, "seed": settings.seed}
        if reader.units != reader.name:
            record["held_out"]["of"] = reader.units
    return record


def fingerprint(model: torch.nn.Module, recipe: Recipe, data: str, seed: int) -> str:
    """A hash of a training's initial weights, recipe, data and seed, in 32 hexadecimal digits.

    Args:
        data: a text that identifies the data.
    """
    import torch

    hasher = blake3(json.dumps([to_json(recipe), data, seed]).encode())
    for name, tensor in model.state_dict().items():
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(whole.view(torch.uint8).numpy())
    return hasher.hexdigest(16)
