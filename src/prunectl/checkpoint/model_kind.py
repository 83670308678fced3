"""The kind of a loaded model, and the limits of its inputs, from the model and not its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.checkpoint.module_tree import model_class, quiet_transformers, unknown_if_it_fails
from prunectl.documents import read_object
from prunectl.errors import InvalidOption, SourceError, UnknownArchitecture, shortened

if TYPE_CHECKING:
    import torch


_USUAL_IMAGE = 224
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")


class Kind(StrEnum):
    """The task of a model, as far as its inputs are concerned."""

    CAUSAL_LM = "causal-lm"
    """Continues a text: one pass over the prompt, then one for each new token."""
    SEQ2SEQ = "encoder-decoder"
    """Reads a text with its encoder, then writes one token after another."""
    ENCODER = "encoder"
    """Reads a text once."""
    VISION = "vision"
    """Looks at an image once."""

    @property
    def generates(self) -> bool:
        return self in (Kind.CAUSAL_LM, Kind.SEQ2SEQ)


@dataclass(frozen=True, slots=True)
class ModelKind:
    """The kind of a model, and the limits of its inputs.

    Attributes:
        kind: its task.
        context: maximum number of tokens, or None if unlimited.
        vocabulary: number of token ids; 0 for a vision model.
        image: channels, height and width; None for text.
        avoided: ids of special tokens, which random text leaves out.
    """

    kind: Kind
    context: int | None
    vocabulary: int
    image: tuple[int, int, int] | None
    avoided: frozenset[int]


class UnknownInputs(SourceError):
    """A model that takes neither tokens nor images, so that no inputs can be made for it."""

    def __init__(self, model: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{model}: cannot be run: {why}", hint=hint)
        self.model, self.why = model, why


def model_kind_of(model: Any, folder: Path | None = None) -> ModelKind:
    """The kind of a transformers model.

    Args:
        model: any transformers model.
        folder: with the settings of its image processor, if it has one.

    Raises:
        UnknownInputs: it takes neither tokens nor images.
    """
    main = getattr(model, "main_input_name", "input_ids")
    name = type(model).__name__
    if main == "pixel_values":
        return ModelKind(Kind.VISION, None, 0, _image_of(model.config, folder), frozenset())
    if main != "input_ids":
        raise UnknownInputs(
            name,
            f"its input is '{main}', and only tokens ('input_ids') and images are known",
            hint="give a text or vision model",
        )
    if getattr(model.config, "is_encoder_decoder", False):
        kind = Kind.SEQ2SEQ
    else:
        kind = Kind.CAUSAL_LM if model.can_generate() else Kind.ENCODER
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # a model of several towers
        embedding = None
    text = model.config.get_text_config()
    vocabulary = int(getattr(embedding, "num_embeddings", 0) or getattr(text, "vocab_size", 0))
    if vocabulary < 1:
        raise UnknownInputs(name, "its vocabulary size is unknown", hint="")
    avoided = frozenset(_special_ids(model.config)) | frozenset(_special_ids(text))
    if sum(0 <= one < vocabulary for one in avoided) >= vocabulary:
        avoided = frozenset()
    return ModelKind(kind, _context_of(model, text), vocabulary, None, avoided)


def common_model_kind(kinds: Sequence[tuple[str, ModelKind]]) -> ModelKind:
    """The common kind of several models, with inputs that each of them takes.

    Args:
        kinds: by model name; one or more.

    Raises:
        InvalidOption: the models are of different kinds, or take images of different sizes.
    """
    name, first = kinds[0]
    for other_name, other in kinds:
        if (other.kind, other.image) != (first.kind, first.image):
            raise InvalidOption(
                f"{other_name} ({_words(other)}) and {name} ({_words(first)}) cannot be given "
                "the same inputs",
                hint="compare models of one kind",
            )
    contexts = [one.context for _, one in kinds if one.context is not None]
    return replace(
        first,
        context=min(contexts, default=None),
        vocabulary=min(one.vocabulary for _, one in kinds),
        avoided=frozenset().union(*(one.avoided for _, one in kinds)),
    )


def accepted_inputs(folder: Path, *, trust_remote_code: bool) -> frozenset[str]:
    """Parameter names of the model's ``forward``; empty if its class is unknown.

    A tokenizer may return more than the model takes: token types for a DistilBERT, for example.
    """
    try:
        with quiet_transformers(), unknown_if_it_fails():
            cls, _ = model_class(folder, trust_remote_code=trust_remote_code)
            return frozenset(inspect.signature(cls.forward).parameters)
    except UnknownArchitecture:
        return frozenset()


def _words(model_kind: ModelKind) -> str:
    size = f", {'x'.join(map(str, model_kind.image))}" if model_kind.image else ""
    return f"{model_kind.kind}{size}"


def _special_ids(config: Any) -> Iterator[int]:
    """Ids of padding, ends, images and so on: all values named ``..._token_id`` in a config."""
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_index")):
            values = value if isinstance(value, list) else [value]
            yield from (one for one in values if isinstance(one, int))


def _context_of(model: torch.nn.Module, config: Any) -> int | None:
    """Maximum number of tokens: the config's or the size of a position table, whichever is less."""
    known = [
        value
        for key in _CONTEXT_KEYS
        if isinstance(value := getattr(config, key, None), int) and value > 0
    ]
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            # as in RoBERTa, positions are counted from the one after the padding's
            known.append(int(module.num_embeddings) - padding - 1)
    return min(known, default=None)


def _image_of(config: Any, folder: Path | None) -> tuple[int, int, int]:
    """Channels, height and width: from the processor, else from the config."""
    vision = getattr(config, "vision_config", None) or config
    channels = getattr(vision, "num_channels", 3)
    channels = channels if isinstance(channels, int) else 3
    processor = read_object(folder / "preprocessor_config.json") if folder else {}
    for size in (processor.get("crop_size"), processor.get("size"),
                 getattr(vision, "image_size", None)):  # fmt: skip
        if found := _pair(size):
            return (channels, *found)
    return channels, _USUAL_IMAGE, _USUAL_IMAGE


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width, in any notation of a config."""
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    values = list(size) if isinstance(size, list | tuple) else [size, size]
    whole = [value for value in values if isinstance(value, int) and value > 0]
    return (whole[0], whole[1]) if len(values) == 2 and len(whole) == 2 else None


# --- quantization ---------------------------------------------------------------------------------

_QUANTIZED_PARTS = (
    ".qweight", ".qzeros", ".weight_packed", ".weight_bitmask", ".weight_scale",
    ".weight_scale_inv", ".SCB",
    ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4", ".absmax",
)  # fmt: skip


def quantization_of(config: dict[str, Any], names: list[str]) -> str:
    declared = config.get("quantization_config") or config.get("compression_config")
    if isinstance(declared, dict):
        method = declared.get("quant_method") or declared.get("format") or "quantized"
        return shortened(str(method), 80)
    marks = {mark for name in names for mark in _QUANTIZED_PARTS if name.endswith(mark)}
    return f"tensors such as *{min(marks)}" if marks else ""
