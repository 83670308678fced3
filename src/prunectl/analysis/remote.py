"""Facts about a model on the Hub before it is downloaded: its tensors, and the space it takes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunectl.analysis.result import SourceFacts, TensorStats
from prunectl.analysis.summary import source_facts
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.remote import RemoteModel
from prunectl.checkpoint.roles import TensorRole
from prunectl.output.osfiles import free_bytes
from prunectl.output.shards import parse_size, plan_shards
from prunectl.plan.prunable import not_prunable_reason, prunable_tensors
from prunectl.tensorspec import TensorSpec


@dataclass(frozen=True, slots=True)
class RoleSize:
    """Sums over the tensors of one role: numbers of tensors and of elements, and bytes."""

    tensors: int = 0
    weights: int = 0
    prunable_weights: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class RemoteTensor:
    """A tensor as declared in its header, with its role; ``reason``: why it is not prunable."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    prunable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that a download would fetch, and whether it is cached already."""

    name: str
    nbytes: int
    weights: bool
    cached: bool


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """Space needed on a file system.

    Attributes:
        purposes: ``download``, ``output``, or both on the same file system.
        folders: of each purpose.
        needed, free: in bytes.
    """

    purposes: tuple[str, ...]
    folders: tuple[str, ...]
    needed: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether the free space suffices."""
        return self.needed <= self.free


@dataclass(frozen=True, slots=True)
class RemoteSpace:
    """Sizes on the Hub, and the local space that downloading and pruning take.

    Attributes:
        files: those in the cache after a download.
        hub_bytes: size of all files.
        download_bytes: size of those that the cache lacks.
        output_bytes: size of a pruned dense copy: every weight and side file, without the manifest.
        disks: one entry for each file system.
    """

    files: tuple[RemoteFile, ...]
    hub_bytes: int
    download_bytes: int
    output_bytes: int
    disks: tuple[DiskNeed, ...]

    @property
    def fits(self) -> bool:
        """Whether everything fits."""
        return all(disk.fits for disk in self.disks)

    def to_json(self) -> dict[str, Any]:
        """The space as JSON values."""
        from prunectl.to_json import to_json

        document: dict[str, Any] = to_json(self)
        disks = [
            {**entry, "fits": disk.fits}
            for entry, disk in zip(document["disks"], self.disks, strict=True)
        ]
        return {**document, "disks": disks, "fits": self.fits}


@dataclass(frozen=True, slots=True)
class RemoteAnalysis:
    """The result of ``prunectl analyze --remote``.

    Attributes:
        model, repo_id, revision, commit, format: the model on the Hub.
        source: its description; None for pickles, whose headers cannot be read remotely.
        roles: sums by role, in file order; empty for pickles.
        tensors: in file order; empty for pickles.
        space: sizes and space needed.
        warnings: sentences.
    """

    model: str
    repo_id: str
    revision: str | None
    commit: str
    format: str
    source: SourceFacts | None
    roles: dict[str, RoleSize]
    tensors: tuple[RemoteTensor, ...]
    space: RemoteSpace
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        from prunectl.to_json import to_json

        return {"schema": "prunectl.remote/1", **to_json(self), "space": self.space.to_json()}


def analyze_remote(remote: RemoteModel, output: str | os.PathLike[str] = ".") -> RemoteAnalysis:
    """Summarize the headers of a model on the Hub; no weights are read.

    Args:
        remote: from :func:`prunectl.open_remote`.
        output: folder of a pruned copy; only the free space there is read.
    """
    source: SourceFacts | None = None
    roles: dict[str, RoleSize] = {}
    tensors: tuple[RemoteTensor, ...] = ()
    warnings: tuple[str, ...] = ()
    if remote.checkpoint is not None:
        source, roles, tensors = _contents(remote.checkpoint)
        if source.quantization:
            warnings = (f"the checkpoint is quantized ({source.quantization}): nothing to prune",)
    return RemoteAnalysis(
        model=remote.model,
        repo_id=remote.listing.repo_id,
        revision=remote.listing.revision,
        commit=remote.listing.commit,
        format=remote.format,
        source=source,
        roles=roles,
        tensors=tensors,
        space=remote_space(remote, output),
        warnings=warnings,
    )


def _contents(
    checkpoint: Checkpoint,
) -> tuple[SourceFacts, dict[str, RoleSize], tuple[RemoteTensor, ...]]:
    prunable, named = prunable_tensors(checkpoint, fp8=True), checkpoint.roles.roles
    stats = [_stats(t.spec, named[t.name], prunable) for t in checkpoint.tensors]
    roles: dict[str, RoleSize] = {}
    for tensor, one in zip(checkpoint.tensors, stats, strict=True):
        sums = roles.get(one.role, RoleSize())
        roles[one.role] = RoleSize(
            sums.tensors + 1,
            sums.weights + one.numel,
            sums.prunable_weights + one.numel * one.prunable,
            sums.nbytes + tensor.spec.nbytes,
        )
    tensors = tuple(
        RemoteTensor(t.name, t.dtype, t.shape, t.role, t.layer, t.prunable, t.reason) for t in stats
    )
    return source_facts(checkpoint, stats), roles, tensors


def _stats(spec: TensorSpec, role: TensorRole, prunable: Collection[str]) -> TensorStats:
    """A tensor from its header alone; nothing is measured."""
    is_prunable = spec.name in prunable
    reason = "" if is_prunable else not_prunable_reason(spec, role)
    return TensorStats(
        spec.name, spec.dtype.label, spec.shape, spec.numel, str(role.role), role.stack,
        role.layer, role.component, is_prunable, reason, spec.dtype.is_float,
    )  # fmt: skip


def remote_space(
    remote: RemoteModel, output: str | os.PathLike[str] = ".", max_shard_size: int | None = None
) -> RemoteSpace:
    """Bytes that downloading and pruning a model would take.

    Args:
        max_shard_size: of the copy, in bytes; default as in ``prunectl prune``.
    """
    weights = {file.name for file in remote.weights}
    sides = sum(file.size for file in remote.files if file.name not in weights)
    if remote.checkpoint is None:
        # without headers, the files' sizes are the best estimate
        output_bytes = sides + sum(file.size for file in remote.weights)
    else:
        specs = [tensor.spec for tensor in remote.checkpoint.tensors]
        layout = plan_shards(specs, max_shard_size or parse_size("5GB"))
        output_bytes = sides + layout.total_bytes
    return RemoteSpace(
        files=tuple(
            RemoteFile(file.name, file.size, file.name in weights, file.name in remote.cached)
            for file in remote.files
        ),
        hub_bytes=sum(file.size for file in remote.files),
        download_bytes=remote.download_bytes,
        output_bytes=output_bytes,
        disks=_disks(
            [
                ("download", remote.cache, remote.download_bytes),
                ("output", Path(output), output_bytes),
            ]
        ),
    )


def _disks(needs: Iterable[tuple[str, Path, int]]) -> tuple[DiskNeed, ...]:
    """Needed space by file system: two folders on the same one share its space."""
    found: dict[int, DiskNeed] = {}
    for purpose, folder, needed in needs:
        real = Path(os.path.abspath(folder))  # noqa: PTH100 - what is not there yet stays as it is
        # Path.exists() may raise
        existing = next(path for path in (real, *real.parents) if os.path.exists(path))  # noqa: PTH110
        device = existing.stat().st_dev
        before = found.get(device, DiskNeed((), (), 0, free_bytes(existing)))
        found[device] = DiskNeed(
            (*before.purposes, purpose),
            (*before.folders, str(real)),
            before.needed + needed,
            before.free,
        )
    return tuple(found.values())
