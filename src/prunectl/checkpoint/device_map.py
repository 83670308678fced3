"""A model on several devices: which of its modules lies on which, and how values get there.

Blocks stay whole, and so do weights that are tied. accelerate plans it by the modules' sizes, and
its hooks carry what a module is given to the device that the module is on.
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
"""Devices by paths of modules or parameters; '' is the whole model."""

_SHARE = 0.9
"""Of the free memory, what weights may take; the rest is for what is computed with them."""


def plan_devices(
    model: Any, name: str, devices: Sequence[torch.device], blocks: Collection[str]
) -> DeviceMap:
    """Where a model goes: to the first device that holds all weights, else to all of them.

    Args:
        model: of transformers, with its parameters on the meta device; what its config ties is
            tied afterwards.
        name: of the model, for messages.
        devices: CUDA devices if there are several.
        blocks: paths of the modules that each stay on one device.

    Raises:
        ModelTooLarge: all of them together do not hold it, or none holds what stays whole.
    """
    if len(devices) == 1:
        return {"": devices[0]}
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes, get_balanced_memory

    model.tie_weights(recompute_mapping=False)  # what is tied counts once, and goes together
    # A spread model that was dropped holds on to itself by its hooks.
    gc.collect()
    torch.cuda.empty_cache()
    sizes = compute_module_sizes(model)
    needed, free = sizes[""], dict[torch.device, int]()
    for device in devices:  # to ask one takes up memory of it, so that the others come after
        free[device] = free_memory(device) or 0
        if needed <= _SHARE * free[device]:
            return {"": device}
    whole = {type(model.get_submodule(path)).__name__ for path in blocks}
    whole |= set(model._no_split_modules or ())
    options = {"no_split_module_classes": sorted(whole)}
    room = {device.index: int(_SHARE * nbytes) for device, nbytes in free.items()}
    balanced = get_balanced_memory(model, max_memory=dict(room), **options)
    # On the first of them, accelerate keeps as much free as a layer takes that it would fetch from
    # the host's memory; here none is. Where it hears of Apple's GPU, it keeps that there.
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
        # Where the sum would do, a part is in the way.
        (largest, sizes[largest]) if needed <= sum(room.values()) else None,
    )


def _parts(module: Any, whole: Collection[str], path: str = "") -> Iterator[str]:
    """Paths of the modules that are not taken apart."""
    children = list(module.named_children())
    if not children or type(module).__name__ in whole:
        yield path
        return
    for name, child in children:
        yield from _parts(child, whole, f"{path}.{name}" if path else name)


def place_of(places: Mapping[str, torch.device], path: str) -> torch.device:
    """The device of a module, a parameter or a buffer, which is that of the nearest one around."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    # What accelerate leaves out are buffers of modules that it has taken apart.
    return places[path] if path in places else next(iter(places.values()))


def connect(model: Any, places: DeviceMap, first: torch.device) -> None:
    """Have a loaded model run where its modules are; does nothing where that is one device.

    What the model as a whole puts out comes back to the device of its inputs.

    Args:
        first: where inputs go to.
    """
    if len(set(places.values())) > 1:
        from accelerate import dispatch_model

        dispatch_model(
            model, places, main_device=first, skip_keys=model._skip_keys_device_placement
        )


# --- errors ---------------------------------------------------------------------------------------


class ModelTooLarge(PrunectlError):
    """A model whose weights are more than all GPUs together hold, or have too large a part.

    Attributes:
        model: as it was given. needed: bytes of its weights in ``dtype``.
        free: bytes by device.
        largest: path and bytes of the largest part that stays on one device; None where even the
            sum of what is free is too little.
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
        less = "--dtype bfloat16 takes half of it, " if dtype in ("float32", "float64") else ""
        why = ""
        if largest is not None:
            why = (
                f"; parts stay whole, the largest of which is {largest[0]} with {size(largest[1])}"
            )
        super().__init__(
            f"{model} takes {size(needed)} in {dtype}, and this is free: {left}, of which a tenth "
            f"is left to what is computed{why}",
            hint=f"{less}--device cpu takes the host's memory",
        )
        self.model, self.needed, self.dtype, self.free = model, needed, dtype, dict(free)
        self.largest = largest
