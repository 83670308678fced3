"""Model classes with a head for a task, as transformers has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.module_tree import model_class, quiet_transformers, unknown_if_it_fails
from prunectl.errors import UnknownArchitecture


@dataclass(frozen=True, slots=True)
class Head:
    """A model class with a head that the checkpoint may lack, and is trained.

    Attributes:
        auto: name of the class of transformers that chooses it:
            ``AutoModelForSequenceClassification``.
        config: entries of the config that it needs, such as ``num_labels``.
    """

    auto: str
    config: dict[str, Any] = field(default_factory=dict)


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
