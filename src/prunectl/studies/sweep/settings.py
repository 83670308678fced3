"""What a sweep is asked for: sparsities, patterns, and the loss that counts as free.

Nothing is read or computed when this is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from prunectl.errors import InvalidOption
from prunectl.evaluation.settings import EvalSettings
from prunectl.option import MEASURING, PRUNING, Explained, Fields, Option, parts_of, seeds_of
from prunectl.pattern import COMMON_PATTERNS, NM, Pattern, Unstructured, distinct_patterns
from prunectl.plan.settings import PruneSettings, check_complete

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


AUTO = "auto"
COARSE = Fraction(1, 10)
"""Step of the first look, as in the paper's curves."""
FINEST = Fraction(1, 100_000)
"""A smaller step moves no weight in most models."""
_MOST = 1000
_HINT = "auto, START:STOP:STEP such as 0:0.9:0.1, or a list such as 0.1,0.2,0.5"


@dataclass(frozen=True, slots=True)
class Grid:
    """What ``--sparsity`` of a sweep means.

    Attributes:
        text: as given.
        points: the sparsities, ascending; for a search, those of the first look.
        step: how close the search comes to the turning point; None for no search.
    """

    text: str
    points: tuple[Fraction, ...]
    step: Fraction | None

    def within(self, pattern: Pattern) -> tuple[Fraction, ...]:
        """The points that a pattern can reach; a search includes its largest sparsity."""
        most = most_of(pattern)
        found = [one for one in self.points if one < most]
        if isinstance(pattern, NM) and (self.step is not None or most in self.points):
            found.append(most)
        return tuple(found)


def most_of(pattern: Pattern) -> Fraction:
    """The largest sparsity of a pattern."""
    return 1 - Fraction(pattern.n, pattern.m) if isinstance(pattern, NM) else Fraction(1)


def parse_grid(text: str, step: float = 0.01) -> Grid:
    """Read ``auto``, ``0:0.9:0.1`` or ``0.1,0.2``.

    Raises:
        InvalidOption: it is none of them, or a value is no sparsity.
    """
    cleaned = text.strip().lower()
    if cleaned == AUTO:
        fine = Fraction(str(step)) if math.isfinite(step) else Fraction(0)
        if not FINEST <= fine <= COARSE:
            raise InvalidOption(
                f"--step {step:g} is not valid: {float(FINEST):g} to {float(COARSE):g}"
            )
        return Grid(AUTO, tuple(COARSE * i for i in range(1, 10)), fine)
    if ":" in cleaned:
        parts = [_fraction(part, text) for part in cleaned.split(":")]
        if len(parts) != 3 or parts[2] <= 0 or parts[1] < parts[0]:
            raise InvalidOption(f"--sparsity {text} is no range", hint=_HINT)
        start, stop, gap = parts
        count = (stop - start) // gap + 1
        if count > _MOST:
            raise InvalidOption(f"--sparsity {text} has more than {_MOST:,} points")
        points = [start + gap * i for i in range(int(count))]
    else:
        points = [_fraction(part, text) for part in cleaned.split(",") if part.strip()]
    if any(not 0 <= one < 1 for one in points):
        raise InvalidOption(f"--sparsity {text}: each is 0 or more, and below 1", hint=_HINT)
    points = sorted({one for one in points if one})  # 0, the dense model, is always measured
    if not points:
        raise InvalidOption(f"--sparsity {text} names no sparsity above 0", hint=_HINT)
    return Grid(text.strip(), tuple(points), None)


