"""What a search for a ticket is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from prunectl.errors import InvalidOption
from prunectl.evaluation.metrics import DEFAULT_TRAINED, spec_of, trained
from prunectl.evaluation.settings import EvalSettings
from prunectl.pattern import Unstructured
from prunectl.plan.settings import PruneSettings, check_sparsity
from prunectl.studies.lottery.schedule import schedule
from prunectl.studies.sweep.settings import SweepSettings


@dataclass(frozen=True)
class LotterySettings:
    """What is trained, how often, and how much goes.

    Attributes:
        evaluation: a metric that trains, its data and its recipe: of tickets and of one-shot
            pruning alike.
        sparsity: of the ticket.
        rounds, rate: see :func:`prunectl.studies.lottery.schedule.schedule`.
        seeds: a search each, with this seed in all of its trainings.
        include, exclude: selectors that add to, and take from, the prunable tensors.

    Raises:
        InvalidSparsity, NoSchedule, InvalidOption: values that have no meaning.
    """

    evaluation: EvalSettings = field(default_factory=lambda: EvalSettings(DEFAULT_TRAINED))
    sparsity: float = 0.5
    rounds: int | None = None
    rate: float | None = None
    seeds: tuple[int, ...] = (0,)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, Unstructured())
        for name in ("seeds", "include", "exclude"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        training = self.evaluation.training
        trains = spec_of(self.evaluation.metric).trains
        if not trains or (training and training.epochs == 0):
            raise InvalidOption(
                f"--metric {self.evaluation.metric} does not train, and a lottery ticket is found "
                "by training",
                hint=f"--metric {' or '.join(trained())}",
            )
        _ = self.sweep, self.steps

    @cached_property
    def steps(self) -> tuple[float, ...]:
        """The sparsity after each round."""
        return schedule(self.sparsity, self.rounds, self.rate)

    @cached_property
    def sweep(self) -> SweepSettings:
        """One-shot pruning to the same sparsities, as a sweep measures it."""
        return SweepSettings(
            evaluation=self.evaluation,
            sparsity=",".join(map(str, schedule(self.sparsity, self.rounds, self.rate))),
            pruning=PruneSettings(include=self.include, exclude=self.exclude),
            seeds=self.seeds,
        )
