"""Errors of putting a model on devices, raised on purpose."""

from __future__ import annotations

from collections.abc import Mapping

from prunectl.errors import PrunectlError
from prunectl.numbers import size


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
