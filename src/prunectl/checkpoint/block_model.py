"""A model with only some blocks in memory; blocks are loaded and dropped on request.

Everything outside the transformer blocks is loaded once. A block's weights are read from the
checkpoint's files when it is needed, through transformers' own renamings and conversions, and
dropped afterwards, so that memory holds one block and not the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunectl.checkpoint.checkpoint import Checkpoint
from prunectl.checkpoint.device_map import DeviceMap, place_of, plan_devices
from prunectl.checkpoint.module_tree import (
    build_on_meta,
    map_names,
    model_class,
    quiet_transformers,
    unknown_if_it_fails,
)
from prunectl.checkpoint.modules import block_lists
from prunectl.checkpoint.reader import TensorReader
from prunectl.checkpoint.torch_tensors import Unread
from prunectl.checkpoint.weight_views import WeightView, find_weight_views
from prunectl.device import is_out_of_memory
from prunectl.errors import BadCheckpoint, UnknownArchitecture, UnsupportedCheckpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_UNCALIBRATED = (
    "leave --method, --refine and --reconstruct out: prune then works on the files as they are"
)


class BlockModel:
    """A model whose blocks are loaded and dropped.

    Attributes:
        model: in evaluation mode; parameters of blocks that are not loaded are on the meta device.
        blocks: paths of the transformer blocks, in the order of the module tree.
        dtype: of loaded weights.
        places: devices by module path.
        device: of the model's inputs.
        body: the smallest known part of the model with all blocks: the model without its heads, if
            transformers names it.
        made_up: parameters outside the blocks that the checkpoint lacks (a new head's), set to
            zeros.

    Args:
        checkpoint: dense.
        reader: of its bytes; used as long as the block model.
        others: devices that share the weights if ``device`` has no room for all.
        dtype: of the weights in memory, whatever the files hold.
        built: class and config of the model; default: from config.json.
        heads: whether to load the parts outside the body, which otherwise stay on the meta device.

    Raises:
        UnknownArchitecture: transformers cannot build the model.
        BadCheckpoint: weights of the model are missing, or cannot be converted to its layout.
        ModelTooLarge: the devices together have no room for it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: TensorReader,
        *,
        device: torch.device,
        others: Sequence[torch.device] = (),
        dtype: torch.dtype,
        built: tuple[type[PreTrainedModel], PreTrainedConfig] | None = None,
        heads: bool = True,
    ) -> None:
        self.dtype = dtype
        self._checkpoint, self._reader = checkpoint, reader
        self._tensors = checkpoint.by_any_name
        with unknown_if_it_fails(), quiet_transformers():
            cls, config = built or model_class(
                checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code
            )
            self.model = _build(cls, config, dtype)
            self.targets = map_names(self.model, self._tensors)
        if built:  # the checkpoint's head may be for another number of classes, for example
            shapes = {n: p.shape for n, p in self.model.named_parameters(remove_duplicate=False)}
            for name, target in list(self.targets.items()):
                shape = self._tensors[name].spec.shape
                if not target.converted and shapes.get(target.parameter, shape) != shape:
                    del self.targets[name]
        lists = block_lists(self.model)
        outermost = [a for a in lists if not any(a.startswith(f"{b}.") for b in lists)]
        self.blocks = tuple(
            f"{name}.{child}"
            for name, module in self.model.named_modules()
            if name in outermost
            for child, _ in module.named_children()
        )
        if not self.blocks:
            raise UnknownArchitecture(f"{cls.__name__} has no recognizable transformer blocks")
        prefix = f"{self.model.base_model_prefix}."
        inside = all(path.startswith(prefix) for path in self.blocks)
        self.body = self.model.base_model if inside else self.model
        self.places: DeviceMap = plan_devices(
            self.model, checkpoint.model, [device, *others], self.blocks
        )
        self.device = place_of(self.places, next(name for name, _ in self.model.named_parameters()))
        self._names: dict[str, list[str]] = {block: [] for block in self.blocks}
        self._places: dict[str, WeightView] = {}
        rest: list[str] = []
        for name, target in self.targets.items():
            block = self.block_of(target.parameter)
            (rest if block is None else self._names[block]).append(name)
        self.made_up = self._load_rest(rest, "" if heads or not inside else prefix)

    @property
    def folder(self) -> Path:
        """The checkpoint's folder, for messages."""
        return self._checkpoint.folder

    def block_of(self, parameter: str) -> str | None:
        """The path of the block that holds a parameter (by its name in the module tree)."""
        path = parameter.split(".")
        for i in range(1, len(path)):
            if (candidate := ".".join(path[:i])) in self._names:
                return candidate
        return None

    def names_of(self, block: str) -> list[str]:
        """Names, in the files, of a block's tensors."""
        return self._names[block]

    def nbytes(self, block: str) -> int:
        """Bytes of a block's weights in memory."""
        module = self.model.get_submodule(block)
        size = self.dtype.itemsize
        return sum(parameter.numel() * size for parameter in module.parameters())

    def load(self, block: str) -> None:
        """Load a block's weights; does nothing if they are loaded.

        Raises:
            BadCheckpoint: weights are missing or do not fit.
            UnsupportedCheckpoint: the block shares weights with another block; they are stored
                once.
        """
        if self.is_loaded(block):
            return
        self._put({name: Unread(self._reader, self._tensors[name]) for name in self._names[block]})
        missing = [n for n, p in self.model.get_submodule(block).named_parameters() if p.is_meta]
        self._refuse_shared(block, missing)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise BadCheckpoint(
                self._checkpoint.folder,
                f"block {block} lacks {', '.join(missing[:3])}{more}",
                hint="prunectl verify finds what is wrong with an output of prunectl",
            )

    def _refuse_shared(self, block: str, missing: Iterable[str]) -> None:
        ties = self.model.all_tied_weights_keys
        for name in (f"{block}.{name}" for name in missing):
            others = [a if b == name else b for a, b in ties.items() if name in (a, b)]
            if others:
                raise UnsupportedCheckpoint(
                    self._checkpoint.model,
                    f"block {block} shares weights with other blocks ({name} is {others[0]}), but "
                    "only one block at a time is in memory",
                    hint=_UNCALIBRATED,
                )

    def is_loaded(self, block: str) -> bool:
        """Whether a block's weights are in memory."""
        return not any(p.is_meta for p in self.model.get_submodule(block).parameters())

    def unload(self, block: str) -> None:
        """Drop a block's weights and all changes to them. Buffers stay."""
        import torch

        for module in self.model.get_submodule(block).modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                empty = torch.empty_like(parameter, device="meta")
                setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))

    def views(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The weights of a loaded block, laid out as in the files.

        Args:
            names: tensors of one block, by their names in the files.

        Returns:
            By name, a tensor of the stored shape that shares memory with the model's parameter: the
            model computes with values that are written to it. The places of stacked, fused or
            transposed tensors are found by loading marked ones.

        Raises:
            UnsupportedCheckpoint: a conversion that does more than move whole matrices.
        """
        names = list(names)
        self.locate(names)
        found: dict[str, torch.Tensor] = {}
        for name in names:
            parameter = self.model.get_parameter(self.targets[name].parameter).data
            place = self._places[name]
            if place.within is not None and place.within != parameter.stride():
                raise UnsupportedCheckpoint(
                    self._checkpoint.model,
                    f"'{self.targets[name].parameter}' is laid out in two ways",
                    hint=_UNCALIBRATED,
                )
            found[name] = place.view(parameter, self._tensors[name].spec.shape)
        return found

    def locate(self, names: Iterable[str]) -> None:
        """Find the places of tensors in their blocks' parameters; best before loading the blocks.

        Raises:
            UnsupportedCheckpoint: a conversion that does more than move whole matrices.
        """
        moved: list[str] = []
        for name in names:
            if name in self._places:
                continue
            target = self.targets[name]
            parameter = self.model.get_parameter(target.parameter)
            if not target.converted and parameter.shape == self._tensors[name].spec.shape:
                self._places[name] = WeightView()
            else:
                moved.append(name)
        self._find(moved)

    # --- loading --------------------------------------------------------------------------------

    def _load_rest(self, names: list[str], prefix: str) -> tuple[str, ...]:
        """Load everything outside the blocks; return the parameters that the checkpoint lacks."""
        import torch

        model = self.model
        ties = model.all_tied_weights_keys
        tied = ties.keys() | set(ties.values())
        places = {name: self.targets[name].parameter for name in names}
        used = [n for n, place in places.items() if place.startswith(prefix) or place in tied]
        self._put({name: Unread(self._reader, self._tensors[name]) for name in used})
        with quiet_transformers():
            found = {self.targets[name].parameter for name in self.targets}
            missing = {n for n, _ in model.named_parameters(remove_duplicate=False)} - found
            model.tie_weights(missing_keys=missing, recompute_mapping=False)
        made_up: list[str] = []
        for path, module in model.named_modules():
            if self.block_of(f"{path}.x") is not None or not f"{path}.".startswith(prefix):
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta:  # such as a head; calibration runs the blocks only
                    made_up.append(f"{path}.{name}" if path else name)
                    place = place_of(self.places, made_up[-1])
                    empty = torch.zeros_like(parameter, device=place)
                    setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
        for path, module in model.named_modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if not buffer.is_meta:
                    setattr(module, name, buffer.to(place_of(self.places, f"{path}.{name}")))
        return tuple(made_up)

    def _put(self, state: Mapping[str, Any]) -> None:
        """Load tensors by their names in the files, as ``from_pretrained`` would."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        with unknown_if_it_fails(), quiet_transformers():
            mapping = get_model_conversion_mapping(self.model)
            options = LoadStateDictConfig(
                device_map=dict(self.places), dtype=self.dtype, weight_mapping=mapping
            )
            # transformers before 5.16 has a further argument, without a default
            old = "tp_plan" in signature(convert_and_load_state_dict_in_model).parameters
            info, _ = convert_and_load_state_dict_in_model(
                self.model, dict(state), options, **({"tp_plan": None} if old else {})
            )
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if any(is_out_of_memory(RuntimeError(text)) for text in info.conversion_errors.values()):
            raise MemoryError("weights are put together")  # transformers has caught the original
        wrong = [name for name, *_ in info.mismatched_keys] + list(info.conversion_errors)
        if wrong:
            raise BadCheckpoint(
                self._checkpoint.folder,
                f"weights do not fit the model that config.json describes: {sorted(wrong)[0]}",
            )

    # --- where converted tensors end up ---------------------------------------------------------

    def _find(self, names: list[str]) -> None:
        """Find the places of tensors that loading stacks, fuses or transposes."""
        for parameter in dict.fromkeys(self.targets[name].parameter for name in names):
            sources = [n for n, target in self.targets.items() if target.parameter == parameter]
            shapes = {name: self._tensors[name].spec.shape for name in sources}
            found = find_weight_views(shapes, self.dtype, partial(self._converted, parameter))
            for name, place in found.items():
                if place is None:
                    raise UnsupportedCheckpoint(
                        self._checkpoint.model,
                        f"tensor '{name}' is split or reordered when transformers loads it",
                        hint=_UNCALIBRATED,
                    )
                self._places[name] = place

    def _converted(self, parameter: str, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Convert other values of a parameter's tensors as loading does."""
        kept = self.model.get_parameter(parameter)
        owner, _, own = parameter.rpartition(".")
        try:
            self._put(state)
            found: torch.Tensor = self.model.get_parameter(parameter).data
            return found
        finally:
            setattr(self.model.get_submodule(owner), own, kept)


def _build(
    cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Build the model with parameters on the meta device and buffers as its code computes them."""
    from transformers.modeling_utils import local_torch_dtype

    # one product for each expert, so that its inputs can be captured
    config._experts_implementation = "eager"
    config.return_dict = True
    # they come from the blocks, which may be replaced
    config.get_text_config().output_router_logits = False
    with local_torch_dtype(dtype):
        return build_on_meta(cls, config, buffers=True).eval()
