"""A model of which only some blocks are in memory: they come and go as they are asked for.

Everything outside of the transformer blocks is loaded once. A block's weights are read from the
checkpoint's files when it is needed, through transformers' own renamings and conversions, and
dropped afterwards, so that memory holds one block and not the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.module_tree import (
    build_on_meta,
    map_names,
    model_class,
    quiet_transformers,
    unknown_if_it_fails,
)
from prunectl.checkpoint.modules import block_lists
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.stored import StoredTensor
from prunectl.checkpoint.torch_tensors import read_tensor
from prunectl.device import is_out_of_memory
from prunectl.errors import BadCheckpoint, UnknownArchitecture, UnsupportedCheckpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_BY_MAGNITUDE = "--method magnitude works on the files as they are"
_TAGS = 250
"""Small whole numbers that every float type tells apart, bfloat16 included (up to 256)."""


class Skeleton:
    """The model, and its blocks' coming and going.

    Attributes:
        model: in evaluation mode; parameters of blocks that are not loaded are on the meta device.
        blocks: paths of the transformer blocks, in the order of the module tree.
        device, dtype: where and as what loaded weights are.
        made_up: parameters outside of the blocks that the checkpoint lacks (a new head's): zeros.

    Args:
        checkpoint: dense.
        reader: of its bytes; used until the skeleton is dropped.
        device: of the weights.
        dtype: of the weights in memory, whatever the files hold.
        built: class and config of the model; None is what config.json names.

    Raises:
        UnknownArchitecture: transformers cannot build the model.
        BadCheckpoint: weights of the model are missing, or cannot be converted to its layout.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: TensorReader,
        *,
        device: torch.device,
        dtype: torch.dtype,
        built: tuple[type[PreTrainedModel], PreTrainedConfig] | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self._checkpoint, self._reader = checkpoint, reader
        self._tensors = checkpoint.by_any_name
        with unknown_if_it_fails(), quiet_transformers():
            cls, config = built or model_class(
                checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code
            )
            self.model = _build(cls, config, dtype)
            self.targets = map_names(self.model, self._tensors)
        lists = block_lists(self.model)
        outermost = [a for a in lists if not any(a.startswith(f"{b}.") for b in lists)]
        self.blocks = tuple(
            f"{name}.{child}"
            for name, module in self.model.named_modules()
            if name in outermost
            for child, _ in module.named_children()
        )
        if not self.blocks:
            raise UnknownArchitecture(f"{cls.__name__} has no transformer blocks that can be found")
        self._names: dict[str, list[str]] = {block: [] for block in self.blocks}
        rest: list[str] = []
        for name, target in self.targets.items():
            block = self.block_of(target.parameter)
            (rest if block is None else self._names[block]).append(name)
        self.made_up = self._load_rest(rest)

    def block_of(self, parameter: str) -> str | None:
        """The path of the block that holds a parameter (by its name in the module tree)."""
        path = parameter.split(".")
        for i in range(1, len(path)):
            if (candidate := ".".join(path[:i])) in self._names:
                return candidate
        return None

    def names_of(self, block: str) -> list[str]:
        """Names, in the files, of the tensors that a block is made of."""
        return self._names[block]

    def nbytes(self, block: str) -> int:
        """Memory of a block's weights."""
        module = self.model.get_submodule(block)
        size = self.dtype.itemsize
        return sum(parameter.numel() * size for parameter in module.parameters())

    def load(self, block: str) -> None:
        """Read a block's weights; does nothing where they are there.

        Raises:
            BadCheckpoint: weights are missing or do not fit.
        """
        if self.is_loaded(block):
            return
        self._put({name: _Stored(self._reader, self._tensors[name]) for name in self._names[block]})
        missing = [n for n, p in self.model.get_submodule(block).named_parameters() if p.is_meta]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise BadCheckpoint(
                self._checkpoint.folder,
                f"block {block} lacks {', '.join(missing[:3])}{more}",
                hint="prunectl verify says what is wrong with an output of prunectl",
            )

    def is_loaded(self, block: str) -> bool:
        """Whether a block's weights are in memory."""
        return not any(p.is_meta for p in self.model.get_submodule(block).parameters())

    def unload(self, block: str) -> None:
        """Drop a block's weights; what was changed in them is lost. Buffers stay."""
        import torch

        for module in self.model.get_submodule(block).modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                empty = torch.empty_like(parameter, device="meta")
                setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))

    def views(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The weights of a loaded block as the files lay them out.

        Args:
            names: tensors of one block, by their names in the files.

        Returns:
            By name, a tensor of the stored shape that shares memory with the model's parameter:
            what is written into it is what the model computes with. Where loading stacks, fuses or
            transposes tensors, where they end up is found by sending marked ones along.

        Raises:
            UnsupportedCheckpoint: a conversion that does more than move whole matrices.
        """
        plain: dict[str, torch.Tensor] = {}
        moved: list[str] = []
        for name in names:
            target = self.targets[name]
            parameter = self.model.get_parameter(target.parameter).data
            if not target.converted and parameter.shape == self._tensors[name].spec.shape:
                plain[name] = parameter
            else:
                moved.append(name)
        return plain | self._trace(moved)

    # --- loading --------------------------------------------------------------------------------

    def _load_rest(self, names: list[str]) -> tuple[str, ...]:
        """Load what is outside of the blocks; returns what there was nothing for."""
        self._put({name: _Stored(self._reader, self._tensors[name]) for name in names})
        import torch

        model = self.model
        with quiet_transformers():
            found = {self.targets[name].parameter for name in self.targets}
            missing = {n for n, _ in model.named_parameters(remove_duplicate=False)} - found
            model.tie_weights(missing_keys=missing, recompute_mapping=False)
        made_up: list[str] = []
        for path, module in model.named_modules():
            if self.block_of(f"{path}.x") is not None:
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta:  # such as a head; calibration runs the blocks only
                    made_up.append(f"{path}.{name}" if path else name)
                    empty = torch.zeros_like(parameter, device=self.device)
                    setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if not buffer.is_meta:
                    setattr(module, name, buffer.to(self.device))
        return tuple(made_up)

    def _put(self, state: Mapping[str, Any]) -> None:
        """Load tensors by their names in the files, as ``from_pretrained`` would."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        with unknown_if_it_fails(), quiet_transformers():
            mapping = get_model_conversion_mapping(self.model)
            options = LoadStateDictConfig(
                device_map={"": self.device}, dtype=self.dtype, weight_mapping=mapping
            )
            info, _ = convert_and_load_state_dict_in_model(self.model, dict(state), options)
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if any(is_out_of_memory(RuntimeError(text)) for text in info.conversion_errors.values()):
            raise MemoryError("weights are put together")  # transformers has caught the error
        wrong = [name for name, *_ in info.mismatched_keys] + list(info.conversion_errors)
        if wrong:
            raise BadCheckpoint(
                self._checkpoint.folder,
                f"weights do not fit the model that config.json describes: {sorted(wrong)[0]}",
            )

    # --- where converted tensors end up ---------------------------------------------------------

    def _trace(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Views of converted tensors; see :meth:`views`."""
        by_parameter: dict[str, list[str]] = {}
        for name in names:
            by_parameter.setdefault(self.targets[name].parameter, []).append(name)
        found: dict[str, torch.Tensor] = {}
        for parameter, sources in by_parameter.items():
            step = _TAGS // (2 + max(len(self._tensors[n].spec.shape) for n in sources))
            for start in range(0, len(sources), step):
                found |= self._trace_some(parameter, sources, sources[start : start + step])
        return found

    def _trace_some(
        self, parameter: str, sources: list[str], marked: list[str]
    ) -> dict[str, torch.Tensor]:
        import torch

        state: dict[str, torch.Tensor] = {}
        tags: dict[str, list[tuple[tuple[int, ...], int]]] = {}
        count = 0
        for name in sources:
            shape = self._tensors[name].spec.shape
            state[name] = torch.zeros(shape, dtype=self.dtype)
            for at in _corners(shape) if name in marked else ():
                count += 1
                state[name][at] = count
                tags.setdefault(name, []).append((at, count))
        kept = self.model.get_parameter(parameter)
        owner, _, own = parameter.rpartition(".")
        try:
            self._put(state)
            probe = self.model.get_parameter(parameter).data
        finally:
            setattr(self.model.get_submodule(owner), own, kept)
        where = probe.nonzero()
        places = {
            int(probe[tuple(at)]): sum(int(i) * s for i, s in zip(at, probe.stride(), strict=True))
            for at in where
        }
        if kept.stride() != probe.stride():
            raise UnsupportedCheckpoint(
                self._checkpoint.model, f"'{parameter}' is laid out in two ways", hint=_BY_MAGNITUDE
            )
        return {name: self._view(name, tags[name], places, kept.data) for name in marked}

    def _view(
        self,
        name: str,
        tags: list[tuple[tuple[int, ...], int]],
        places: dict[int, int],
        parameter: torch.Tensor,
    ) -> torch.Tensor:
        shape = self._tensors[name].spec.shape
        offsets = {at: places.get(tag) for at, tag in tags}
        origin = offsets[(0,) * len(shape)]
        strides = []
        for axis in range(len(shape)):
            at = offsets.get(_unit(axis, len(shape)))
            strides.append(0 if at is None or origin is None else at - origin)
        last = tuple(n - 1 for n in shape)
        expected = (origin or 0) + sum(i * s for i, s in zip(last, strides, strict=True))
        lost = origin is None or any(place is None for place in offsets.values())
        if lost or offsets[last] != expected:
            raise UnsupportedCheckpoint(
                self._checkpoint.model,
                f"tensor '{name}' is taken apart or reordered when transformers loads it",
                hint=_BY_MAGNITUDE,
            )
        assert origin is not None
        return parameter.as_strided(shape, strides, parameter.storage_offset() + origin)


def _unit(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(int(i == axis) for i in range(ndim))


def _corners(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The origin, its neighbour along each axis, and the last element; each once."""
    units = [_unit(axis, len(shape)) for axis, length in enumerate(shape) if length > 1]
    return list(dict.fromkeys([(0,) * len(shape), *units, tuple(n - 1 for n in shape)]))


class _Stored:
    """A tensor that is read when transformers comes to it."""

    def __init__(self, reader: TensorReader, tensor: StoredTensor) -> None:
        self._reader, self._tensor = reader, tensor

    def __getitem__(self, index: object) -> torch.Tensor:
        return read_tensor(self._reader, self._tensor)


def _build(
    cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """The model with parameters on the meta device and buffers as its code computes them."""
    from transformers.modeling_utils import local_torch_dtype

    # Experts one by one, each with a plain product whose inputs can be seen.
    config._experts_implementation = "eager"
    with local_torch_dtype(dtype):
        return build_on_meta(cls, config, buffers=True).eval()
