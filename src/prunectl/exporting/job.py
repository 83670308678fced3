"""Everything about an export that is decided, or refused, before a weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from prunectl._version import __version__
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.errors import BadManifest, InvalidOption
from prunectl.exporting.survey import Expected, held_to
from prunectl.layouts.table import AUTO, DENSE, LAYOUTS
from prunectl.output.manifest import Manifest, read_manifest
from prunectl.output.parts import PartsShard, plan_parts
from prunectl.output.shards import ShardLayout, parse_size, plan_shards
from prunectl.output.target import MANIFEST_NAME, check_target
from prunectl.pattern import NM, Unstructured, parse_pattern
from prunectl.plan.job import OutputTensor, output_tensors, protected
from prunectl.plan.prunable import input_axis, misfit_reason, prunable_tensors, refuse_quantized


@dataclass(frozen=True)
class Job:
    """The source, output and split into files of an export.

    Attributes:
        checkpoint: the source; a compressed one appears dense.
        target: the folder to write.
        layout, pattern, max_shard_size, command: as given.
        manifest: of the source's folder, or None.
        expected: the N:M that tensors should follow, by name.
        axes: input axes by tensor name, where not the last, for tensors without a stated pattern.
        outputs: the tensors to write, by name, in file order.
        shards: compressed files; empty for a dense export.
        dense: the files of a dense export, else None.
    """

    checkpoint: Checkpoint
    target: Path
    layout: str
    pattern: NM | None
    max_shard_size: int
    command: str
    manifest: Manifest | None
    expected: dict[str, Expected]
    axes: dict[str, int]
    outputs: dict[str, OutputTensor]
    shards: tuple[PartsShard, ...]
    dense: ShardLayout | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, as the manifest records them."""
        return {
            "layout": self.layout,
            "pattern": str(self.pattern) if self.pattern else None,
            "max_shard_size": self.max_shard_size,
            "version": __version__,
        }

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the output's weight bytes."""
        shards = self.dense.shards if self.dense else self.shards
        facts = {
            "export": self.arguments,
            "source": self.checkpoint.identity(),
            "expected": {name: [str(one.pattern), one.axis] for name, one in self.expected.items()},
            "shards": [[shard.name, [spec.name for spec in shard.specs]] for shard in shards],
        }
        return blake3.blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def prepare(
    checkpoint: Checkpoint,
    target: Path,
    layout: str,
    pattern: NM | None,
    max_shard_size: int | str,
    force: bool,
    command: str,
) -> Job:
    """Decide everything that can be decided, and refused, before a weight is read.

    Raises:
        InvalidOption: an unknown layout; a pattern for the dense one.
        UnsupportedCheckpoint: the source is quantized, and not by prunectl.
        BadManifest: the source's manifest lists other tensors.
        OutputConflict: something exists at the target.
    """
    is_dense = layout == DENSE
    if layout not in (AUTO, *LAYOUTS):
        known = ", ".join((AUTO, *LAYOUTS))
        raise InvalidOption(f"layout '{layout}' is not known", hint=f"one of {known}")
    if is_dense and pattern is not None:
        raise InvalidOption(f"--pattern has no meaning with --layout {layout}", hint="leave it out")
    refuse_quantized(checkpoint, "export the checkpoint from before quantization")
    size = parse_size(max_shard_size)
    check_target(target, force=force, protected=protected(checkpoint))
    manifest = _manifest_of(checkpoint)
    checkpoint = held_to(checkpoint, manifest)
    outputs = {tensor.spec.name: tensor for tensor in output_tensors(checkpoint)}
    specs = [tensor.spec for tensor in outputs.values()]
    return Job(
        checkpoint=checkpoint,
        target=target,
        layout=layout,
        pattern=pattern,
        max_shard_size=size,
        command=command,
        manifest=manifest,
        expected={} if is_dense else _expected(checkpoint, manifest, pattern),
        axes={} if is_dense or manifest else _axes(checkpoint),
        outputs=outputs,
        shards=() if is_dense else plan_parts(specs, size),
        dense=plan_shards(specs, size) if is_dense else None,
    )


def _manifest_of(checkpoint: Checkpoint) -> Manifest | None:
    """The manifest of the source's folder; refuse one that lists other tensors."""
    path = checkpoint.folder / MANIFEST_NAME
    if checkpoint.kind == "file" or not path.exists():
        return None
    manifest = read_manifest(checkpoint.folder)
    here = {t.name: (t.spec.dtype.name, t.spec.shape) for t in checkpoint.tensors}
    listed = {record.name: (record.dtype, record.shape) for record in manifest.tensors}
    for name in here.keys() | listed.keys():
        if here.get(name) != listed.get(name):
            raise BadManifest(
                path,
                f"and the weight files disagree about tensor '{name}'",
                hint="the folder was changed: prunectl verify shows how",
            )
    return manifest


def _expected(
    checkpoint: Checkpoint, manifest: Manifest | None, pattern: NM | None
) -> dict[str, Expected]:
    """The N:M pattern of each tensor that should follow one: the given, else the manifest's.

    A tensor whose pattern covers only some rows counts as pruned without a pattern.
    """
    if pattern is not None:
        return _of_all(checkpoint, pattern)
    found = {}
    for record in manifest.tensors if manifest else ():
        own = parse_pattern(record.pattern) if record.pattern else None
        if own is None or isinstance(own, Unstructured) or record.input_axis is None:
            continue
        if record.pattern_rows is not None:
            continue
        if record.shape[record.input_axis] % own.m == 0:
            found[record.name] = Expected(own, record.input_axis)
    return found


def _axes(checkpoint: Checkpoint) -> dict[str, int]:
    """Input axes other than the last, along which N:M groups are looked for."""
    roles = checkpoint.roles.roles
    axes = {t.name: input_axis(t.spec, roles[t.name]) for t in checkpoint.tensors}
    last = {t.name: len(t.spec.shape) - 1 for t in checkpoint.tensors}
    return {name: axis for name, axis in axes.items() if axis is not None and axis != last[name]}


def _of_all(checkpoint: Checkpoint, pattern: NM) -> dict[str, Expected]:
    found = {}
    for name, spec in prunable_tensors(checkpoint).items():
        role = checkpoint.roles.roles[name]
        axis = input_axis(spec, role)
        if axis is not None and not misfit_reason(spec, role, pattern):
            found[name] = Expected(pattern, axis)
    return found
