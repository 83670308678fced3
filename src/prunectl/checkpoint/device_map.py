"""A model on several devices: which modules lie on which device, and how values get there.

Blocks stay whole, and tied weights stay together. accelerate plans by the modules' sizes; its hooks
move the inputs of a module to the module's device.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunectl.device import free_memory
from prunectl.errors import PrunectlError
from prunectl.numbers import size

if TYPE_CHECKING:
    import torch


DeviceMap = dict[str, "torch.device"]
"""Devices by path of a module or parameter; '' is the whole model."""

_SHARE = 0.9
"""Share of the free memory for weights; the rest is for activations."""


def plan_devices(
    model: Any, name: str, devices: Sequence[torch.device], blocks: Collection[str]
) -> DeviceMap:
    """Devices of a model: the first one that holds all weights, else all of them.

    Args:
        model: of transformers, with its parameters on the meta device. Parameters that its config
            ties are tied afterwards.
        devices: CUDA devices, if there are several.
        blocks: paths of the modules that each stay on one device.

    Raises:
        ModelTooLarge: all devices together do not hold the model, or none holds a part that stays
            whole.
    """
    if len(devices) == 1:
        return {"": devices[0]}
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes, get_balanced_memory

    model.tie_weights(recompute_mapping=False)  # tied weights count once, and stay together
    # a dropped model with dispatch hooks is kept alive by reference cycles until collected
    gc.collect()
    torch.cuda.empty_cache()
    sizes = compute_module_sizes(model)
    needed, free = sizes[""], dict[torch.device, int]()
    for device in devices:  # asking a device takes some of its memory
        free[device] = free_memory(device) or 0
        if needed <= _SHARE * free[device]:
            return {"": device}
    whole = {type(model.get_submodule(path)).__name__ for path in blocks}
    whole |= set(model._no_split_modules or ())
    options = {"no_split_module_classes": sorted(whole)}
    room = {device.index: int(_SHARE * nbytes) for device, nbytes in free.items()}
    balanced = get_balanced_memory(model, max_memory=dict(room), **options)
    # On the first device, accelerate reserves room for layers offloaded to the host's memory; here
    # none are. With an entry for Apple's GPU, it reserves that room there instead.
    nowhere = {"mps": 0}
    for limits in (balanced, room):
        found = infer_auto_device_map(model, max_memory={**limits, **nowhere}, **options)
        if all(isinstance(place, int) for place in found.values()):  # else "disk"
            return {path: torch.device("cuda", place) for path, place in found.items()}
    dtype = str(model.dtype).removeprefix("torch.")
    largest = max(_parts(model, whole), key=lambda path: sizes.get(path, 0))
    raise ModelTooLarge(
        name,
        needed,
        dtype,
        {str(one): nbytes for one, nbytes in free.items()},
        # if the sum would suffice, the largest part does not fit
        (largest, sizes[largest]) if needed <= sum(room.values()) else None,
    )


def _parts(module: Any, whole: Collection[str], path: str = "") -> Iterator[str]:
    """Paths of the modules that are not split."""
    children = list(module.named_children())
    if not children or type(module).__name__ in whole:
        yield path
        return
    for name, child in children:
        yield from _parts(child, whole, f"{path}.{name}" if path else name)


def place_of(places: Mapping[str, torch.device], path: str) -> torch.device:
    """The device of a module, parameter or buffer: that of the nearest enclosing entry."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    # accelerate leaves out buffers of modules that it has split
    return places[path] if path in places else next(iter(places.values()))


def connect(model: Any, places: DeviceMap, first: torch.device) -> None:
    """Make a loaded model run on the devices of its modules; does nothing for a single device.

    The output of the model comes back to the device of its inputs.

    Args:
        first: the device of inputs.
    """
    if len(set(places.values())) > 1:
        from accelerate import dispatch_model

        dispatch_model(
            model, places, main_device=first, skip_keys=model._skip_keys_device_placement
        )


# --- errors ---------------------------------------------------------------------------------------


class ModelTooLarge(PrunectlError):
    """A model whose weights, or whose largest part, do not fit on the GPUs.

    Attributes:
        model: as given.
        needed: bytes of its weights in ``dtype``.
        free: bytes by device.
        largest: path and bytes of the largest part that stays on one device; None if the sum of
            free memory is too little.
    """

    def __init__(
        self,
        model: str,
        needed: int,
        dtype: str,
        free: Mapping[str, int],
        largest: tuple[str, int] | None = None,
    ) -> None:
        left = ", ".join(f"{size(nbytes)} on {name}" for name, nbytes in free.items())
        less = "--dtype bfloat16 halves this, " if dtype in ("float32", "float64") else ""
        why = ""
        if largest is not None:
            why = f"; the largest part that must stay whole is {largest[0]} with {size(largest[1])}"
        super().__init__(
            f"{model} takes {size(needed)} in {dtype}; free are {left}, and a tenth of that "
            f"is reserved for activations{why}",
            hint=f"{less}--device cpu uses the host's memory",
        )
        self.model, self.needed, self.dtype, self.free = model, needed, dtype, dict(free)
        self.largest = largest
