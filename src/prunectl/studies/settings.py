"""What a comparison and a trace are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from prunectl.option import COMPARING, MEASURING, Option, parts_of, shares_of
from prunectl.pattern import COMMON_NMS, COMMON_NMS_OR_NONE, NM, distinct_nms, parse_added_nms
from prunectl.plan.settings import Exclude, Include, PruneSettings, Scope, distinct_sparsities

DEFAULT_SPARSITIES = (0.1, 0.2, 0.3, 0.4)
"""The sparsities at which the paper compares masks (arXiv 2306.03805)."""


def _patterns_of(texts: list[str]) -> tuple[NM, ...]:
    return distinct_nms(parts_of(texts))


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """What is compared.

    Attributes:
        sparsities: of the masks; if empty: 10% to 40%, or the sparsity of a model that is already
            pruned or of a file of masks, where one of the two is that.
        patterns: N:M masks to compare too.
        scope: what magnitudes are compared with where masks are made of them.
        include, exclude: selectors that add to, and take from, the prunable tensors of both.

    Raises:
        InvalidSparsity, InvalidPattern, InvalidOption: a value that has no meaning.
    """

    sparsities: Annotated[
        tuple[float, ...],
        Option(
            "Compare the masks at these sparsities (repeatable, or with commas); default: 0.1 to "
            "0.4, or that of the side that is pruned already.",
            "SHARE",
            COMPARING,
            "--sparsity",
            "-s",
            read=shares_of,
            repeats=True,
        ),
    ] = ()
    patterns: Annotated[
        tuple[NM, ...],
        Option(
            "Also compare the masks of this pattern (repeatable, or with commas).",
            "N:M",
            COMPARING,
            "--pattern",
            "-p",
            values=COMMON_NMS,
            read=_patterns_of,
            repeats=True,
        ),
    ] = ()
    scope: Annotated[
        Scope, Option("What is compared together to make a mask.", heading=COMPARING)
    ] = Scope.GLOBAL
    include: Include = ()
    exclude: Exclude = ()

    def __post_init__(self) -> None:
        _normalise(self)

    def prune(self, sparsity: float | None, pattern: NM | None = None) -> PruneSettings:
        """The settings that make one of the masks."""
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

    sparsities: Annotated[
        tuple[float, ...],
        Option(
            "Follow what global pruning to this takes (repeatable, or with commas).",
            "SHARE",
            MEASURING,
            "--sparsity",
            "-s",
            read=shares_of,
            repeats=True,
        ),
    ] = (0.2, 0.4, 0.6)
    patterns: Annotated[
        tuple[NM, ...],
        Option(
            "Also follow what this pattern takes, besides 2:4 (repeatable); 'none' drops 2:4.",
            "N:M",
            MEASURING,
            "--pattern",
            "-p",
            values=COMMON_NMS_OR_NONE,
            read=parse_added_nms,
            repeats=True,
            shows_default=False,
        ),
    ] = (NM(2, 4),)
    include: Include = ()
    exclude: Exclude = ()

    def __post_init__(self) -> None:
        _normalise(self)


def _normalise(settings: CompareSettings | TraceSettings) -> None:
    """Check the sparsities and patterns, drop those given twice, and make tuples of all lists."""
    object.__setattr__(settings, "patterns", distinct_nms(settings.patterns))
    object.__setattr__(settings, "sparsities", distinct_sparsities(settings.sparsities))
    for name in ("include", "exclude"):
        object.__setattr__(settings, name, tuple(getattr(settings, name)))
