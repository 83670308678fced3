"""``export --masks-only``: which weights of a pruned checkpoint are kept, one bit a weight."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import is_mask_file
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.errors import BadManifest, CannotWrite, NothingMasked, OutputConflict
from prunectl.events import OnEvent, ignore_events
from prunectl.exporting.result import MasksResult
from prunectl.exporting.survey import check_digest, held_to
from prunectl.geometry import Rows, mask_unit
from prunectl.loading.compressed import open_model
from prunectl.magnitude.masks import kept_bits, nm_violations
from prunectl.output.manifest import Manifest, read_manifest
from prunectl.output.mask_file import MaskEntry, MaskWriter
from prunectl.output.osfiles import os_errors, real_path
from prunectl.output.target import MANIFEST_NAME, check_space
from prunectl.parallel.run import Run
from prunectl.parallel.streaming import Scratch
from prunectl.pattern import NM, Unstructured, parse_pattern
from prunectl.plan.job import protected
from prunectl.plan.prunable import input_axis, prunable_tensors


@dataclass(frozen=True, slots=True)
class _Masked:
    """A tensor to write a mask of: its name, and where its bytes are stored."""

    name: str
    stored: StoredTensor
    pattern: NM | None = None
    axis: int | None = None

    @property
    def entry(self) -> MaskEntry:
        spec = self.stored.spec
        pattern = None if self.pattern is None else str(self.pattern)
        return MaskEntry(self.name, spec.shape, spec.numel, pattern, self.axis)


def export_masks(
    model: Checkpoint | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    jobs: int | None = None,
    on_event: OnEvent = ignore_events,
) -> MasksResult:
    """Write a mask of each pruned tensor: every weight whose bits are not those of +0.0 is kept.

    The pruned tensors are those of the folder's manifest; without a manifest, the prunable tensors
    that hold a +0.0. docs/masks.md specifies the file.

    Args:
        model: an open checkpoint, dense or compressed, or what :func:`open_checkpoint` takes.
        output: the file to write; its folder exists, and is not the model's.
        force: replace a file of masks there.
        jobs: threads; default one per core, eight at most.
        on_event: receives progress.

    Raises:
        NothingMasked: no tensor was pruned.
        BadManifest: the manifest cannot be used, or lists other weights.
        OutputConflict: something else is at ``output``, or ``output`` lies in the model's folder.
        SourceError, OutputError: see :mod:`prunectl.errors`; nothing is written then.
    """
    started = time.perf_counter()
    run = Run(jobs, on_event=on_event)
    checkpoint = run.opened(model, open_model)
    target = _check_target(Path(output), protected(checkpoint), force=force)
    manifest = _manifest(checkpoint)
    checkpoint = held_to(checkpoint, manifest)
    with checkpoint.open() as reader:
        if manifest is not None:
            masked = _listed(checkpoint, manifest)
        else:
            masked = _holding_zeros(checkpoint, reader, run)
        check_space(target, sum(one.entry.nbytes for one in masked))
        entries = [one.entry for one in masked]
        with MaskWriter(target, entries, source_of(checkpoint, manifest), force=force) as writer:
            zeros = _write(masked, checkpoint, reader, writer, run)
            checkpoint.check_unchanged()
            writer.close(zeros)
    return MasksResult(
        output=Path(output),
        model=checkpoint.model,
        tensors=len(masked),
        weights=sum(entry.weights for entry in entries),
        zeros=sum(zeros.values()),
        nbytes=writer.size,
        seconds=time.perf_counter() - started,
    )


def _check_target(output: Path, sources: Sequence[Path], *, force: bool) -> Path:
    """The real path to write, if it may be written."""
    with os_errors(output):
        target = real_path(output)
        for source in (path.resolve() for path in sources):
            if target == source or source in target.parents:
                why = f"lies in the source {source}, which is never changed"
                raise OutputConflict(output, why, hint="choose an -o outside it")
        if target.is_dir():
            raise OutputConflict(output, "is a folder; the masks are one file")
        if not target.parent.is_dir():
            raise CannotWrite(output, f"there is no folder {target.parent}")
        if target.exists() and not force:
            hint = "choose another -o, or replace it with --force"
            raise OutputConflict(output, "exists", hint=hint)
        if target.exists() and not is_mask_file(target):
            raise OutputConflict(output, "is not a file of masks; --force replaces only those")
    return target


# --- which tensors --------------------------------------------------------------------------------


def _manifest(checkpoint: Checkpoint) -> Manifest | None:
    path = checkpoint.folder / MANIFEST_NAME
    return read_manifest(checkpoint.folder) if os.path.lexists(path) else None


def _listed(checkpoint: Checkpoint, manifest: Manifest) -> list[_Masked]:
    """The tensors that the manifest lists as pruned."""
    path = checkpoint.folder / MANIFEST_NAME
    own = checkpoint.by_any_name
    found = []
    for record in manifest.tensors:
        if record.pattern is None:
            continue
        stored = own.get(record.name)
        if stored is None and checkpoint.kind == "file":
            continue  # one shard of several
        spec = None if stored is None else stored.spec
        if stored is None or spec is None or not spec.dtype.is_prunable:
            raise BadManifest(path, f"lists '{record.name}' as pruned, which the weights lack")
        if (spec.shape, spec.dtype.name) != (record.shape, record.dtype):
            raise BadManifest(path, f"lists '{record.name}' with another shape or dtype")
        pattern = parse_pattern(record.pattern)
        partly = record.pattern_rows is not None  # then the tensor as a whole follows no pattern
        groups = None if isinstance(pattern, Unstructured) or partly else pattern
        if groups is not None and Rows.of(spec.shape, record.input_axis).length % groups.m:
            raise BadManifest(path, f"lists '{record.name}' as {groups}, which its shape rules out")
        axis = record.input_axis
        if groups is not None and axis is None:
            axis = len(spec.shape) - 1
        found.append(_Masked(record.name, stored, groups, axis))
    if not found:
        raise NothingMasked(checkpoint.model, f"{MANIFEST_NAME} lists no pruned tensor")
    return found


def _holding_zeros(checkpoint: Checkpoint, reader: TensorReader, run: Run) -> list[_Masked]:
    """The prunable tensors that hold a +0.0; the read of a pruned tensor stops early."""
    roles = checkpoint.roles.roles
    candidates = [checkpoint.by_name[name] for name in prunable_tensors(checkpoint)]

    def work(tensor: StoredTensor, scratch: Scratch) -> bool:
        uint = _uint(tensor)
        return any(not block.view(uint).all() for _, block in scratch.blocks(reader, tensor))

    found = []
    total = sum(tensor.spec.nbytes for tensor in candidates)
    with run.phase("looking for zeros", total) as advance:
        for tensor, holds in run.tensors(candidates, work):
            advance(tensor.spec.nbytes, tensor.name)
            if holds:
                axis = input_axis(tensor.spec, roles[tensor.name])
                found.append(_Masked(tensor.name, tensor, None, axis))
    if not found:
        raise NothingMasked(
            checkpoint.model, "there is no prunectl.json, and no prunable tensor holds a zero"
        )
    return found


# --- their bits ------------------------------------------------------------------------------


def _write(
    masked: Sequence[_Masked],
    checkpoint: Checkpoint,
    reader: TensorReader,
    writer: MaskWriter,
    run: Run,
) -> dict[str, int]:
    """Write the bits of all masks; return zeros by tensor name."""
    zeros = {}

    def work(one: _Masked, scratch: Scratch) -> tuple[_Masked, int]:
        return one, _write_one(one, checkpoint, reader, writer, scratch)

    with run.phase("writing masks", sum(one.stored.spec.nbytes for one in masked)) as advance:
        for one, count in run.ordered(masked, work):
            zeros[one.name] = count
            advance(one.stored.spec.nbytes, one.name)
    return zeros


def _write_one(
    one: _Masked,
    checkpoint: Checkpoint,
    reader: TensorReader,
    writer: MaskWriter,
    scratch: Scratch,
) -> int:
    spec, uint, groups = one.stored.spec, _uint(one.stored), one.pattern
    rows = Rows.of(spec.shape, one.axis)
    unit = mask_unit(1 if groups is None else rows.tile(groups.m))
    zeros, digest = 0, blake3.blake3()
    for offset, block in scratch.blocks(reader, one.stored, unit):
        digest.update(block.data)
        codes = block.view(uint)
        if groups is not None:
            tiles = rows.groups(codes, groups.m)
            if nm_violations(tiles, groups.n, groups.m):
                raise BadManifest(
                    checkpoint.folder / MANIFEST_NAME,
                    f"lists '{one.name}' as {groups}, which its weights do not follow",
                    hint="the weights were changed after pruning",
                )
        zeros += codes.size - int(np.count_nonzero(codes))
        writer.write(one.name, offset // uint.itemsize // 8, kept_bits(codes).data)
    check_digest(checkpoint, one.stored, digest.hexdigest())
    return zeros


def _uint(tensor: StoredTensor) -> np.dtype[Any]:
    return np.dtype(f"u{tensor.spec.dtype.bits // 8}")


def source_of(checkpoint: Checkpoint, manifest: Manifest | None) -> Mapping[str, Any]:
    """The checkpoint that the masks belong to: the manifest's source, or the checkpoint itself.

    Of a local path only the last component is written, since the file is made to be shared.
    """
    of = checkpoint if manifest is None else manifest.source
    model = of.model
    if manifest is None and checkpoint.kind == "folder":
        model = str(checkpoint.folder.resolve())  # "." names nothing
    return {
        "model": Path(model).name if of.kind in ("folder", "file") else model,
        "kind": of.kind,
        "repo_id": of.repo_id,
        "commit": of.commit,
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256} for file in of.files
        ],
    }
