"""Everything about a prune that is decided, or refused, before a weight is read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blake3

from prunectl._version import __version__
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.errors import BadCheckpoint, InvalidOption, UnsupportedCheckpoint
from prunectl.plain import plain
from prunectl.plan import Plan, TensorPlan, make_plan
from prunectl.pruning.outputs import OutputTensor, output_tensors
from prunectl.settings import PruneSettings
from prunectl.sink.shards import ShardLayout, parse_size, plan_shards
from prunectl.sink.target import check_space, check_target, is_safe_relative


@dataclass(frozen=True)
class Job:
    """Everything that is decided before the first byte is written."""

    checkpoint: Checkpoint
    target: Path
    plan: Plan
    settings: PruneSettings
    max_shard_size: int
    outputs: dict[str, OutputTensor]
    layout: ShardLayout
    command: str

    @cached_property
    def planned(self) -> dict[str, TensorPlan]:
        """The plan by tensor name."""
        return {entry.spec.name: entry for entry in self.plan.tensors}


def plan_prune(model: Checkpoint | str | os.PathLike[str], settings: PruneSettings) -> Plan:
    """What ``prune`` would do to every tensor; reads no weights.

    Raises:
        UnsupportedCheckpoint: the checkpoint is quantized.
        UsageError: settings that contradict themselves or match nothing.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    if checkpoint.quantization:
        raise UnsupportedCheckpoint(
            checkpoint.model,
            f"the checkpoint is quantized ({checkpoint.quantization})",
            hint="prune the checkpoint from before quantization, then quantize the result",
        )
    specs = [tensor.spec for tensor in checkpoint.tensors]
    return make_plan(specs, checkpoint.roles.roles, settings)


def prepare(
    checkpoint: Checkpoint,
    target: Path,
    settings: PruneSettings,
    max_shard_size: int | str,
    force: bool,
    command: str,
) -> Job:
    """Everything that can be refused before a weight is read."""
    plan = plan_prune(checkpoint, settings)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    if size < 1:
        raise InvalidOption(f"max_shard_size: {size} is not a positive size", hint="such as 5GB")
    check_target(target, force=force, protected=protected(checkpoint))
    outputs = {tensor.spec.name: tensor for tensor in output_tensors(checkpoint)}
    layout = plan_shards([tensor.spec for tensor in outputs.values()], size)
    check_space(target, layout.total_bytes + _side_bytes(checkpoint))
    return Job(checkpoint, target, plan, settings, size, outputs, layout, command)


def _side_bytes(checkpoint: Checkpoint) -> int:
    """Size of all side files; one that cannot be read is found here, before anything is written."""
    size = 0
    for name in checkpoint.side_files:
        path = checkpoint.folder / name
        if not is_safe_relative(name):
            raise BadCheckpoint(
                path, "a file name that not every system can hold", hint="rename it"
            )
        try:
            size += path.stat().st_size
        except OSError as error:
            raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from None
    return size


def protected(checkpoint: Checkpoint) -> list[Path]:
    """What the output must not touch: the source's folder, or the one file and its side files."""
    if checkpoint.kind == "file":
        return [checkpoint.folder / file.name for file in checkpoint.files]
    return [checkpoint.folder]


def arguments(job: Job) -> dict[str, Any]:
    settings = job.settings
    return {
        "method": "magnitude",
        "sparsity": settings.sparsity,
        "pattern": str(settings.pattern),
        "scope": str(settings.scope),
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "rules": [
            {
                "match": list(rule.match),
                "sparsity": rule.sparsity,
                "pattern": str(rule.pattern) if rule.pattern else None,
                "scope": str(rule.scope) if rule.scope else None,
                "skip": rule.skip,
            }
            for rule in settings.rules
        ],
        "max_shard_size": job.max_shard_size,
    }


def fingerprint(job: Job) -> str:
    """Digest of all that decides the output's weight bytes."""
    facts = {
        "version": __version__,
        "source": job.checkpoint.identity(),
        "arguments": arguments(job),
        "roles": plain(job.checkpoint.roles.roles),
        "shards": [[s.name, [spec.name for spec in s.specs]] for s in job.layout.shards],
    }
    return blake3.blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()