def next_point(free: Mapping[Fraction, bool], step: Fraction) -> Fraction | None:
    """The sparsity that a search measures next; None once the turning point is known to ``step``.

    Args:
        free: by sparsity, including 0, whether the score was within the tolerance.
    """
    inside = max((one for one, ok in free.items() if ok), default=Fraction(0))
    beyond = min((one for one, ok in free.items() if not ok and one > inside), default=None)
    if beyond is None or beyond - inside <= step:
        return None
    middle = inside + max(step, (beyond - inside) / 2 // step * step)
    return middle if inside < middle < beyond else None


def _fraction(text: str, whole: str) -> Fraction:
    try:
        # Through a float, since a fraction of 1e-999999999 would fill the memory.
        return Fraction(str(float(text)))
    except (ValueError, OverflowError):
        raise InvalidOption(f"--sparsity {whole}: '{text}' is no number", hint=_HINT) from None


class EpsilonMode(Explained):
    """The unit of a tolerance."""

    RELATIVE = "relative", "a share of the dense model's score"
    ABSOLUTE = "absolute", "in the metric's own units"
    """For an accuracy, 0.01 is one point."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse than the dense model counts as free."""

    epsilon: Annotated[float, Option("The loss that counts as free.", "SHARE", MEASURING)] = 0.01
    mode: Annotated[
        EpsilonMode,
        Option(
            "Whether --epsilon is a share of the dense score, or in the metric's own units.",
            heading=MEASURING,
            name="--epsilon-mode",
        ),
    ] = EpsilonMode.RELATIVE

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise InvalidOption(f"--epsilon {self.epsilon} is not valid: it is above 0")
        if self.mode not in list(EpsilonMode):
            raise InvalidOption(
                f"--epsilon-mode '{self.mode}' is not known",
                hint=f"one of {', '.join(EpsilonMode)}",
            )
        object.__setattr__(self, "mode", EpsilonMode(self.mode))

    def losses(self, scores: Floats, dense: Floats | float, *, higher_is_better: bool) -> Floats:
        """How much worse scores are, in the unit of the mode; negative is better than dense.

        NaN where the loss is undefined: for two infinite scores, or as a share of 0.
        """
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            worse = np.asarray(dense - scores if higher_is_better else scores - dense, np.float64)
            if self.mode is EpsilonMode.ABSOLUTE:
                return worse
            return np.where(np.abs(dense) > 0, worse / np.abs(dense), np.nan)

    def bound(self, dense: float, *, higher_is_better: bool) -> float:
        """The worst score that is within the tolerance."""
        room = self.epsilon * (abs(dense) if self.mode is EpsilonMode.RELATIVE else 1.0)
        return dense - room if higher_is_better else dense + room

    def __str__(self) -> str:
        """``1% of the dense score``, ``0.01``."""
        if self.mode is EpsilonMode.RELATIVE:
            return f"{100 * self.epsilon:.3g}% of the dense score"
        return f"{self.epsilon:.3g}"


def _patterns_of(texts: list[str]) -> tuple[Pattern, ...]:
    return distinct_patterns(parts_of(texts))


Seeds = Annotated[
    tuple[int, ...],
    Option(
        "Seeds of training and calibration; every point is measured with each.",
        "N[,N]",
        PRUNING,
        read=seeds_of,
    ),
]


@dataclass(frozen=True)
class SweepSettings:
    """The metric, and the sparsities and patterns at which it is measured.

    Attributes:
        evaluation: the metric and its data.
        sparsity: ``auto`` (steps of 0.1, then a search around the turning point), a range such as
            ``0:0.9:0.1``, or a list such as ``0.1,0.2``.
        step: how close ``auto`` comes to the turning point.
        patterns: one curve for each. N:M up to its own sparsity, as a budget of whole matrices.
        pruning: method, scope, selectors, calibration of all curves; its sparsity and pattern are
            not used.
        tolerance: the loss that is free.
        seeds: of metrics that train, and of calibration; each point is measured with every seed.
    """

    evaluation: Annotated[EvalSettings, Fields()] = field(default_factory=EvalSettings)
    sparsity: Annotated[
        str,
        Option(
            "auto (steps of 10%, then a search around the turning point), START:STOP:STEP, or a "
            "list such as 0.1,0.2,0.5.",
            "GRID",
            PRUNING,
            short="-s",
            values={
                "auto": "steps of 10%, then a search around the turning point",
                "0:0.9:0.1": "a range",
            },
        ),
    ] = "auto"
    step: Annotated[
        float, Option("How close auto comes to the turning point.", "SHARE", PRUNING)
    ] = 0.01
    patterns: Annotated[
        tuple[Pattern, ...],
        Option(
            "A curve each (repeatable, or with commas): unstructured, or N:M such as 2:4.",
            "PATTERN",
            PRUNING,
            "--pattern",
            "-p",
            values=COMMON_PATTERNS,
            read=_patterns_of,
            repeats=True,
        ),
    ] = (Unstructured(),)
    pruning: PruneSettings = field(default_factory=PruneSettings)
    tolerance: Annotated[Tolerance, Fields()] = field(default_factory=Tolerance)
    seeds: Seeds = (0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", distinct_patterns(self.patterns))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))
        if not self.patterns:
            raise InvalidOption("a sweep needs a pattern", hint="unstructured, or N:M")
        # numpy, which draws in trainings, takes no larger seeds.
        if not self.seeds or not 0 <= min(self.seeds) <= max(self.seeds) < 2**32:
            raise InvalidOption("--seeds: one or more whole numbers, 0 to 2**32 - 1")
        if self.pruning.mask is not None or self.pruning.rules:
            raise InvalidOption("a sweep chooses weights itself: no masks and no recipe")
        for pattern in self.patterns:
            if not self.grid.within(pattern):
                raise InvalidOption(
                    f"--sparsity {self.sparsity} has no point that pattern {pattern} can reach",
                    hint=f"it ends at {float(most_of(pattern)):.3g}",
                )
            check_complete(self.at(pattern, float(self.grid.within(pattern)[0]), self.seeds[0]))

    @cached_property
    def grid(self) -> Grid:
        """The sparsities that are measured."""
        return parse_grid(self.sparsity, self.step)

    def at(self, pattern: Pattern, sparsity: float, seed: int) -> PruneSettings:
        """The settings that prune one point."""
        calibration = self.pruning.calibration
        if calibration is not None:
            calibration = replace(calibration, seed=seed)
        full = isinstance(pattern, NM) and sparsity == float(most_of(pattern))
        return replace(
            self.pruning,
            sparsity=None if full else sparsity,
            pattern=pattern,
            calibration=calibration,
        )
