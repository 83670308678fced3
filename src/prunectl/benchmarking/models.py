"""The models that are compared: loaded, of random weights, or made of one another in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.benchmarking.errors import CannotRun, NotEnoughMemory
from prunectl.benchmarking.limits import weight_bytes
from prunectl.benchmarking.loading import measure_loading
from prunectl.benchmarking.result import LoadCost, Side, Skipped
from prunectl.benchmarking.settings import PRESETS, BenchSettings
from prunectl.benchmarking.zeros import (
    Zeros,
    block_matrices,
    fill_in_memory,
    prune_in_memory,
    zeros_in_memory,
)
from prunectl.device import free_memory, is_out_of_memory
from prunectl.documents import read_object
from prunectl.errors import InvalidOption, PrunectlError
from prunectl.loading.weights import count_zeros
from prunectl.plan.prunable import prunable_tensors, recorded_prunable
from prunectl.runtime.executions import DENSE

if TYPE_CHECKING:
    import torch

    from prunectl.checkpoint.checkpoint import Checkpoint


_MOST_LAYERS = 10_000


def find_config(name: str) -> dict[str, Any]:
    """The config of a preset, or of a config.json, or of a folder with one.

    Raises:
        InvalidOption: the name is neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    document = read_object(path)
    if "model_type" not in document:
        raise InvalidOption(
            f"--random-weights '{name}' is no preset, and no config with a model_type",
            hint=f"presets: {', '.join(PRESETS)}",
        )
    return document


