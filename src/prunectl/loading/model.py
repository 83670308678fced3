"""A transformers model from a dense or compressed checkpoint."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.checkpoint.module_tree import check_counts
from prunectl.checkpoint.opening import open_stored
from prunectl.errors import BadCheckpoint, UnknownArchitecture
from prunectl.loading.hook import register
from prunectl.loading.semi_structured import check_mode, convert
from prunectl.runtime.executions import DENSE

if TYPE_CHECKING:
    import torch


def load_model(
    model: str | os.PathLike[str],
    *,
    device_map: Any = None,
    dtype: str | torch.dtype | None = "auto",
    semi_structured: str = "never",
    execution: str = DENSE,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """Load a dense or compressed model for inference, or dense for training.

    The module tree is built without memory (accelerate's empty weights). Each tensor is decoded,
    checked against its hash and moved to its device on its own: in addition to the model, the host
    holds only the few tensors that are being decoded. A weight of the model that is missing is an
    error; none is initialized at random.

    Args:
        model: Hub id, folder, or ``demo``.
        device_map: as in transformers: ``auto``, a device, or a dict; None is the CPU.
        dtype: ``auto`` is that of the checkpoint.
        semi_structured: on CUDA, whether 2:4 weights are converted for torch's sparse kernels:
            ``never``, ``auto`` (where a kernel supports them), or ``always`` (an error if none can
            be). This halves their memory; whether it is faster depends on shapes and batch size.
        execution: ``dense``; ``compressed``: the weights of linear layers and embeddings stay
            compressed in memory, for inference on the CPU; ``auto``: where that is not slower on
            this machine.
        revision, token, cache_dir: as for :func:`prunectl.open_checkpoint`.
        trust_remote_code: let the model's own Python code run.
        options: passed on to ``from_pretrained``.

    Returns:
        The transformers model, of the class that its config names, in evaluation mode.

    Raises:
        SourceError: the checkpoint cannot be read, or a tensor is damaged.
        BadCheckpoint: weights are missing.
        UnknownArchitecture: transformers has no class for it, or its config describes a far larger
            model.
        UnsupportedCheckpoint: ``execution`` is ``compressed``, and ``device_map`` not the CPU.
        InvalidOption: an unknown ``execution`` or ``semi_structured``, or ``always`` and no weight
            can be converted.
    """
    check_mode(semi_structured)
    stored = open_stored(
        model,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )
    if stored.kind == "file":
        raise BadCheckpoint(
            stored.model,
            "is one weights file; a model needs its config too",
            hint="name the folder; prunectl.load_state_dict reads single files",
        )
    check_counts(stored.config)
    if stored.format == "compressed":
        register()
    if execution != DENSE:
        from prunectl.loading.execution import Compressed

        register()
        options["quantization_config"] = Compressed(execution=execution)
    kind = _model_class(stored.folder, stored.config, trust_remote_code)
    with _typed_errors(stored.model), warnings.catch_warnings():
        # transformers warns that the folder's config is used, and then takes the execution given
        warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)
        loaded, info = kind.from_pretrained(
            stored.folder,
            device_map=device_map,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    missing = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if missing:
        raise BadCheckpoint(
            stored.model,
            f"{len(missing)} weights of the model are not in it: {', '.join(missing[:3])}",
            hint="prunectl verify DIR says what is wrong with an output of prunectl",
        )
    convert(loaded, semi_structured)
    return loaded


@contextmanager
def _typed_errors(model: str) -> Iterator[None]:
    """Turn errors of transformers about the folder into ours."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadCheckpoint(
            model,
            f"transformers cannot load it: {why}",
            hint="prunectl verify DIR says what is wrong with an output of prunectl",
        ) from error


def _model_class(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> Any:
    """The class that the config names; AutoModel if transformers has no such class."""
    import transformers

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    auto_map = config.get("auto_map")
    if trust_remote_code and isinstance(auto_map, dict):
        for auto, target in auto_map.items():
            if isinstance(target, str) and target.endswith(f".{name}") and name:
                return getattr(transformers, auto)
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    if "model_type" not in config:
        raise UnknownArchitecture(f"{folder}: its config.json names no model_type")
    return transformers.AutoModel
