"""A model in memory whose prunable weights can be put in, one tensor at a time, as the files have
them."""

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
    """What a metric wants of a model; see :class:`prunectl.evaluation.metric.Metric`."""

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
        name: of the tensor in the files.
        weight: of the stored shape, sharing memory with the model's parameter.
        gone: bool of the same shape, True = pruned.
    """

    name: str
    weight: torch.Tensor
    gone: torch.Tensor


class LoadedModel:
    """A checkpoint's model, whole and in evaluation mode.

    Attributes:
        model: the transformers model. checkpoint: what it is of.
        devices: where it is, in one word: such as ``cpu``, or ``cuda:0-3`` where it is spread.
        prunable: names of the tensors in the files that pruning is about.
        notes: what the user should know of how it was loaded, as events.
        made_up: parameters outside of the blocks that the checkpoint lacks.

    Args:
        reader: of the checkpoint's bytes; used as long as the model is.
        device: of the weights. others: CUDA devices that share them where that one is too small.
        head: another class than the config's; what the checkpoint lacks of it is initialised as
            the class does it, by ``seed``.
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
        texts = _unused([name for name in names if name not in known])
        self.notes = tuple(Note(text, warning=True) for text in texts)
        if len(set(self._block_model.places.values())) > 1:
            text = f"the weights are spread over {self.devices}, of which one computes at a time"
            self.notes += (Note(text),)
        self._views: dict[str, torch.Tensor] | None = None
        self._others: dict[str, torch.Tensor] = {}

    @property
    def views(self) -> dict[str, torch.Tensor]:
        """By name, the prunable weights in the stored shape, sharing memory with the model.

        Raises:
            UnsupportedCheckpoint: loading does more to a tensor than to move whole matrices.
        """
        if self._views is None:
            self._views = self._block_model.views(self.prunable)
        return self._views

    def put(self, name: str, values: torch.Tensor) -> None:
        """Replace a tensor; ``values`` are of its stored shape, in any dtype.

        Nothing where the model has no such part: of two towers, it may be one.

        Raises:
            UnsupportedCheckpoint: as for ``views``.
        """
        import torch

        if name not in self._block_model.targets:
            return
        if name not in self.views and name not in self._others:  # --include of an embedding
            self._others |= self._block_model.views([name])
        view = self._others[name] if name in self._others else self.views[name]
        with torch.no_grad():
            view.copy_(values)

    def weights(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Some tensors in the stored shape, sharing memory with the model, by name and in order;
        those that the model has no place for are left out.

        Raises:
            UnsupportedCheckpoint: as for ``views``.
        """
        wanted = [name for name in names if name in self._block_model.targets]
        more = [name for name in wanted if name not in self.views and name not in self._others]
        self._others |= self._block_model.views(more)
        known = self.views | self._others
        return {name: known[name] for name in wanted}

    def restore(self, names: Iterable[str]) -> None:
        """Put prunable tensors back as the checkpoint has them."""
        for name in names:
            self.put(name, read_tensor(self._reader, self.checkpoint.by_any_name[name]))

    def held(self) -> list[Held]:
        """The prunable weights that are zero now, and are to stay so; tied tensors once."""
        found: dict[int, Held] = {}
        for name, view in (self.views | self._others).items():
            found.setdefault(view.data_ptr(), Held(name, view, view == 0))
        return list(found.values())

    def _initialise(self, seed: int) -> None:
        """Give what the checkpoint lacks the values that its class begins training with."""
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


def _unused(names: list[str]) -> Iterator[str]:
    """A sentence on prunable weights that the model has no place for: layers that its config.json
    leaves out, or of two towers one."""
    if names:
        yield (
            f"{len(names):,} prunable matrices are not in the model that config.json describes, "
            f"such as {names[0]}: no score says anything of them"
        )


def _with_head(checkpoint: Checkpoint, head: Head, dtype: torch.dtype) -> tuple[Any, Any]:
    """The class that transformers' auto class chooses, and the config that the head needs."""
    cls, config = class_with_head(checkpoint, head.auto)
    # Some of these classes build the model in the dtype that its config names.
    for key, value in {"dtype": dtype, **head.config}.items():
        setattr(config, key, value)
    return cls, config


@contextmanager
def open_loaded_model(
    checkpoint: Checkpoint, metric: Wanted, *, device: str, dtype: str, seed: int = 0
) -> Iterator[tuple[LoadedModel, TensorReader]]:
    """Load a checkpoint's model for a metric; inside of the block its weights can be rewritten.

    Where the device is ``auto``, nothing is trained and the first GPU does not hold the weights,
    another one takes them, or they are spread over all GPUs; not by one of several processes,
    which each have one.

    Yields the loaded model and a reader of the checkpoint's bytes.

    Raises:
        BadCheckpoint: weights are missing that the metric depends on.
        UnknownArchitecture: transformers cannot build the model.
        InvalidOption: a device or dtype that is not there.
        ModelTooLarge: all GPUs together do not hold it.
        PrunectlError: it does not fit into memory.
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
                hint="this metric is for checkpoints that have them",
            )
        yield loaded, reader


def _too_large(
    model: str, devices: Sequence[torch.device], metric: Wanted, wanted: str
) -> PrunectlError:
    """What to say where memory was full while the model was loaded."""
    text = f"{model} does not fit into the memory of {names_of(devices)}"
    hint = "--device cpu, or --dtype bfloat16, takes less of it"
    if metric.trains and len(devices) == 1 and other_devices(devices[0]):
        text += ", and what is trained is on one device as a whole"
        hint = "--device cpu trains in the host's memory; --dtype bfloat16 takes half of it"
    elif wanted == "auto" and len(devices) == 1 and other_devices(devices[0]):
        hint = "one process alone spreads it over all GPUs; --dtype bfloat16 takes half of it"
    elif wanted != "auto" and other_devices(devices[0]):
        hint = "--device auto spreads it over all GPUs; --dtype bfloat16 takes half of it"
    return PrunectlError(text, hint=hint)


def dtype_of(
    checkpoint: Checkpoint, metric: Wanted, device: torch.device, wanted: str
) -> torch.dtype:
    """What the model is run in: float32 where it is trained and nothing else is ``wanted``; else
    see :func:`prunectl.plan.job.dtype_of`.

    Raises:
        InvalidOption: it is not known.
    """
    from prunectl.plan.job import dtype_of as calibration_dtype
    from prunectl.plan.settings import Calibration

    wanted = "float32" if metric.trains and wanted == "auto" else wanted
    return calibration_dtype(Calibration(device=str(device), dtype=wanted), checkpoint)
