"""What a trace is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from prunectl.pattern import NM, distinct_nms
from prunectl.plan.settings import distinct_sparsities


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What is followed over the steps.

    Attributes:
        sparsities: of global magnitude pruning, whose loss is followed.
        patterns: N:M whose loss is followed.
        include, exclude: selectors that add to, and take from, the prunable tensors.

    Raises:
        InvalidSparsity, InvalidPattern: a value that has no meaning.
    """

    sparsities: tuple[float, ...] = (0.2, 0.4, 0.6)
    patterns: tuple[NM, ...] = (NM(2, 4),)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", distinct_nms(self.patterns))
        object.__setattr__(self, "sparsities", distinct_sparsities(self.sparsities))
        for name in ("include", "exclude"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
