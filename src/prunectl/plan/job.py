"""A prune before it reads weights: everything that is decided or refused from headers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3

from prunectl._version import __version__
from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.mask_file import MaskFile, read_masks
from prunectl.checkpoint.opening import open_checkpoint
from prunectl.checkpoint.stored import StoredTensor
from prunectl.device import choose_device
from prunectl.errors import BadCheckpoint, InvalidOption, UnknownArchitecture
from prunectl.output.shards import ShardLayout, parse_size, plan_shards
from prunectl.output.target import check_space, check_target, is_safe_relative
from prunectl.plan.masking import fit_masks, mask_argument, source_note
from prunectl.plan.plan import Plan, TensorPlan, make_plan, plan_masks
from prunectl.plan.prunable import refuse_quantized
from prunectl.plan.settings import Calibration, PruneSettings, check_complete
from prunectl.tensorspec import TensorSpec
from prunectl.to_json import to_json

if TYPE_CHECKING:
    import torch

    from prunectl.data.source import Samples


@dataclass(frozen=True)
class Job:
    """A prune with everything decided that does not depend on weights.

    ``mask_digest`` is the BLAKE3 of ``masks``; ``samples`` are the calibration's.
    """

    checkpoint: Checkpoint
    target: Path
    plan: Plan
    settings: PruneSettings
    max_shard_size: int
    outputs: dict[str, OutputTensor]
    layout: ShardLayout
    command: str
    masks: MaskFile | None = None
    mask_digest: str = ""
    samples: Samples | None = None

    @cached_property
    def planned(self) -> dict[str, TensorPlan]:
        """The plan by tensor name."""
        return {entry.spec.name: entry for entry in self.plan.tensors}


def plan_prune(model: Checkpoint | str | os.PathLike[str], settings: PruneSettings) -> Plan:
    """What ``prune`` would do to every tensor; reads no weights.

    Raises:
        UnsupportedCheckpoint: the checkpoint is quantized.
        UsageError: settings that contradict themselves or match nothing.
        BadMaskFile: the file of masks cannot be used.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    return _plan(checkpoint, settings)[0]


def _plan(checkpoint: Checkpoint, settings: PruneSettings) -> tuple[Plan, MaskFile | None]:
    refuse_quantized(checkpoint)
    specs = [tensor.spec for tensor in checkpoint.tensors]
    if settings.mask is None:
        return make_plan(specs, checkpoint.roles.roles, settings), None
    check_complete(settings)
    file = read_masks(settings.mask)
    plan = plan_masks(specs, checkpoint.roles.roles, settings, fit_masks(checkpoint, file))
    return replace(plan, notes=source_note(checkpoint, file)), file


def prepare(
    checkpoint: Checkpoint,
    target: Path,
    settings: PruneSettings,
    max_shard_size: int | str,
    force: bool,
    command: str,
) -> Job:
    """Plan a prune, and refuse a target that cannot be written."""
    job = plan_job(checkpoint, target, settings, max_shard_size, command)
    check_target(target, force=force, protected=protected(checkpoint, settings))
    check_space(target, job.layout.total_bytes + side_bytes(checkpoint))
    return job


def plan_job(
    checkpoint: Checkpoint,
    target: Path,
    settings: PruneSettings,
    max_shard_size: int | str,
    command: str,
) -> Job:
    """Plan a prune without looking at the target."""
    plan, masks = _plan(checkpoint, settings)
    size = parse_size(max_shard_size)
    outputs = {tensor.spec.name: tensor for tensor in output_tensors(checkpoint)}
    layout = plan_shards([tensor.spec for tensor in outputs.values()], size)
    return Job(checkpoint, target, plan, settings, size, outputs, layout, command, masks)


def side_bytes(checkpoint: Checkpoint) -> int:
    """Size of all side files, in bytes; an unreadable one is refused before anything is written."""
    size = 0
    for name in checkpoint.side_files:
        path = checkpoint.folder / name
        if not is_safe_relative(name):
            raise BadCheckpoint(
                path, "a file name that not every system can hold", hint="rename it"
            )
        try:
            with path.open("rb") as file:
                size += os.fstat(file.fileno()).st_size
        except OSError as error:
            raise BadCheckpoint(path, f"cannot be read: {error.strerror}") from None
    return size


