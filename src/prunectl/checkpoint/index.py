"""The weight files of a folder, and the content of its index.

Works on lists of names, so that a Hub repository can be judged before anything is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prunectl.checkpoint.stored import check_name
from prunectl.documents import parse_json, read_regular
from prunectl.errors import BadCheckpoint, NoWeights, UnsupportedCheckpoint

PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
COMPRESSED_SUFFIX = ".prunectl.safetensors"
_SUFFIXES = {
    "safetensors": (".safetensors",),
    "compressed": (COMPRESSED_SUFFIX,),
    "pickle": PICKLE_SUFFIXES,
}
_TRAINING_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state)[\w.-]*"
)
_SHARD = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})(\.prunectl)?\.\w+")
_INDEX_SUFFIX = ".index.json"
_LONGEST_FILE_NAME = 255
"""Limit in bytes on all common file systems."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """The weight files of one format that together make up the checkpoint.

    Attributes:
        format: ``safetensors``, ``pickle``, or ``compressed`` (what ``prunectl export`` writes).
        files: their names, sorted; empty while only the index is known.
        index: name of the index file, or None.
    """

    format: str
    files: tuple[str, ...]
    index: str | None = None


def is_training_state(name: str) -> bool:
    """Whether a file holds optimizer, scheduler or random state, by its name."""
    return _TRAINING_STATE.fullmatch(name.rsplit("/", 1)[-1]) is not None


def is_weights_name(name: str) -> bool:
    """Whether prunectl reads weights from a file of this name."""
    suffixes = (".safetensors", *PICKLE_SUFFIXES)
    return name.endswith(suffixes) and not is_training_state(name)


def find_weights(names: Iterable[str], where: str) -> WeightSet:
    """Choose the weights among a folder's top-level file names, as transformers would.

    Safetensors take precedence over pickles, a single file over an index, an index over loose
    shards.

    Raises:
        NoWeights: no readable weights.
        UnsupportedCheckpoint: GGUF or an adapter only.
        BadCheckpoint: several unrelated pickles; missing shards; a dense and a compressed
            checkpoint in one folder.
    """
    top = sorted(name for name in names if "/" not in name)
    weights = [n for n in top if is_weights_name(n) and not n.startswith("adapter_model")]
    tensors = [name for name in weights if name.endswith(".safetensors")]
    compressed = [name for name in tensors if name.endswith(COMPRESSED_SUFFIX)]
    dense = [name for name in tensors if not name.endswith(COMPRESSED_SUFFIX)]
    if compressed and dense:
        raise BadCheckpoint(
            where,
            f"holds a compressed and a dense checkpoint ({compressed[0]}, {dense[0]})",
            hint="remove one of them",
        )
    found = _choose(top, compressed, "compressed", f"model{COMPRESSED_SUFFIX}")
    found = found or _choose(top, dense, "safetensors", "model.safetensors")
    if found:
        _check_families(found, where)
        return found
    pickles = [name for name in weights if name.endswith(PICKLE_SUFFIXES)]
    found = _choose(top, pickles, "pickle", "pytorch_model.bin")
    if found is None:
        raise _nothing(top, where)
    if found.index is None and len(found.files) > 1 and not all(map(_SHARD.fullmatch, found.files)):
        raise BadCheckpoint(
            where,
            f"holds several checkpoints ({', '.join(found.files[:4])}) and no index",
            hint="give the path of one of these files",
        )
    _check_families(found, where)
    return found


def _choose(top: list[str], weights: list[str], format: str, standard: str) -> WeightSet | None:
    if standard in weights:
        return WeightSet(format, (standard,))
    indexes = [n for n in top if n.endswith(_INDEX_SUFFIX) and _index_of(n, format)]
    preferred = standard + _INDEX_SUFFIX
    if preferred in indexes or len(indexes) == 1:
        return WeightSet(format, (), preferred if preferred in indexes else indexes[0])
    # Mistral's own consolidated.safetensors repeats the weights under other names
    loose = [n for n in weights if not n.startswith("consolidated")] or weights
    return WeightSet(format, tuple(loose)) if loose else None


def _index_of(name: str, format: str) -> bool:
    stem = name.removesuffix(_INDEX_SUFFIX)
    is_compressed = stem.endswith(COMPRESSED_SUFFIX)
    return stem.endswith(_SUFFIXES[format]) and is_compressed == (format == "compressed")


def _check_families(found: WeightSet, where: str) -> None:
    """without an index, only the shards' names show that one is missing"""
    families: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(_SHARD.fullmatch, found.files)):
        families.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in families.items():
        if len(numbers) != count:
            raise BadCheckpoint(
                where,
                f"has no index and {len(numbers)} of {count} shards of {stem}: some are missing",
            )
    if found.format == "pickle" and len(families) > 1:
        stems = ", ".join(sorted(stem for stem, _ in families))
        raise BadCheckpoint(
            where, f"holds several checkpoints ({stems}) and no index", hint="remove one of them"
        )


def _nothing(top: list[str], where: str) -> NoWeights | UnsupportedCheckpoint:
    if any(name.endswith(".gguf") for name in top):
        return UnsupportedCheckpoint(
            where,
            "holds GGUF only, which is quantized for llama.cpp",
            hint="use the safetensors checkpoint from which the GGUF was made",
        )
    if any(name.startswith("adapter_model") for name in top):
        return UnsupportedCheckpoint(
            where,
            "holds a PEFT adapter, not a whole model",
            hint="merge it into its base model first (peft: merge_and_unload, save_pretrained)",
        )
    others = [n for n in top if n.endswith((".h5", ".msgpack", ".onnx", ".ot", ".ckpt"))]
    return NoWeights(where, f"only {', '.join(others[:3])}" if others else "")


def read_index(path: Path) -> dict[str, str]:
    """Read an index file: tensor name -> file name.

    Raises:
        BadCheckpoint: damaged, or naming files outside the folder.
    """
    try:
        weight_map = parse_json(read_regular(path))["weight_map"]
    except OSError as error:
        raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from None
    except (KeyError, TypeError):
        raise BadCheckpoint(path, "not an index file: it has no weight_map") from None
    except ValueError as error:
        raise BadCheckpoint(path, f"not an index file: {error}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(path, "its weight_map is not a list of tensors")
    for tensor, file in weight_map.items():
        check_name(path, tensor)
        if not isinstance(file, str) or not is_plain_name(file):
            raise BadCheckpoint(path, f"tensor '{tensor}' points outside the folder: {file!r}")
        if not is_weights_name(file):
            raise BadCheckpoint(path, f"tensor '{tensor}' points at {file!r}, not a weights file")
        if len(file.encode(errors="replace")) > _LONGEST_FILE_NAME:
            raise BadCheckpoint(path, f"tensor '{tensor}' points at a name too long for a file")
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is only a file name: no folder, parent or control character."""
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\\x00-\x1f]", name)


def check_index(path: Path, weight_map: dict[str, str], tensors: dict[str, str]) -> None:
    """Compare an index with the contents of its shards.

    Args:
        weight_map: tensor -> file, from the index.
        tensors: tensor -> file, from the shards' headers.

    Raises:
        BadCheckpoint: a tensor is missing or in another file.
    """
    for tensor, file in weight_map.items():
        actual = tensors.get(tensor)
        if actual != file:
            where = f"is in {actual}" if actual else "is in none of the shards"
            raise BadCheckpoint(path, f"says that tensor '{tensor}' is in {file}, but it {where}")
