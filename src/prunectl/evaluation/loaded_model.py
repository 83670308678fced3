"""A model in memory whose weights can be replaced tensor by tensor, in the shapes and names of the
checkpoint's files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.device import choose_device, is_out_of_memory, names_of, other_devices
from prunectl.errors import BadCheckpoint, PrunectlError, UnknownArchitecture
from prunectl.evaluation.heads import Head, class_with_head
from prunectl.events import Note
from prunectl.parallel.launched import launched
from prunectl.plan.prunable import prunable_tensors, recorded_prunable

if TYPE_CHECKING:
    import torch

    from prunectl.checkpoint.block_model import BlockModel
    from prunectl.checkpoint.reader import TensorReader


class Wanted(Protocol):
    """What a metric requires of a model; see :class:`prunectl.evaluation.metric.Metric`."""

    @property
    def name(self) -> str: ...
    @property
    def trains(self) -> bool: ...
    @property
    def head(self) -> Head | None: ...
    def tolerates(self, parameter: str) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Weights that stay zero.

    Attributes:
        name: name of the tensor in the files.
        weight: a view of the model's parameter in the stored shape.
        gone: bool, in the same shape; True = pruned.
    """

    name: str
    weight: torch.Tensor
    gone: torch.Tensor


class LoadedModel:
    """A checkpoint's model, whole and in evaluation mode.

    Attributes:
        model: the transformers model.
        checkpoint: the checkpoint that it is loaded from.
        devices: the devices of the weights in one word: ``cpu``, or ``cuda:0-3`` where spread.
        prunable: names, in the files, of the prunable tensors that the model has.
        notes: notes and warnings about loading, for the user.
        made_up: names of parameters outside the blocks that the checkpoint lacks.

    Args:
        reader: reads the checkpoint; must stay open as long as the model is used.
        others: CUDA devices that share the weights if ``device`` is too small.
        head: a model class to use instead of the config's. Parameters that the checkpoint lacks
            are initialised as the class does, by ``seed``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: TensorReader,
        *,
        device: torch.device,
        others: Sequence[torch.device] = (),
        dtype: torch.dtype,
        head: Head | None = None,
        seed: int = 0,
    ) -> None:
        from prunectl.checkpoint.block_model import BlockModel
        from prunectl.checkpoint.device_map import connect

        built = None if head is None else _with_head(checkpoint, head, dtype)
        self.checkpoint, self._reader = checkpoint, reader
        self._block_model: BlockModel = BlockModel(
            checkpoint, reader, device=device, others=others, dtype=dtype, built=built
        )
        self.devices = names_of(self._block_model.places.values())
        for block in self._block_model.blocks:
            self._block_model.load(block)
        self.model: Any = self._block_model.model
        self.made_up = self._block_model.made_up
        if head is not None:
            self._initialise(seed)
        connect(self.model, self._block_model.places, self._block_model.device)
        known = self._block_model.targets
        names = list(prunable_tensors(checkpoint, recorded=recorded_prunable(checkpoint)))
        self.prunable = tuple(name for name in names if name in known)
        texts = _unused_warning([name for name in names if name not in known])
        self.notes = tuple(Note(text, warning=True) for text in texts)
        if len(set(self._block_model.places.values())) > 1:
            text = f"the weights are spread over {self.devices}; one device computes at a time"
            self.notes += (Note(text),)
        self._views: dict[str, torch.Tensor] | None = None
        self._more_views: dict[str, torch.Tensor] = {}

    @property
    def views(self) -> dict[str, torch.Tensor]:
        """Views of the prunable weights in the stored shape, by name.

        They share memory with the model.

        Raises:
            UnsupportedCheckpoint: loading does more to a tensor than move whole matrices.
        """
        if self._views is None:
            self._views = self._block_model.views(self.prunable)
        return self._views

    def put(self, name: str, values: torch.Tensor) -> None:
        """Replace a tensor by ``values``, in its stored shape and any dtype.

        Does nothing where the model lacks the tensor: the model may be one of two towers.
        """
        import torch

        if name not in self._block_model.targets:
            return
        # Not prunable by default: an embedding, for example, with --include.
        if name not in self.views and name not in self._more_views:
            self._more_views |= self._block_model.views([name])
        view = self._more_views[name] if name in self._more_views else self.views[name]
        with torch.no_grad():
            view.copy_(values)

    def weights(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Views of some tensors in the stored shape, by name and in order; tensors that the model
        lacks are left out.
        """
        wanted = [name for name in names if name in self._block_model.targets]
        more = [name for name in wanted if name not in self.views and name not in self._more_views]
        self._more_views |= self._block_model.views(more)
        known = self.views | self._more_views
        return {name: known[name] for name in wanted}

    def restore(self, names: Iterable[str]) -> None:
        """Replace tensors by their values in the checkpoint."""
        for name in names:
            self.put(name, read_tensor(self._reader, self.checkpoint.by_any_name[name]))

    def held(self) -> list[Held]:
        """The prunable weights that are zero now, to be held at zero; tied tensors once."""
        found: dict[int, Held] = {}
        for name, view in (self.views | self._more_views).items():
            found.setdefault(view.data_ptr(), Held(name, view, view == 0))
        return list(found.values())

    def _initialise(self, seed: int) -> None:
        """Initialize parameters that the checkpoint lacks, as their class does before training."""
        import torch

        owners = dict.fromkeys(name.rpartition(".")[0] for name in self.made_up)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for owner in owners:
                module = self.model.get_submodule(owner)
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False
                module._is_hf_initialized = False
                self.model._init_weights(module)