def random_model(config: dict[str, Any], name: str, device: Any, dtype: str, seed: int) -> Any:
    """A model of an architecture with random weights, in evaluation mode, on a device.

    Args:
        dtype: ``auto`` takes the config's, else float32.

    Raises:
        CannotRun: transformers has no such architecture, or refuses the config.
        NotEnoughMemory: the weights alone exceed the free memory.
        RuntimeError: as torch raises it where memory is missing.
    """
    import torch
    import transformers

    fields = {key: value for key, value in config.items() if key != "model_type"}
    too_deep = [
        key
        for key, value in config.items()
        if "layers" in key and isinstance(value, int | float) and value > _MOST_LAYERS
    ]
    if too_deep:
        raise CannotRun(name, f"its config is refused: more than {_MOST_LAYERS} in {too_deep[0]}")
    wanted = dtype if dtype != "auto" else str(config.get("dtype") or config.get("torch_dtype"))
    kind = getattr(torch, wanted.removeprefix("torch."), None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        kind = torch.float32
    try:
        made = transformers.AutoConfig.for_model(config["model_type"], **fields)
        architecture = (config.get("architectures") or [""])[0]
        cls = getattr(transformers, architecture, None) or transformers.AutoModel
        build = getattr(cls, "_from_config", None) or cls.from_config
        with torch.device("meta"):
            needed = sum(one.nbytes for one in build(made, dtype=kind).parameters())
        free = free_memory(torch.device(device))
        if free is not None and needed > free:
            raise NotEnoughMemory(name, str(device), f"{needed:,} bytes of weights, {free:,} free")
        torch.manual_seed(seed)
        with torch.device(device):
            model = build(made, dtype=kind)
    except (PrunectlError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers and its configs may raise anything at all
        if is_out_of_memory(error):
            raise
        first = " ".join(str(error).split()) or type(error).__name__
        raise CannotRun(name, f"its config is refused: {first[:200]}") from None
    return model.eval().requires_grad_(False)


SPARSE_ENOUGH = 0.01
"""Share of zeros from which a model counts as pruned; trained weights have hardly any."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a side: an open checkpoint, or the config of a random model.

    ``name`` is as the user wrote it, ``short`` the last part of a path. ``execution`` is how its
    weights are held in memory.
    """

    name: str
    short: str
    folder: Path | None
    disk_bytes: int | None
    weights: int
    config: dict[str, Any]
    trust_remote_code: bool = False
    checkpoint: Checkpoint | None = None
    execution: str = DENSE

    @property
    def is_compressed(self) -> bool:
        """Whether its weights are stored in another layout than dense."""
        return self.checkpoint is not None and self.checkpoint.opener is not None


@dataclass(frozen=True, slots=True)
class LoadedSide:
    """A side with its model in memory."""

    side: Side
    model: Any


def source_of(checkpoint: Checkpoint) -> Source:
    """The source of a dense or compressed checkpoint.

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
    """The source of an architecture with random weights.

    Raises:
        InvalidOption: the name is no preset and no config.
    """
    label = f"{name}, random weights"
    return Source(label, label, None, None, 0, find_config(name))


def load_side(
    source: Source, label: str, device: torch.device, settings: BenchSettings
) -> LoadedSide:
    """Load a model, and measure the cost of loading if the settings ask for that.

    Raises:
        CannotRun: loading fails in its own process.
        SourceError: as :func:`prunectl.load_model`.
        NotEnoughMemory: it does not fit.
    """
    cost: LoadCost | None = None
    from prunectl.runtime.models import compress_model, reasons_for_dense, weights_of

    with memory_errors(source.name, device, "loading the model"):
        if source.folder is None:
            model = random_model(source.config, label, device, settings.dtype, settings.seed)
            model = compress_model(model, source.execution)
        else:
            if settings.measure_loading:
                cost = measure_loading(
                    source.folder,
                    str(device),
                    settings.dtype,
                    execution=source.execution,
                    trust_remote_code=source.trust_remote_code,
                )
            model = _load(source, device, settings)
    side = _side(model, label, source.name)
    if source.checkpoint is not None:
        side = replace(side, zeros=_as_evaluated(source.checkpoint, side.zeros))
    side = replace(side, disk_bytes=source.disk_bytes, loading=cost)
    if source.execution != DENSE:
        held = weights_of(model)
        side = replace(
            side,
            kernels=source.execution,
            converted=len(held),
            forms=dict(Counter(one.form for one in held.values())),
            kept_dense=reasons_for_dense(model, source.execution),
        )
    return LoadedSide(side, model)


def _as_evaluated(checkpoint: Checkpoint, found: Zeros) -> Zeros:
    """Replace the zeros by those of the prunable weights, as the manifest counts them."""
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
        if settings.device == "auto":  # but not if the user named it
            place = "auto"  # accelerate keeps the rest on the host
    assert source.folder is not None
    with quiet_transformers():
        model = load_model(
            source.folder,
            device_map=place,
            dtype=settings.dtype,
            execution=source.execution,
            trust_remote_code=source.trust_remote_code,
        )
    return model.eval().requires_grad_(False)


def made_sides(loaded: LoadedSide, settings: BenchSettings) -> Iterator[LoadedSide]:
    """The side that a single model is compared with: itself with zeros, or without its own.

    Raises:
        RuntimeError, MemoryError: memory is missing.
    """
    pattern = settings.pattern
    if pattern is None or not loaded.side.zeros.matrices:
        return
    device = next(loaded.model.parameters()).device
    free = free_memory(device) if device.type == "cpu" else None
    needed = sum(one.weight.nbytes for one in block_matrices(loaded.model))
    if free is not None and needed > free:  # Linux would grant it, and kill the process later
        raise MemoryError
    if loaded.side.zeros.sparsity < SPARSE_ENOUGH:
        model, made = prune_in_memory(loaded.model, pattern), f"pruned to {pattern} in memory"
        label = f"{loaded.side.label}, {pattern}"
    else:
        model, made = fill_in_memory(loaded.model), "zeros filled in memory"
        label = f"{loaded.side.label}, filled"
    yield LoadedSide(replace(_side(model, label, loaded.side.model), made=made), model)


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
    """Turn torch's errors for missing memory into :class:`NotEnoughMemory`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(name, str(device), what) from None


def skipped(what: str, error: BaseException) -> Skipped:
    """The record of a failure."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Skipped(what, "out of memory" if is_out_of_memory(error) else lines[0][:200])
