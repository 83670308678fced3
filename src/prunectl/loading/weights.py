"""A checkpoint's tensors, decoded one at a time on access."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Self

from blake3 import blake3

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_elements, read_tensor
from prunectl.errors import BadCheckpoint, InvalidOption
from prunectl.loading.compressed import open_model
from prunectl.loading.reader import Packed, PartsReader
from prunectl.parallel.run import Run
from prunectl.tensorspec import TensorSpec

if TYPE_CHECKING:
    import torch


class Weights(Mapping[str, "torch.Tensor"]):
    """Tensors by name, read and decoded when indexed; nothing is cached.

    Additional names of tensors that are stored once (tied weights in a pickle) are keys too.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._reader = checkpoint.open()
        self._tensors = checkpoint.by_any_name

    def __getitem__(self, name: str) -> torch.Tensor:
        """The whole tensor on the CPU.

        Raises:
            KeyError: there is no tensor of that name.
            BadCheckpoint: its bytes are damaged; a stored hash detects any damage.
        """
        tensor = self._tensors[name]
        digest = self.checkpoint.digests.get(name)
        return self._read(tensor, 0, tensor.spec.numel, tensor.spec.shape, digest)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of the first axis; only their parts of the file are decoded.

        Raises:
            InvalidOption: the tensor has no such rows.
            KeyError, BadCheckpoint: as for the whole tensor; no hash is checked.
        """
        tensor = self._tensors[name]
        shape = tensor.spec.shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise InvalidOption(
                f"tensor '{name}' of shape {list(shape)} has no rows {start}:{stop}"
            )
        width = math.prod(shape[1:])
        return self._read(tensor, start * width, stop * width, (stop - start, *shape[1:]), None)

    def spec(self, name: str) -> TensorSpec:
        """Name, dtype and shape, from the header."""
        return self._tensors[name].spec

    def packed(self, name: str) -> Packed | None:
        """How a tensor is stored in parts; None for a dense one."""
        reader = self._reader
        return (
            reader.packed.get(self._tensors[name].name) if isinstance(reader, PartsReader) else None
        )

    def check(self, name: str) -> None:
        """Compare the sizes of a tensor's parts with its shape.

        Raises:
            BadCheckpoint: they do not fit.
        """
        self._reader.check(self._tensors[name])

    def _read(
        self,
        tensor: StoredTensor,
        first: int,
        last: int,
        shape: tuple[int, ...],
        digest: str | None,
    ) -> torch.Tensor:
        path = self.checkpoint.folder / tensor.file
        hasher = blake3()
        seen = None if digest is None else hasher.update
        flat = read_elements(self._reader, tensor, first, last, path, seen)
        if digest is not None and hasher.hexdigest() != digest:
            raise BadCheckpoint(
                path,
                f"tensor '{tensor.name}' is damaged: it does not match its stored hash",
            )
        return flat.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def count_zeros(
    checkpoint: Checkpoint, names: Iterable[str], reader: TensorReader
) -> tuple[int, int]:
    """Zeros of both signs in some tensors of a dense or compressed checkpoint, and their weights.

    Raises:
        BadCheckpoint: a tensor cannot be read.
    """
    zeros = weights = 0
    for name in names:
        tensor = read_tensor(reader, checkpoint.by_any_name[name])
        weights += tensor.numel()
        zeros += tensor.numel() - int(tensor.count_nonzero())
    return zeros, weights


def open_weights(
    model: str | os.PathLike[str] | Checkpoint,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Weights:
    """The tensors of a dense or compressed checkpoint, by name, decoded on access.

    Args:
        model: Hub id, folder, weights file, ``demo``, or an open checkpoint.
        revision, token, cache_dir: as for :func:`prunectl.open_checkpoint`.

    Raises:
        SourceError: the checkpoint cannot be read.
    """
    if isinstance(model, Checkpoint):
        return Weights(model)
    return Weights(open_model(model, revision=revision, token=token, cache_dir=cache_dir))


def load_state_dict(
    model: str | os.PathLike[str] | Checkpoint,
    *,
    device: str | torch.device = "cpu",
    jobs: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a dense or compressed checkpoint, as ``safetensors.torch.load_file`` returns.

    Tensors keep their dtypes, and every bit; hashes in the files are checked. Tied tensors of a
    pickle are one tensor under several names.

    Args:
        model: Hub id, folder, weights file, ``demo``, or an open checkpoint.
        device: where each tensor is moved as soon as it is decoded.
        jobs: threads; default one per core, eight at most.
        revision, token, cache_dir: as for :func:`prunectl.open_checkpoint`.

    Raises:
        SourceError: the checkpoint cannot be read, or a tensor is damaged; the message names it.
    """
    run = Run(jobs)
    opened = open_weights(model, revision=revision, token=token, cache_dir=cache_dir)
    with opened as weights:
        names = [tensor.name for tensor in weights.checkpoint.tensors]

        def work(name: str, scratch: object) -> torch.Tensor:
            return weights[name].to(device)

        found = dict(zip(names, run.ordered(names, work), strict=True))
        aliases = weights.checkpoint.aliases
    return found | {alias: found[name] for alias, name in aliases.items()}
