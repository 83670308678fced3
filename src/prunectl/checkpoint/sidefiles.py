"""The files of a model besides its weights, copied byte for byte into every output."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from prunectl.checkpoint.index import WeightSet, is_training_state, is_weights_name

_OTHER_FRAMEWORKS = (
    ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".ckpt", ".tflite", ".mlmodel",
    ".mlpackage", ".nemo", ".npz",
)  # fmt: skip
_OTHER_FOLDERS = {"onnx", "openvino", "coreml", "original", "gguf", "runs", "logs", "metal"}
_SKIPPED_FOLDERS = {"venv", "wandb", "__pycache__", "node_modules"}
_PRIVATE_KEYS = ("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519")
_PRIVATE_SUFFIXES = (".pem", ".key")
_REPLACED = {"prunectl.json", "README.md"}
"""Written anew: the manifest, and the model card, which keeps the source's text."""

_NAMED_BESIDE_A_FILE = (
    "config.json", "generation_config.json", "tokenizer", "vocab", "merges.txt", "special_tokens",
    "added_tokens", "chat_template", "preprocessor_config.json", "processor_config.json",
    "spiece.model", "sentencepiece", "LICENSE", "README.md",
)  # fmt: skip


def is_side_file(name: str) -> bool:
    """Whether a file, by its path relative to the model's folder, is copied with the weights.

    Left out: weights of this and other frameworks, their indexes, training state, hidden files and
    folders (except .gitattributes), private keys, installed packages, and files that every output
    writes anew. Weights in a subfolder are modules of their own (the Dense modules of
    sentence-transformers) and are copied, unless the folder is another framework's.
    """
    *folders, base = name.split("/")
    if any(_is_skipped_folder(part) or part.startswith("checkpoint-") for part in folders):
        return False
    if base.startswith(".") and base != ".gitattributes":
        return False
    if base.startswith(_PRIVATE_KEYS) or base.lower().endswith(_PRIVATE_SUFFIXES):
        return False
    if folders and folders[0].lower() in _OTHER_FOLDERS:
        return False
    if is_training_state(base) or base.endswith(_OTHER_FRAMEWORKS):
        return False
    if folders:
        return True
    return not (base.endswith(".index.json") or is_weights_name(base) or base in _REPLACED)


def _is_skipped_folder(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS


def is_model_file(name: str) -> bool:
    """Whether a file at the top of a model's folder is part of the model, by its name.

    Parts are the weights, the files that are read with them, and an output's own description;
    results of measurements are not.
    """
    is_index = name.endswith(".index.json")
    return (
        is_index
        or is_weights_name(name)
        or name in _REPLACED
        or name.startswith(_NAMED_BESIDE_A_FILE)
    )


def side_files(names: Iterable[str]) -> tuple[str, ...]:
    """The side files among ``names``, sorted."""
    return tuple(sorted(name for name in names if is_side_file(name)))


def beside_weights(names: Collection[str], weights: WeightSet) -> list[str]:
    """Files of a repository next to its weight files: index, side files, card, manifest."""
    index = [weights.index] if weights.index else []
    return [*index, *side_files(names), *(name for name in sorted(_REPLACED) if name in names)]


def side_files_beside(names: Iterable[str]) -> tuple[str, ...]:
    """The side files next to a single weights file: only those with a model's file names.

    A weights file may lie in a folder full of unrelated files, which must not be copied.
    """
    return tuple(
        sorted(
            name
            for name in names
            if "/" not in name and is_side_file(name) and name.startswith(_NAMED_BESIDE_A_FILE)
        )
    )


def list_folder(folder: Path) -> list[str]:
    """The files of a model's folder and below, as relative paths with '/'.

    Left out are hidden folders, installed packages and files that :func:`is_own_file` rejects;
    links to folders are not followed.
    """
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_skipped_folder(name))
        relative = Path(base).relative_to(folder)
        found += [
            (relative / name).as_posix() for name in files if is_own_file(folder, Path(base, name))
        ]
    return sorted(found)


def link_notes(folder: Path, weights: Collection[str]) -> tuple[str, ...]:
    """A sentence for each link in a folder that leads to a folder or out of this one.

    Weights may lie anywhere: their links are followed.
    """
    links = sorted(path for path in folder.iterdir() if path.is_symlink())
    left = [path.name for path in links if not is_own_file(folder, path)]
    return tuple(
        f"left out: {name}, a link that leads elsewhere" for name in left if name not in weights
    )


def is_own_file(folder: Path, path: Path) -> bool:
    """Whether ``path`` is a regular file that belongs to ``folder``, or a link to one.

    A link out of the folder is rejected, since it may lead to anything, except the links of a
    snapshot in the Hub's cache to its own blobs. A broken link is accepted: reading it reports a
    missing file, instead of a silent omission.
    """
    if not path.is_symlink():
        return path.is_file()
    if not path.exists():
        return True
    # checked last: a folder that looks like a cache, with blobs, may come from an archive
    target, home = path.resolve(), folder.resolve()
    is_blob = home.parent.name == "snapshots" and target.parent == home.parents[1] / "blobs"
    return target.is_file() and (is_blob or target.is_relative_to(home))
