"""What a comparison and a trace are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from prunectl.pattern import NM, distinct_nms
from prunectl.plan.settings import PruneSettings, Scope, distinct_sparsities

DEFAULT_SPARSITIES = (0.1, 0.2, 0.3, 0.4)
"""Those of the paper's comparison of masks (arXiv 2306.03805)."""


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """What is compared.

    Attributes:
        sparsities: of the masks; none given: 10% to 40%, or, beside a model that is pruned already
            or a file of masks, as many zeros as that has.
        patterns: N:M masks to compare too.
        scope: what is compared together where masks are made by magnitude.
        include, exclude: selectors that add to, and take from, the prunable tensors of both.

    Raises:
        InvalidSparsity, InvalidPattern, InvalidOption: a value that has no meaning.
    """

    sparsities: tuple[float, ...] = ()
    patterns: tuple[NM, ...] = ()
    scope: Scope = Scope.GLOBAL
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", distinct_nms(self.patterns))
        object.__setattr__(self, "sparsities", distinct_sparsities(self.sparsities))
        for name in ("include", "exclude"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def prune(self, sparsity: float | None, pattern: NM | None = None) -> PruneSettings:
        """What makes one of the masks."""
        if pattern is not None:
            return PruneSettings(pattern=pattern)
        return PruneSettings(sparsity=sparsity, scope=self.scope)


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
