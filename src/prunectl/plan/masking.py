"""Masks from a file, matched with the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import blake3

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import Mask, MaskFile, digest_bits
from prunectl.checkpoint.reader import TensorReader
from prunectl.errors import BadMaskFile, MaskMismatch
from prunectl.plan.plan import Plan
from prunectl.tensorspec import TensorSpec


def fit_masks(checkpoint: Checkpoint, file: MaskFile) -> dict[str, Mask]:
    """The masks by the checkpoint's tensor names.

    A mask may have a further name of a tensor that is stored once (tied weights in a pickle).

    Raises:
        MaskMismatch: a tensor that the model lacks, has in another shape, or that cannot be pruned.
    """
    specs = {tensor.name: tensor.spec for tensor in checkpoint.tensors}
    fitted: dict[str, Mask] = {}
    problems = []
    for name, mask in file.masks.items():
        owner = name if name in specs else checkpoint.aliases.get(name, "")
        problem = _problem(specs.get(owner), mask)
        if problem:
            problems.append(f"'{name}' {problem}")
        elif name == owner:
            fitted[owner] = mask
        else:
            fitted.setdefault(owner, mask)
    if problems:
        raise MaskMismatch(file.path, checkpoint.model, problems)
    return fitted


def _problem(spec: TensorSpec | None, mask: Mask) -> str:
    """Why a mask cannot be applied; '' if it can."""
    if spec is None:
        return "is not in the model"
    if spec.shape != mask.shape:
        return f"has shape {list(spec.shape)}, its mask {list(mask.shape)}"
    if not spec.dtype.is_prunable:
        return f"is {spec.dtype.label}, which cannot be pruned"
    return ""


def check_twins(checkpoint: Checkpoint, file: MaskFile, plan: Plan, reader: TensorReader) -> None:
    """Check that masks under several names of one tensor agree.

    Raises:
        BadMaskFile: they differ.
    """
    chosen = {entry.spec.name: entry.mask for entry in plan.tensors}
    for name, mask in file.masks.items():
        own = chosen.get(checkpoint.aliases.get(name, name))
        if own is None or own is mask:
            continue
        digests = []
        for one in (own, mask):
            digest = blake3.blake3()
            digest_bits(file, one, reader, digest)
            digests.append(digest.digest())
        if digests[0] != digests[1]:
            why = f"'{own.name}' and '{name}' are one tensor of {checkpoint.model}"
            raise BadMaskFile(
                file.path,
                f"{why}, and their masks differ",
                hint="the masks come from a model that does not tie the two",
            )


def mask_argument(file: MaskFile, digest: str) -> dict[str, Any]:
    """The file of masks as the manifest records it."""
    return {"file": file.path.name, "blake3": digest, "source": dict(file.source)}


def source_note(checkpoint: Checkpoint, file: MaskFile) -> tuple[str, ...]:
    """A sentence for masks that were made from another model."""
    source = file.source
    if source["repo_id"] and checkpoint.repo_id:
        same = (source["repo_id"], source["commit"]) == (checkpoint.repo_id, checkpoint.commit)
    else:
        sizes = {one["name"]: one["size"] for one in source["files"]}
        same = sizes == {one.name: one.size for one in checkpoint.files}
    if same:
        return ()
    return (
        f"The masks were made from {_described(source)}, which is not the very model given here. "
        "Names and shapes fit, so they are applied.",
    )


def _described(source: Mapping[str, Any]) -> str:
    commit = f" at commit {source['commit'][:12]}" if source["commit"] else ""
    text = f"{source['repo_id'] or source['model'] or 'another model'}{commit}"
    # The name is untrusted and goes to a terminal.
    return "".join(letter if letter.isprintable() else "?" for letter in text)
