"""Which files belong to a model besides its weights: copied byte for byte into every output."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prunectl.checkpoint.index import is_training_state, is_weights_name

_OTHER_FRAMEWORKS = (
    ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".ckpt", ".tflite", ".mlmodel",
    ".mlpackage", ".nemo", ".npz",
)  # fmt: skip
_OTHER_FOLDERS = {"onnx", "openvino", "coreml", "original", "gguf", "runs", "logs", "metal"}
_REPLACED = {"prunectl.json", "README.md"}
"""Written anew: the manifest, and the model card, which keeps the source's text."""

_NAMED_BESIDE_A_FILE = (
    "config.json", "generation_config.json", "tokenizer", "vocab", "merges.txt", "special_tokens",
    "added_tokens", "chat_template", "preprocessor_config.json", "processor_config.json",
    "spiece.model", "sentencepiece", "LICENSE", "README.md",
)  # fmt: skip


def is_side_file(name: str) -> bool:
    """Whether a file, by its path relative to the model's folder, goes along with the weights.

    Left out: weights of this and other frameworks, their indexes, training state, hidden folders,
    and what every output writes anew. Weights in a subfolder are parts of their own (the Dense
    modules of sentence-transformers) and go along, unless the folder is another framework's.
    """
    *folders, base = name.split("/")
    if any(part.startswith(".") or part.startswith("checkpoint-") for part in folders):
        return False
    if folders and folders[0].lower() in _OTHER_FOLDERS:
        return False
    if is_training_state(base) or base.endswith(_OTHER_FRAMEWORKS):
        return False
    if folders:
        return True
    return not (base.endswith(".index.json") or is_weights_name(base) or base in _REPLACED)


def side_files(names: Iterable[str]) -> tuple[str, ...]:
    """The side files among ``names``, sorted."""
    return tuple(sorted(name for name in names if is_side_file(name)))


def side_files_beside(names: Iterable[str]) -> tuple[str, ...]:
    """The side files next to a single weights file: only those that are a model's by their name.

    A weights file may lie in a folder full of other things, which must not be copied.
    """
    return tuple(
        sorted(
            name
            for name in names
            if "/" not in name and is_side_file(name) and name.startswith(_NAMED_BESIDE_A_FILE)
        )
    )


def list_folder(folder: Path) -> list[str]:
    """All files below a folder, as relative paths with '/'; links to folders are not followed."""
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(base).relative_to(folder)
        found += [(relative / name).as_posix() for name in files]
    return sorted(found)
