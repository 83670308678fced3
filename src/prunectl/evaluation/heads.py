"""Model classes with a head for a task, as transformers has them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.model_kind import Kind
from prunectl.checkpoint.module_tree import model_class, quiet_transformers, unknown_if_it_fails
from prunectl.errors import UnknownArchitecture
from prunectl.evaluation.errors import MetricMismatch
from prunectl.evaluation.metric import Head, Request

POOLER = ".pooler."


class NoSuchHead(UnknownArchitecture):
    """A type of model for which transformers has no such class."""


def class_with_head(checkpoint: Checkpoint, auto: str) -> tuple[Any, Any]:
    """The class that one of transformers' auto classes chooses for a checkpoint, and the config.

    Raises:
        NoSuchHead: there is none.
        UnknownArchitecture: config.json cannot be used.
    """
    import transformers
    from transformers.modeling_layers import GenericForQuestionAnswering

    with unknown_if_it_fails(), quiet_transformers():
        native, config = model_class(
            checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code
        )
        cls = getattr(transformers, auto)._model_mapping.get(type(config), None)
        if cls is None:
            raise NoSuchHead(f"transformers has no {auto} for model type '{config.model_type}'")
        prefix = native.base_model_prefix
        if issubclass(cls, GenericForQuestionAnswering) and cls.base_model_prefix != prefix:
            # Some of these call the model by a name that no checkpoint has.
            cls = type(cls.__name__, (cls,), {"base_model_prefix": prefix})
    return cls, config


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
        return not parameter.startswith(f"{self.base}.") or POOLER in parameter

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
