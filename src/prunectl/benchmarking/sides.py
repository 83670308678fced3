"""The models that are compared: loaded, and made of one another in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.benchmarking.errors import CannotRun, NotEnoughMemory
from prunectl.benchmarking.limits import weight_bytes
from prunectl.benchmarking.loading import LoadCost, measure_loading
from prunectl.benchmarking.presets import find_config, random_model
from prunectl.benchmarking.result import Side, Skipped
from prunectl.benchmarking.settings import BenchSettings
from prunectl.benchmarking.zeros import (
    Zeros,
    block_matrices,
    fill_in_memory,
    prune_in_memory,
    zeros_in_memory,
)
from prunectl.device import free_memory, is_out_of_memory
from prunectl.loading.weights import count_zeros
from prunectl.plan.prunable import prunable_tensors, recorded_prunable

if TYPE_CHECKING:
    import torch

    from prunectl.checkpoint.checkpoint import Checkpoint

SPARSE_ENOUGH = 0.01
"""Share of zeros from which a model counts as pruned; trained weights hold hardly any."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a side comes from: an open checkpoint, or the config of a random model.

    ``name`` is what the user wrote, ``short`` the last part of a path.
    """

    name: str
    short: str
    folder: Path | None
    disk_bytes: int | None
    weights: int
    config: dict[str, Any]
    trust_remote_code: bool = False
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """A side with its model in memory; ``origin`` is the label of what it was made from, or ''."""

    side: Side
    model: Any
    origin: str = ""


def source_of(checkpoint: Checkpoint) -> Source:
    """A checkpoint, dense or compressed.

    Raises:
        CannotRun: it is one weights file, without the config of a model.
    """
    if checkpoint.kind == "file":
        raise CannotRun(
            checkpoint.model, "it is one weights file, without a config", hint="name its folder"
        )
    return Source(
        checkpoint.model,
        checkpoint.folder.resolve().name if checkpoint.kind == "folder" else checkpoint.model,
        checkpoint.folder,
        sum(file.size for file in checkpoint.files),
        checkpoint.nbytes,
        checkpoint.config,
        checkpoint.trust_remote_code,
        checkpoint,
    )


def random_source(name: str) -> Source:
    """An architecture with random weights.

    Raises:
        InvalidOption: no preset, and no config.
    """
    label = f"{name}, random weights"
    return Source(label, label, None, None, 0, find_config(name))


def load_side(source: Source, label: str, device: torch.device, settings: BenchSettings) -> Live:
    """Measure what loading costs, if that is wanted, and load the model.

    Raises:
        CannotRun: loading fails in its own process.
        SourceError: as :func:`prunectl.load_model`.
        NotEnoughMemory: it does not fit.
    """
    cost: LoadCost | None = None
    with memory_errors(source.name, device, "loading the model"):
        if source.folder is None:
            model = random_model(source.config, label, device, settings.dtype, settings.seed)
        else:
            if settings.measure_loading:
                cost = measure_loading(
                    source.folder,
                    str(device),
                    settings.dtype,
                    trust_remote_code=source.trust_remote_code,
                )
            model = _load(source, device, settings)
    side = _side(model, label, source.name)
    if source.checkpoint is not None:
        side = replace(side, zeros=_as_evaluated(source.checkpoint, side.zeros))
    return Live(replace(side, disk_bytes=source.disk_bytes, loading=cost), model)


def _as_evaluated(checkpoint: Checkpoint, found: Zeros) -> Zeros:
    """The zeros of the prunable weights, as ``evaluate`` and the manifest count them."""
    names = prunable_tensors(checkpoint, recorded=recorded_prunable(checkpoint))
    with checkpoint.open() as reader:
        zeros, weights = count_zeros(checkpoint, names, reader)
    return replace(found, weights=weights, zeros=zeros)


def _load(source: Source, device: torch.device, settings: BenchSettings) -> Any:
    from prunectl.checkpoint.module_tree import quiet_transformers
    from prunectl.loading.model import load_model

    free = free_memory(device)
    place: Any = None if device.type == "cpu" else str(device)
    if free is not None and source.weights > free:
        if device.type == "cpu":
            raise NotEnoughMemory(
                source.name, "cpu", f"{source.weights:,} bytes of weights, {free:,} bytes free"
            )
        if settings.device == "auto":  # a device that is named is meant
            place = "auto"  # accelerate keeps on the host what does not fit
    assert source.folder is not None
    with quiet_transformers():
        model = load_model(
            source.folder,
            device_map=place,
            dtype=settings.dtype,
            trust_remote_code=source.trust_remote_code,
        )
    return model.eval().requires_grad_(False)


def made_sides(live: Live, settings: BenchSettings) -> Iterator[Live]:
    """What a model that is alone is compared with: itself with zeros, or without its own.

    Raises:
        RuntimeError, MemoryError: there is no memory for it.
    """
    pattern = settings.pattern
    if pattern is None or not live.side.zeros.matrices:
        return
    device = next(live.model.parameters()).device
    free = free_memory(device) if device.type == "cpu" else None
    needed = sum(one.weight.nbytes for one in block_matrices(live.model))
    if free is not None and needed > free:  # Linux would give it, and end the process later
        raise MemoryError
    if live.side.zeros.sparsity < SPARSE_ENOUGH:
        model, made = prune_in_memory(live.model, pattern), f"pruned to {pattern} in memory"
        label = f"{live.side.label}, {pattern}"
    else:
        model, made = fill_in_memory(live.model), "zeros filled in memory"
        label = f"{live.side.label}, filled"
    yield Live(replace(_side(model, label, live.side.model), made=made), model)


def _side(model: Any, label: str, name: str) -> Side:
    parameters = list(model.parameters())
    largest: dict[str, int] = {}
    for one in parameters:
        kind = str(one.dtype).removeprefix("torch.")
        largest[kind] = largest.get(kind, 0) + one.numel()
    return Side(
        label=label,
        model=name,
        kernels="dense",
        made="",
        architecture=type(model).__name__,
        dtype=max(largest, key=lambda kind: largest[kind], default=""),
        parameters=sum(one.numel() for one in parameters),
        weight_bytes=weight_bytes(model),
        disk_bytes=None,
        zeros=zeros_in_memory(model),
        converted=0,
        loading=None,
    )


@contextmanager
def memory_errors(name: str, device: torch.device, what: str) -> Iterator[None]:
    """Turn torch's ways to say that there is no memory into :class:`NotEnoughMemory`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(name, str(device), what) from None


def skipped(what: str, error: BaseException) -> Skipped:
    """What is recorded of something that failed."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Skipped(what, "out of memory" if is_out_of_memory(error) else lines[0][:200])
