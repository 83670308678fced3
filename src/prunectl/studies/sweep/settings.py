"""What a sweep is asked to do; nothing is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from prunectl.errors import InvalidOption
from prunectl.evaluation.settings import EvalSettings
from prunectl.pattern import NM, Pattern, Unstructured, distinct_patterns
from prunectl.plan.settings import PruneSettings, check_complete
from prunectl.studies.sweep.grid import Grid, most_of, parse_grid
from prunectl.studies.sweep.tolerance import Tolerance

DEFAULT_STEP = 0.01


@dataclass(frozen=True)
class SweepSettings:
    """What is measured along which curve.

    Attributes:
        evaluation: the metric and its data.
        sparsity: ``auto`` (steps of 0.1, then a search around the turning point), a range such as
            ``0:0.9:0.1``, or a list such as ``0.1,0.2``.
        step: how close ``auto`` comes to the turning point.
        patterns: a curve each. N:M up to its own sparsity, as a budget of whole matrices.
        pruning: method, scope, selectors, calibration of all curves; its sparsity and pattern are
            not used.
        tolerance: what loss is free.
        seeds: of metrics that train, and of calibration; each point is measured with each.
    """

    evaluation: EvalSettings = field(default_factory=EvalSettings)
    sparsity: str = "auto"
    step: float = DEFAULT_STEP
    patterns: tuple[Pattern, ...] = (Unstructured(),)
    pruning: PruneSettings = field(default_factory=PruneSettings)
    tolerance: Tolerance = field(default_factory=Tolerance)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", distinct_patterns(self.patterns))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))
        if not self.patterns:
            raise InvalidOption("a sweep needs a pattern", hint="unstructured, or N:M")
        # Numpy, which draws in trainings, takes no larger ones.
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
        """How one point is pruned."""
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
