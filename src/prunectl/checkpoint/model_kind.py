"""What a loaded model is, and what its inputs may be: read from the model, not from its name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.checkpoint.module_tree import model_class, quiet_transformers, unknown_if_it_fails
from prunectl.errors import InvalidOption, SourceError, UnknownArchitecture, shortened

if TYPE_CHECKING:
    import torch


_USUAL_IMAGE = 224
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")


class Kind(StrEnum):
    """What a model does, as far as its inputs go."""

    CAUSAL_LM = "causal-lm"
    """Continues a text: a pass over the prompt, then one for each new token."""
    SEQ2SEQ = "encoder-decoder"
    """Reads a text with its encoder, then writes one token after the other."""
    ENCODER = "encoder"
    """Reads a text once."""
    VISION = "vision"
    """Looks at an image once."""

    @property
    def generates(self) -> bool:
        return self in (Kind.CAUSAL_LM, Kind.SEQ2SEQ)


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What a model is, and what limits its inputs.

    Attributes:
        kind: what it reads and writes.
        context: most tokens that it takes, or None where nothing limits them.
        vocabulary: number of token ids; 0 for a vision model.
        image: channels, height and width; None for text.
        avoided: ids with a meaning of their own, which random text leaves out.
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
    """What a transformers model is.

    Args:
        model: any transformers model.
        folder: where its image processor's settings are, if it has any.

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
            hint="name a text or vision model",
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
        raise UnknownInputs(name, "the size of its vocabulary is not known", hint="")
    avoided = frozenset(_special_ids(model.config)) | frozenset(_special_ids(text))
    if sum(0 <= one < vocabulary for one in avoided) >= vocabulary:
        avoided = frozenset()
    return ModelKind(kind, _context_of(model, text), vocabulary, None, avoided)


def common_model_kind(kinds: Sequence[tuple[str, ModelKind]]) -> ModelKind:
    """What models are together: one kind, and inputs that each of them takes.

    Args:
        kinds: by what the models are called; one or more.

    Raises:
        InvalidOption: they are of different kinds, or take images of different sizes.
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
    """Names that the model's ``forward`` takes; empty where its class is not known.

    A tokenizer may make more than its model takes: token types for a DistilBERT, for example.
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
    """Ids of padding, ends, images and the like: all that a config calls ``..._token_id``."""
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_index")):
            values = value if isinstance(value, list) else [value]
            yield from (one for one in values if isinstance(one, int))


def _context_of(model: torch.nn.Module, config: Any) -> int | None:
    """Most tokens: what the config says, or what a table of positions holds, if that is less."""
    known = [
        value
        for key in _CONTEXT_KEYS
        if isinstance(value := getattr(config, key, None), int) and value > 0
    ]
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            # As in RoBERTa, positions are counted from the one after the padding's.
            known.append(int(module.num_embeddings) - padding - 1)
    return min(known, default=None)


def _image_of(config: Any, folder: Path | None) -> tuple[int, int, int]:
    """Channels, height and width: what the processor makes, else what the config says."""
    vision = getattr(config, "vision_config", None) or config
    channels = getattr(vision, "num_channels", 3)
    channels = channels if isinstance(channels, int) else 3
    processor = _read(folder / "preprocessor_config.json") if folder else {}
    for size in (processor.get("crop_size"), processor.get("size"),
                 getattr(vision, "image_size", None)):  # fmt: skip
        if found := _pair(size):
            return (channels, *found)
    return channels, _USUAL_IMAGE, _USUAL_IMAGE


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width, however a config writes them."""
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    values = list(size) if isinstance(size, list | tuple) else [size, size]
    whole = [value for value in values if isinstance(value, int) and value > 0]
    return (whole[0], whole[1]) if len(values) == 2 and len(whole) == 2 else None


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


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
