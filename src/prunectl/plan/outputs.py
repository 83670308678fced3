"""Which tensors an output holds, and where each gets its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import UnknownArchitecture
from prunectl.tensorspec import TensorSpec


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the output: under its name, the bytes of ``source``."""

    spec: TensorSpec
    source: StoredTensor


def output_tensors(checkpoint: Checkpoint) -> tuple[OutputTensor, ...]:
    """All tensors to write, in file order.

    A pickle may hold one tensor under two names (tied embeddings). Safetensors files do not share
    bytes, and transformers saves such a tensor once: so do we, if the model's own loading code says
    that nothing is missing then; else every name is written.
    """
    own = checkpoint.by_name
    plain = tuple(OutputTensor(tensor.spec, tensor) for tensor in checkpoint.tensors)
    if not checkpoint.aliases:
        return plain
    if not _missing(checkpoint, plain):
        return plain
    every = list(plain)
    for alias, name in checkpoint.aliases.items():
        source = own[name]
        every.append(OutputTensor(TensorSpec(alias, source.spec.dtype, source.spec.shape), source))
    swapped = tuple(t for t in every if t.spec.name not in set(checkpoint.aliases.values()))
    return swapped if not _missing(checkpoint, swapped) else tuple(every)


def _missing(checkpoint: Checkpoint, tensors: tuple[OutputTensor, ...]) -> bool:
    """Whether transformers would miss weights if the output held just these tensors."""
    from prunectl.checkpoint.modules import check_loadable

    try:
        found = check_loadable(
            checkpoint.folder,
            [tensor.spec for tensor in tensors],
            trust_remote_code=checkpoint.trust_remote_code,
        )
    except UnknownArchitecture:
        return True
    return bool(found.missing)
