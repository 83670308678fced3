"""The stand-in for ``safetensors.safe_open`` by which transformers and vLLM read our files."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prunectl.checkpoint.index import COMPRESSED_SUFFIX
from prunectl.loading.weights import Weights, load_state_dict, open_weights

if TYPE_CHECKING:
    import torch

    from prunectl.loading.mapped import MappedFile

VLLM = "vllm.model_executor.model_loader.weight_utils"
_USERS = ("transformers.modeling_utils", "transformers.integrations.accelerate", VLLM)
"""Modules of transformers and vLLM that hold ``safe_open`` under their own name."""


def install() -> None:
    """Make transformers' and vLLM's reading of safetensors files handle compressed ones.

    Called when the first compressed folder is loaded; other files are read as before.
    """
    loader = sys.modules.get(VLLM)
    if loader is not None and not hasattr(loader.load_file, "of_prunectl"):
        loader.load_file = _file_loader(loader.load_file)  # type: ignore[attr-defined]
    for name in _USERS:
        module = sys.modules.get(name)
        original = getattr(module, "safe_open", None)
        if module is not None and original is not None and not hasattr(original, "of_prunectl"):
            module.safe_open = _opener(original)  # type: ignore[attr-defined]


def _opener(original: Any) -> Any:
    def safe_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        if str(filename).endswith(COMPRESSED_SUFFIX):
            return SafeOpen(Path(filename))
        return original(filename, *args, **kwargs)

    safe_open.of_prunectl = True  # type: ignore[attr-defined]
    return safe_open


def _file_loader(original: Any) -> Any:
    """For ``safetensors.torch.load_file``, which vLLM calls with ``enable_multithread_load``."""

    def load_file(filename: Any, *args: Any, **kwargs: Any) -> Any:
        if str(filename).endswith(COMPRESSED_SUFFIX):
            return load_state_dict(filename)
        return original(filename, *args, **kwargs)

    load_file.of_prunectl = True  # type: ignore[attr-defined]
    return load_file


class _Loading(threading.local):
    """What a thread loads: threads may load one file side by side.

    Attributes:
        opened: paths of compressed files opened through :class:`SafeOpen`.
        mapped: paths of compressed files whose weights may stay in them, and the dtype of their
            model.
    """

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.mapped: dict[str, torch.dtype] = {}


loading = _Loading()


class SafeOpen:
    """The part of ``safetensors.safe_open`` that loaders use, for a compressed file."""

    def __init__(self, path: Path) -> None:
        self._weights: Weights = open_weights(path)
        self._file = _mapped_file(path)
        loading.opened.add(str(path))

    def keys(self) -> list[str]:
        return list(self._weights)

    def metadata(self) -> dict[str, str]:
        return {"format": "pt"}

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def get_slice(self, name: str) -> Slice:
        return Slice(self._weights, name, self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._weights.close()


def _mapped_file(path: Path) -> MappedFile | None:
    dtype = loading.mapped.get(str(path))
    if dtype is None:
        return None
    from prunectl.loading.mapped import MappedFile

    return MappedFile(path, dtype)


class Slice:
    """A tensor that is decoded when indexed, or mapped if all of it is asked for."""

    def __init__(self, weights: Weights, name: str, file: MappedFile | None = None) -> None:
        self._weights, self._name, self._file = weights, name, file
        self._spec = weights.spec(name)

    def get_shape(self) -> list[int]:
        return list(self._spec.shape)

    def get_dtype(self) -> str:
        return self._spec.dtype.name

    def __getitem__(self, index: Any) -> torch.Tensor:
        if index is Ellipsis and self._file is not None:
            weight = self._file.weight(self._weights, self._name)
            if weight is not None:
                return weight
        first = index[0] if isinstance(index, tuple) and index else index
        if isinstance(first, slice) and first.step in (None, 1) and self._spec.shape:
            start, stop, _ = first.indices(self._spec.shape[0])
            if (start, stop) == (0, self._spec.shape[0]):  # whole tensor: its hash can be checked
                return self._weights[self._name][index]
            rows = self._weights.rows(self._name, start, max(start, stop))
            return rows[(slice(None), *index[1:])] if isinstance(index, tuple) else rows
        return self._weights[self._name][index]
