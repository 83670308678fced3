"""A checkpoint's model class, built on the meta device, and the parameter of each stored tensor.

Everything that depends on internals of transformers is here. Nothing touches the network, no weight
is allocated, and any error of transformers becomes :class:`UnknownArchitecture`.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.documents import parse_json, read_regular
from prunectl.errors import UnknownArchitecture

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Destination:
    """The (first) parameter that a stored tensor becomes, and how it is converted.

    Attributes:
        parameter: full name in the module tree.
        converted: whether the tensor is stacked, split or transposed, not only renamed.
        transposes: whether loading swaps the last two axes of the stored tensor.
        only_if_needed: whether it swaps them only if the shapes differ otherwise.
    """

    parameter: str
    transposes: bool = False
    only_if_needed: bool = False
    converted: bool = False


_COUNT = re.compile(
    r"(layers?|blocks?|depths?|experts|stages|levels|groups|heads|codebooks|quantizers|convs|"
    r"repeats|flows|kernels|block_sizes)$"
)
MAX_MODULES = 100_000
"""Largest number of layers or experts for which a module tree is built."""
MAX_LABELS = 1_000_000
"""Most labels of a classifier; a config holds a name for each, generated if it lists none."""

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence warnings, logging and progress bars of transformers, then restore all three.

    One thread at a time: silencing, and building on the meta device in the ``with`` block, change
    state of the whole process.
    """
    from transformers.utils import logging as tlog

    with _ONE_AT_A_TIME, _quiet(tlog):
        yield


@contextmanager
def _quiet(tlog: Any) -> Iterator[None]:
    level, bars = tlog.get_verbosity(), tlog.is_progress_bar_enabled()
    tlog.set_verbosity(tlog.CRITICAL + 1)
    tlog.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tlog.set_verbosity(level)
        if bars:
            tlog.enable_progress_bar()


@contextmanager
def unknown_if_it_fails() -> Iterator[None]:
    """Turn any exception into :class:`UnknownArchitecture` with its first sentence.

    transformers, and even more so a model's own code, may raise anything. A lack of memory says
    nothing about the architecture, and must not change which tensors are prunable.
    """
    try:
        yield
    except (UnknownArchitecture, MemoryError):
        raise
    except Exception as error:  # see above
        first, *more = str(error).strip().split("\n")
        if first.endswith(":") and more:  # the cause is on the next line
            first = f"{first} {more[0].strip()}"
        raise UnknownArchitecture(f"{type(error).__name__}: {first[:200]}") from error


def model_class(
    folder: Path, *, trust_remote_code: bool
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class that config.json names, or the base class of its ``model_type``; and the config.

    Raises:
        UnknownArchitecture: no usable config.json, one that describes a far larger model, an
            architecture that transformers lacks, or untrusted code of the model.
    """
    raw = _read_config(folder)
    check_counts(raw)  # a config class makes a list of its layers and of its labels
    names = [str(name) for name in raw.get("architectures") or []]
    native = next((cls for name in names if (cls := _native_class(name)) is not None), None)
    if "model_type" not in raw and "auto_map" not in raw:
        # AutoConfig would guess from the folder's name
        if native is None:
            raise UnknownArchitecture("config.json has no model_type")
        return native, native.config_class.from_pretrained(folder, local_files_only=True)
    if "auto_map" in raw and native is None and not trust_remote_code:
        raise UnknownArchitecture(
            "it comes with code of its own, which needs trust_remote_code",
            hint="--trust-remote-code runs that code: use it only if you trust the author",
        )

    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    custom = _custom_class(folder, raw, names) if trust_remote_code else None
    return custom or native or _base_class(config), config


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        raw = parse_json(read_regular(path))
    except FileNotFoundError:
        raise UnknownArchitecture("there is no config.json") from None
    except (OSError, ValueError) as error:
        raise UnknownArchitecture(f"config.json cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UnknownArchitecture("config.json is not a JSON object")
    return raw


def _native_class(name: str) -> type[PreTrainedModel] | None:
    """The class of that name in transformers; fetched by name, since Auto classes import slowly."""
    import transformers

    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    return None


def _custom_class(
    folder: Path, raw: dict[str, Any], names: list[str]
) -> type[PreTrainedModel] | None:
    """The class in the model's own code that ``architectures`` names; needs trust."""
    references = [
        value[0] if isinstance(value, list) else value
        for key, value in (raw.get("auto_map") or {}).items()
        if key.startswith("AutoModel")
    ]
    named = [ref for ref in references if ref and ref.rpartition(".")[2] in names]
    if not references:
        return None

    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    found: type[PreTrainedModel] = get_class_from_dynamic_module(
        (named or references)[0], str(folder), local_files_only=True
    )
    return found


def _base_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise UnknownArchitecture(f"no model class for model_type '{config.model_type}'")
    found = MODEL_MAPPING[type(config)]
    first: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    return first


def build_on_meta(
    cls: type[PreTrainedModel], config: PreTrainedConfig, *, buffers: bool = False
) -> PreTrainedModel:
    """Build the model without storage: every parameter is on the meta device.

    Args:
        buffers: whether buffers hold the values that the model's code computes; otherwise they are
            on the meta device too.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    check_counts(config.to_dict())
    with init_empty_weights(include_buffers=not buffers), no_init_weights():
        return cls(config)


def check_counts(config: Mapping[Any, Any]) -> None:
    """Refuse a config of a model that is too large to build; each module is a Python object.

    Raises:
        UnknownArchitecture: so many layers, experts or labels that building them would fill the
            memory.
    """
    left = [config]
    while left:
        for key, value in left.pop().items():
            if isinstance(value, dict):
                left.append(value)
            most = _most(str(key))
            for count in _counts(value) if most else ():
                if count > most:
                    raise UnknownArchitecture(f"config.json asks for {count:,} in '{key}'")


def _most(key: str) -> int:
    """The limit of a config's count, by its key; 0 if the key is not a count of objects."""
    if key in ("num_labels", "id2label", "label2id"):
        return MAX_LABELS
    return MAX_MODULES if _COUNT.search(key) else 0


def _counts(value: Any) -> Iterator[int]:
    """The counts in a value: a number, numbers in a list (one per stage), or an object's size."""
    if isinstance(value, dict):
        yield len(value)
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, int):
            yield each


def map_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Destination]:
    """Where ``from_pretrained`` would load tensors of these names; unused names are left out.

    Follows the steps of transformers' ``convert_and_load_state_dict_in_model``: the renamings and
    converters of the architecture (legacy ``gamma``/``beta``, stacking of separate experts,
    DINOv2's old names), then the base model's prefix is added or dropped.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        Transpose,
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    steps = get_model_conversion_mapping(model)
    renamings = [s for s in steps if isinstance(s, WeightRenaming)]
    converters = [s for s in steps if isinstance(s, WeightConverter)]
    transposes = {
        pattern: op
        for c in converters
        for op in c.operations
        if isinstance(op, Transpose)
        for pattern in c.source_patterns
    }
    state = model.state_dict()
    tensors = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    # hooks of custom code can add keys to a state dict that no module has
    owned = {name for name, _ in tensors} & state.keys()
    prefix = model.base_model_prefix
    targets: dict[str, Destination] = {}
    # some renamings have state, so the order must be transformers' own
    for name in sorted(names, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if key not in state and name in state:
            key, pattern = rename_source_key(name, [], [], prefix, state)
        if key in owned:
            op = transposes.get(pattern) if pattern is not None else None
            only_if_needed = op is not None and op.check_dims
            targets[name] = Destination(key, op is not None, only_if_needed, pattern is not None)
    return targets
