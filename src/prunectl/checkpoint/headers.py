"""The headers of all files of a checkpoint, checked against each other and against the index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prunectl.checkpoint.index import WeightSet, check_index, read_index
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadCheckpoint, NoWeights, UnsupportedCheckpoint

Header = tuple[list[StoredTensor], dict[str, str]]
"""The tensors of a weights file, and the metadata of its header."""


def shard_names(
    where: Path, folder: Path, weights: WeightSet, is_there: Callable[[str], bool]
) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """The weight files, sorted, and the content of the index, if there is one.

    Raises:
        BadCheckpoint: the index is damaged, or names a missing file.
    """
    if not weights.index:
        return weights.files, None
    weight_map = read_index(folder / weights.index)
    names = tuple(sorted(set(weight_map.values())))
    for name in names:
        if not is_there(name):
            raise BadCheckpoint(where / weights.index, f"names the shard {name}, which is missing")
    return names, weight_map


def check_headers(
    where: Path,
    weights: WeightSet,
    weight_map: dict[str, str] | None,
    headers: Mapping[str, Header],
) -> tuple[tuple[StoredTensor, ...], dict[str, str]]:
    """All tensors in file order, and the aliases; refuses contradictory headers.

    Raises:
        BadCheckpoint: the headers contradict each other or the index.
        UnsupportedCheckpoint: a file of masks.
        NoWeights: no tensors.
    """
    for name, (_, metadata) in headers.items():
        if metadata.get("format", "").startswith("prunectl.masks/"):
            raise UnsupportedCheckpoint(
                where / name,
                "masks, not weights",
                hint=f"apply them to a model: prunectl prune MODEL --mask {name} -o DIR",
            )
    stored = [tensor for tensors, _ in headers.values() for tensor in tensors]
    tensors, aliases = _one_place_each(where, stored)
    if weight_map is not None and weights.index:
        check_index(where / weights.index, weight_map, {t.name: t.file for t in stored})
    if not tensors:
        raise NoWeights(str(where), f"{', '.join(list(headers)[:3])}: no tensors inside")
    return tensors, aliases


def _one_place_each(
    folder: Path, stored: Iterable[StoredTensor]
) -> tuple[tuple[StoredTensor, ...], dict[str, str]]:
    """Separate tensors that own their bytes from other names of the same bytes (tied weights)."""
    owners: dict[object, StoredTensor] = {}
    names: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for tensor in stored:
        if tensor.name in names:
            raise BadCheckpoint(
                folder, f"tensor '{tensor.name}' is in {names[tensor.name]} and in {tensor.file}"
            )
        names[tensor.name] = tensor.file
        key = (tensor.file, tensor.offset, tensor.spec.dtype, tensor.spec.shape, tensor.strides)
        owner = owners.setdefault(key, tensor) if tensor.spec.numel else tensor
        if owner is not tensor:
            aliases[tensor.name] = owner.name
        elif not tensor.spec.numel:
            owners[(tensor.name,)] = tensor
    return tuple(owners.values()), aliases