def _unused_warning(names: list[str]) -> Iterator[str]:
    """Yield a warning if prunable tensors are not in the model: layers that its config.json leaves
    out, or the other of two towers."""
    if names:
        yield (
            f"{len(names):,} prunable matrices are not in the model that config.json describes, "
            f"such as {names[0]}: no score covers them"
        )


def _with_head(checkpoint: Checkpoint, head: Head, dtype: torch.dtype) -> tuple[Any, Any]:
    """The class that transformers' auto class chooses, and the config that the head needs."""
    cls, config = class_with_head(checkpoint, head.auto)
    # Some of these classes build the model in the dtype of the config.
    for key, value in {"dtype": dtype, **head.config}.items():
        setattr(config, key, value)
    return cls, config


@contextmanager
def open_loaded_model(
    checkpoint: Checkpoint, metric: Wanted, *, device: str, dtype: str, seed: int = 0
) -> Iterator[tuple[LoadedModel, TensorReader]]:
    """Load a checkpoint's model for a metric. Inside the ``with`` block, weights can be replaced.

    If the first GPU is too small, another one is used, or the weights are spread over all GPUs;
    only if the device is ``auto``, nothing is trained, and this is the only process: each of
    several processes has one GPU.

    Yields the loaded model and a reader of the checkpoint.

    Raises:
        BadCheckpoint: weights are missing that the metric depends on.
        UnknownArchitecture: transformers cannot build the model.
        InvalidOption: the device does not exist, or the dtype is not known.
        ModelTooLarge: the model does not fit into all GPUs together.
        PrunectlError: the model does not fit into memory.
    """
    place = choose_device(device)
    is_alone = device == "auto" and launched()[1] == 1
    others = other_devices(place) if is_alone and not metric.trains else []
    with checkpoint.open() as reader:
        try:
            loaded = LoadedModel(
                checkpoint,
                reader,
                device=place,
                others=others,
                dtype=dtype_of(checkpoint, metric, place, dtype),
                head=metric.head,
                seed=seed,
            )
        except (RuntimeError, MemoryError, UnknownArchitecture) as error:
            if not is_out_of_memory(error.__cause__ or error):
                raise
            raise _too_large(checkpoint.model, [place, *others], metric, device) from None
        checkpoint.check_unchanged()
        lacking = [name for name in loaded.made_up if not metric.tolerates(name)]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise BadCheckpoint(
                checkpoint.folder,
                f"it lacks {', '.join(lacking[:3])}{more}, which {metric.name} depends on",
                hint="use this metric with checkpoints that have these parameters",
            )
        yield loaded, reader


def _too_large(
    model: str, devices: Sequence[torch.device], metric: Wanted, wanted: str
) -> PrunectlError:
    """The error for memory that was full while the model was loaded."""
    text = f"{model} does not fit into the memory of {names_of(devices)}"
    hint = "try --device cpu, or --dtype bfloat16, which needs less memory"
    if metric.trains and len(devices) == 1 and other_devices(devices[0]):
        text += ", and training needs the whole model on one device"
        hint = "--device cpu trains in the host's memory; --dtype bfloat16 takes half of it"
    elif wanted == "auto" and len(devices) == 1 and other_devices(devices[0]):
        hint = "one process alone spreads it over all GPUs; --dtype bfloat16 takes half of it"
    elif wanted != "auto" and other_devices(devices[0]):
        hint = "--device auto spreads it over all GPUs; --dtype bfloat16 takes half of it"
    return PrunectlError(text, hint=hint)


def dtype_of(
    checkpoint: Checkpoint, metric: Wanted, device: torch.device, wanted: str
) -> torch.dtype:
    """The dtype to run the model in: float32 if it is trained and ``wanted`` is ``auto``; otherwise
    see :func:`prunectl.plan.job.dtype_of`.

    Raises:
        InvalidOption: the dtype is not known.
    """
    from prunectl.plan.job import dtype_of as calibration_dtype
    from prunectl.plan.settings import Calibration

    wanted = "float32" if metric.trains and wanted == "auto" else wanted
    return calibration_dtype(Calibration(device=str(device), dtype=wanted), checkpoint)
