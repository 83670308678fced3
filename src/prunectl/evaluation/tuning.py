"""Metrics that fine-tune the model before they score it: what classification and qa share.

Their data are read and drawn (:mod:`prunectl.evaluation.examples`), made inputs of the model,
trained on, and scored. A metric adds what it reads of the model's outputs, and how it grades that.
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
from prunectl.evaluation.errors import EvaluationFailed, MetricMismatch
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
"""Parts of a record that decide what a model is fed in training."""


@dataclass(frozen=True, slots=True)
class HeadClass:
    """A model class with a head for a task.

    Attributes:
        auto: name of transformers' class that chooses it.
        base: how the names of parameters outside the head begin.
        accepted: names of its inputs.
        config: of the model, as the checkpoint has it.
    """

    auto: str
    base: str
    accepted: frozenset[str]
    config: Any

    def is_head(self, parameter: str) -> bool:
        """Whether a parameter that the checkpoint lacks is initialized and trained."""
        return not parameter.startswith(f"{self.base}.") or _POOLER in parameter

    def head(self, request: Request, pad: int | None, **config: Any) -> Head:
        """The head of a model that pads by the token ``pad``."""
        own = self.config
        # An encoder may count positions from its own padding token; the others look for that token
        # to find where a sequence ends.
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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TunedMetric:
    """A metric that trains the model in place before it scores it, unless nothing is trained; see
    :class:`prunectl.evaluation.metric.Metric`.

    Attributes:
        train: None where nothing is trained.
        scored: to score on. further: the same, by the names of further parts of the score.
        batch: samples at once in scoring, where the user names no number.
        fed: what the model is fed, in the plural.
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
        """What is needed of the model's outputs: arrays with a row for each sample of a batch."""
        raise NotImplementedError

    def graded(self, found: Mapping[str, list[tuple[Floats, ...]]], on_event: OnEvent) -> Score:
        """The score of what was read of the outputs for each sample, by part; '' is ``scored``."""
        raise NotImplementedError

    def score(
        self, loaded: LoadedModel, *, seed: int = 0, on_event: OnEvent = ignore_events
    ) -> Score:
        """Train the model in place and score it.

        With ``--checkpoints``, those of this training are in a folder of their own, which goes
        when the score is there.

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
        """What :meth:`read` gives for each sample.

        Raises:
            EvaluationFailed: some of it is NaN.
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
    """How the model is trained: the task's recipe, and what the user has set instead.

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
        available: rows that the scored ones were drawn from.
        facts, columns: what the metric adds, about its protocol and about the data.
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