def protected(checkpoint: Checkpoint, settings: PruneSettings | None = None) -> list[Path]:
    """Paths that the output must not replace: the source and the file of masks."""
    masks = [settings.mask] if settings is not None and settings.mask is not None else []
    if checkpoint.kind == "file":
        return [*masks, *(checkpoint.folder / file.name for file in checkpoint.files)]
    return [*masks, checkpoint.folder]


def arguments(job: Job) -> dict[str, Any]:
    """What was asked for, as the manifest records it."""
    settings = job.settings
    if job.masks is not None:
        return {
            "method": "mask",
            "mask": mask_argument(job.masks, job.mask_digest),
            **_calibration(job),
            "max_shard_size": job.max_shard_size,
        }
    return {
        "method": str(settings.method),
        **_calibration(job),
        "sparsity": settings.sparsity,
        "pattern": str(settings.pattern),
        "scope": str(settings.scope),
        **_budget(job),
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


def _budget(job: Job) -> dict[str, Any]:
    """The budget as the manifest records it; empty where every fitting tensor takes the pattern."""
    if any(pool.is_budget for pool in job.plan.pools):
        return {"budget": str(job.settings.budget)}
    return {}


def _calibration(job: Job) -> dict[str, Any]:
    """The calibration as the manifest records it; empty without one."""
    calibration = job.settings.calibration
    if calibration is None or job.samples is None:
        return {}
    return {
        "refine": job.settings.refine,
        "reconstruct": job.settings.reconstruct,
        "calibration": {
            **job.samples.record,
            "damping": calibration.damping,
            "dtype": str(dtype_of(calibration, job.checkpoint)).removeprefix("torch."),
            "device": device_of(calibration).type,
        },
    }


def fingerprint(job: Job) -> str:
    """BLAKE3 of everything that decides the output's weight bytes.

    The device is left out: it only rounds differently, and a run that found it full may continue on
    another one.
    """
    asked = arguments(job)
    asked.get("calibration", {}).pop("device", None)
    facts = {
        "version": __version__,
        "source": job.checkpoint.identity(),
        "arguments": asked,
        "roles": to_json(job.checkpoint.roles.roles),
        "shards": [[s.name, [spec.name for spec in s.specs]] for s in job.layout.shards],
    }
    return blake3.blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# --- the tensors of an output ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the output, with the bytes of ``source``."""

    spec: TensorSpec
    source: StoredTensor


def output_tensors(checkpoint: Checkpoint) -> tuple[OutputTensor, ...]:
    """All tensors to write, in file order.

    A pickle may hold one tensor under two names (tied embeddings). Safetensors files cannot share
    bytes. Such a tensor is written once if the model's loading code finds nothing missing then, as
    transformers saves it; otherwise under every name.
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
    """Whether transformers would miss weights if the output held only these tensors."""
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


# --- device and dtype of a calibration ------------------------------------------------------------


def device_of(settings: Calibration) -> torch.device:
    """The device that runs the samples.

    Raises:
        InvalidOption: it is not known, or not there.
    """
    return choose_device(settings.device)


def dtype_of(settings: Calibration, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of the forward: fp32 on the CPU, where bf16 is slow, else that of the largest
    tensor.

    Raises:
        InvalidOption: it is not known.
    """
    import torch

    from prunectl.checkpoint.torch_tensors import torch_dtype

    wanted = settings.dtype
    if wanted != "auto":
        names = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        name = names.get(wanted, wanted)
        if name not in names.values():  # torch has others, in which no model runs
            raise InvalidOption(
                f"dtype '{wanted}' is not known", hint="auto, float32, bfloat16 or float16"
            )
        found: torch.dtype = getattr(torch, name)
        return found
    if device_of(settings).type == "cpu":
        return torch.float32
    largest = max(checkpoint.tensors, key=lambda tensor: tensor.spec.nbytes)
    return torch_dtype(largest.spec)
