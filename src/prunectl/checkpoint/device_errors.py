"""Errors of putting a model on devices, raised on purpose."""

from __future__ import annotations

from collections.abc import Mapping

from prunectl.errors import PrunectlError
from prunectl.numbers import size


class ModelTooLarge(PrunectlError):
    """A model whose weights are more than all GPUs together can hold.

    Attributes:
        model: as it was given. needed: bytes of its weights in ``dtype``.
        free: bytes by device.
    """

    def __init__(self, model: str, needed: int, dtype: str, free: Mapping[str, int]) -> None:
        left = ", ".join(f"{size(nbytes)} on {name}" for name, nbytes in free.items())
        less = "--dtype bfloat16 takes half of it, " if dtype in ("float32", "float64") else ""
        super().__init__(
            f"{model} takes {size(needed)} in {dtype}, and this is free: {left}, of which a tenth "
            "is left to what is computed",
            hint=f"{less}--device cpu takes the host's memory",
        )
        self.model, self.needed, self.dtype, self.free = model, needed, dtype, dict(free)
